"""Grading: tricky answers, exactness, and no way to hang or crash it."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpo_bench.tasks.grading import Verdict, grade_final_answer, parse_number


@pytest.mark.parametrize(
    ("answer", "response", "status"),
    [
        ("39", "so add 12+34=46; take 46-7=39 #### 39", "correct"),
        ("39", "#### 40", "wrong"),
        ("39", "the answer is 39", "unparsable"),
        ("39", "", "unparsable"),
        ("39", "####", "unparsable"),
        ("39", "#### thirty-nine", "unparsable"),
        ("39", "####39", "correct"),
        ("39", "####   39  \n", "correct"),
        ("39", "#### 39.", "correct"),
        ("39", "#### 39.0", "correct"),
        ("39", "#### 39.00.", "correct"),
        ("39", "#### 39.5", "wrong"),
        ("39", "#### $39", "correct"),
        ("39", "#### $ 39", "correct"),
        ("39", "#### 39%", "correct"),
        ("39", "#### +39", "correct"),
        ("39", "#### 039", "correct"),
        ("1234", "#### 1,234", "correct"),
        ("1,234", "#### $1,234.00", "correct"),
        ("1234567", "#### 1,234,567", "correct"),
        ("1234", "#### 1,23", "unparsable"),
        ("1", "#### 1,2", "unparsable"),
        ("1", "#### 1, 2", "correct"),
        ("-12", "#### -12", "correct"),
        ("-12", "#### \u221212", "correct"),
        ("-12", "#### -$12", "correct"),
        ("-12", "#### $-12", "correct"),
        ("12", "#### -12", "wrong"),
        ("12", "#### --12", "unparsable"),
        ("12", "#### -$-12", "unparsable"),
        ("0", "#### -0", "correct"),
        ("12", "#### 12 apples", "correct"),
        ("12", "#### 12, of course", "correct"),
        ("12", "#### 12abc", "unparsable"),
        ("12", "#### 12_000", "unparsable"),
        ("1", "#### 1e3", "unparsable"),
        ("1", "#### 1.2.3", "unparsable"),
        ("12", "#### 12/0", "unparsable"),
        ("12", "#### 24/2", "correct"),
        ("0.5", "#### 1/2", "correct"),
        ("0.5", "#### .5", "correct"),
        ("12", "#### 12/", "unparsable"),
        ("12", "#### 24/2/1", "unparsable"),
        ("12", "#### 12\u0663", "unparsable"),  # an Arabic digit
        ("12", "#### 5 #### 12", "correct"),
        ("5", "#### 5 #### 12", "wrong"),
        ("5", "#### 5 ####", "unparsable"),
        ("12", "##### 12", "correct"),
    ],
)
def test_tricky_answers(answer: str, response: str, status: str) -> None:
    assert grade_final_answer(answer, response).status == status


def test_comparison_is_exact_where_floats_are_not() -> None:
    assert 0.1 + 0.2 != 0.3
    assert parse_number("0.30") == Fraction(3, 10)
    big = 2**60 + 1
    assert float(big) == float(big - 1)
    assert grade_final_answer(str(big), f"#### {big - 1}").status == "wrong"


def test_reward_is_one_only_for_a_correct_answer() -> None:
    assert [Verdict(status).reward for status in ("correct", "wrong", "unparsable")] == [1.0, 0.0, 0.0]


def test_a_gold_answer_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="'twelve' is not a number"):
        grade_final_answer("twelve", "#### 12")


@pytest.mark.parametrize(
    "tail",
    [
        "9" * 10**6,
        " " * 10**6 + "1",
        "-" * 10**6,
        "$ " * 10**6,
        "1," * 10**6,
        ",111" * 10**6,
        "1/" * 10**6,
        "#" * 10**6,
    ],
    ids=["digits", "spaces", "signs", "dollars", "commas", "groups", "fractions", "markers"],
)
def test_giant_responses_are_unparsable_and_quick(tail: str) -> None:
    start = time.perf_counter()
    assert grade_final_answer("1", "#### " + tail).status == "unparsable"
    assert time.perf_counter() - start < 0.1


@settings(deadline=None)
@given(st.text())
def test_no_response_raises(text: str) -> None:
    assert grade_final_answer("7", text).status in ("correct", "wrong", "unparsable")
    assert grade_final_answer("7", "#### " + text).status in ("correct", "wrong", "unparsable")


@settings(deadline=None)
@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "${:,}", "{}.0", "{:,}.", "{} miles"]))
def test_every_way_to_write_an_integer_is_that_integer(number: int, form: str) -> None:
    assert grade_final_answer(str(number), f"thus\n#### {form.format(number)}").status == "correct"
    assert grade_final_answer(str(number + 1), f"thus\n#### {form.format(number)}").status == "wrong"
