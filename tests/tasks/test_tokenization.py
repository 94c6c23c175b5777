"""Tokenizers: exact round trips, single digits, fixed special ids."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpo_bench.task_configs import ArithmeticConfig, TaskConfig, WordProblemsConfig
from drpo_bench.tasks import make_task
from drpo_bench.tasks.tokenization import byte_bpe_tokenizer, word_tokenizer

TEXTS = ["Tom has 48 apples and buys 12 more.\n#### 60", "Ava's 7 dogs eat 100 biscuits, she says.", "naïve café"]
BPE = byte_bpe_tokenizer(TEXTS, 300)
WORDS = word_tokenizer(["then ", "take ", "so ", "so", "+", "=", "; ", " #### ", "'s ", "\n"])


@pytest.mark.parametrize("tokenizer", [BPE, WORDS], ids=["bpe", "words"])
def test_special_tokens_have_the_first_ids_and_are_never_added(tokenizer: object) -> None:
    assert [tokenizer.token_to_id(name) for name in ("<pad>", "<bos>", "<eos>", "<unk>")] == [0, 1, 2, 3]  # type: ignore[attr-defined]
    assert min(tokenizer.encode("12 + 7").ids) >= 3  # type: ignore[attr-defined]
    assert tokenizer.encode("").ids == []  # type: ignore[attr-defined]


def test_a_word_takes_the_space_after_it_and_digits_stand_alone() -> None:
    encoded = WORDS.encode("so take 12+3=15; then take 15 #### 15")
    assert encoded.tokens == [
        *("so ", "take ", "1", "2", "+", "3", "=", "1", "5", "; "),
        *("then ", "take ", "1", "5", " #### ", "1", "5"),
    ]
    assert WORDS.decode(encoded.ids) == "so take 12+3=15; then take 15 #### 15"


def test_decoding_drops_special_tokens() -> None:
    ids = [1, *WORDS.encode("so").ids, 2, 0, 0]
    assert WORDS.decode(ids) == "so"


def test_an_unknown_word_is_unk() -> None:
    assert WORDS.encode("never ").ids == [3]


@pytest.mark.parametrize("piece", ["two words", "12", " word", "a1", ""])
def test_a_piece_that_would_be_split_is_refused(piece: str) -> None:
    with pytest.raises(ValueError, match="is not one piece"):
        word_tokenizer([piece])


@settings(deadline=None)
@given(st.lists(st.sampled_from(["then ", "take ", "so ", "+", "=", "; ", "7 #### ", "20", "305"]), max_size=30))
def test_known_pieces_round_trip_in_any_order(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert WORDS.decode(WORDS.encode(text).ids) == text


@settings(deadline=None)
@given(st.text())
def test_bpe_round_trips_every_text(text: str) -> None:
    assert BPE.decode(BPE.encode(text).ids) == text


@settings(deadline=None)
@given(st.integers(0, 10**9))
def test_bpe_digits_are_single_tokens(number: int) -> None:
    assert BPE.encode(str(number)).tokens == list(str(number))


def test_bpe_is_deterministic() -> None:
    assert byte_bpe_tokenizer(TEXTS, 300).to_str() == BPE.to_str()
    assert BPE.get_vocab_size() == 300


@pytest.mark.parametrize(
    ("config", "smallest", "largest"),
    [
        (ArithmeticConfig(operators="+-*", nesting=0.5, max_terms=6), 150, 300),
        (WordProblemsConfig(distractors=1.0), 800, 2000),
        (WordProblemsConfig(max_number=20), 800, 2000),
    ],
    ids=["arithmetic", "word_problems", "word_problems_small"],
)
def test_tasks_round_trip_without_unknown_words(config: TaskConfig, smallest: int, largest: int) -> None:
    task = make_task(config)
    tokenizer = task.tokenizer()
    assert smallest <= tokenizer.get_vocab_size() <= largest
    assert tokenizer.to_str() == task.tokenizer().to_str()
    for index in range(800):
        problem = task.problem("train", 0, index)
        prompt, solution = tokenizer.encode(problem.prompt).ids, tokenizer.encode(problem.solution).ids
        assert min(prompt + solution) > 3, tokenizer.encode(problem.prompt + problem.solution).tokens
        assert tokenizer.decode(prompt + solution) == problem.prompt + problem.solution
        assert tokenizer.encode(problem.prompt + problem.solution).ids == prompt + solution
