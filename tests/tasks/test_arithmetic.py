"""Arithmetic: right results, non-negative steps, all dials, random order, and a tail of rare tokens."""

from __future__ import annotations

import ast
import re
from collections import Counter

import pytest

from drpo_bench.task_configs import ArithmeticConfig
from drpo_bench.tasks import Problem, make_task
from drpo_bench.tasks.arithmetic import CONNECTIVES, VERBS, Arithmetic
from drpo_bench.tasks.zipf import Zipf

OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}
CONFIGS = [
    ArithmeticConfig(),
    ArithmeticConfig(min_terms=2, max_terms=8, operators="+-*", nesting=0.5),
    ArithmeticConfig(min_terms=2, max_terms=8, operators="-", max_operand=9),
    ArithmeticConfig(min_terms=4, max_terms=6, operators="-*"),
    ArithmeticConfig(max_terms=5, operators="*-", nesting=1.0, max_operand=9),
    ArithmeticConfig(operators="*", nesting=1.0),
]
IDS = ["default", "all", "minus", "minus_times", "nested", "times"]


def equations_of(prompt: str) -> tuple[list[str], int]:
    """Python's own reading of the expression: its equations, and its value."""
    found: list[str] = []

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant):
            return int(str(node.value))
        assert isinstance(node, ast.BinOp)
        left, right, sign = value(node.left), value(node.right), OPERATORS[type(node.op)]
        result = {"+": left + right, "-": left - right, "*": left * right}[sign]
        assert result >= 0, prompt
        found.append(f"{left}{sign}{right}={result}")
        return result

    return found, value(ast.parse(prompt.removesuffix("="), mode="eval").body)


def draw(config: ArithmeticConfig, count: int) -> list[Problem]:
    task = make_task(config)
    return [task.problem("warmstart", 0, index) for index in range(count)]


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_solutions_hold_every_equation_of_the_expression_and_nothing_else(config: ArithmeticConfig) -> None:
    for problem in draw(config, 400):
        expected, value = equations_of(problem.prompt)
        steps, answer = problem.solution.split(" #### ")
        assert Counter(re.findall(r"\S+=\d+", steps)) == Counter(expected)
        assert answer == problem.answer == str(value)


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_no_step_uses_a_result_before_it_is_known(config: ArithmeticConfig) -> None:
    for problem in draw(config, 400):
        known = Counter(re.findall(r"\d+", problem.prompt))
        for left, right, result in re.findall(r"(\d+)[-+*](\d+)=(\d+)", problem.solution):
            known[left] -= 1
            known[right] -= 1
            assert min(known.values()) >= 0, problem
            known[result] += 1
        assert +known == {problem.answer: 1}  # everything is used up but the answer


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_dials(config: ArithmeticConfig) -> None:
    problems = draw(config, 400)
    for problem in problems:
        operands = [int(number) for number in re.findall(r"\d+", problem.prompt)]
        assert config.min_terms <= len(operands) <= config.max_terms
        assert all(1 <= operand <= config.max_operand for operand in operands)
        assert set(re.findall(r"[-+*]", problem.prompt)) <= set(config.operators)
    nested = sum("(" in problem.prompt for problem in problems) / len(problems)
    assert abs(nested - config.nesting) < 0.15  # two-term expressions hold no parentheses


def test_every_number_of_terms_and_every_operator_occurs() -> None:
    problems = draw(ArithmeticConfig(min_terms=2, max_terms=5, operators="+-*"), 300)
    assert {len(re.findall(r"\d+", problem.prompt)) for problem in problems} == {2, 3, 4, 5}
    assert set("".join(problem.prompt for problem in problems)) == set("0123456789+-*=")


def test_parentheses_with_too_few_terms_are_refused() -> None:
    with pytest.raises(ValueError, match=r"task\.nesting: .* task\.max_terms"):
        Arithmetic(ArithmeticConfig(min_terms=2, max_terms=2, nesting=0.1))


def test_independent_steps_come_in_both_orders() -> None:
    orders: Counter[bool] = Counter()
    for problem in draw(ArithmeticConfig(min_terms=4, max_terms=4, nesting=1.0), 3000):
        match = re.fullmatch(r"(\d+)[-+](\d+)-\((\d+)[-+](\d+)\)=", problem.prompt)
        if match:  # a+b-(c+d): either sum can come first
            first = re.match(r"\w+ (\d+)[-+](\d+)=", problem.solution)
            assert first
            orders[first.groups() == match.groups()[:2]] += 1
    assert sum(orders.values()) > 150
    assert 0.55 < orders[True] / sum(orders.values()) < 0.85  # 0.7 by construction


@pytest.mark.parametrize(("config", "share"), [(ArithmeticConfig(), 0.035), (CONFIGS[1], 0.03)], ids=["default", "all"])
def test_share_of_rare_tokens(config: ArithmeticConfig, share: float) -> None:
    """The grammar gives more than 3% of the tokens a probability of at most 0.01."""
    tokenizer = make_task(config).tokenizer()
    # 126 connectives, every other step: the n-th has 1 / (2 * 5.418 n), which is at most 0.01 from the 10th on
    rare = {f"{word} " for word in CONNECTIVES.words[9:] + VERBS.words[9:]}
    tokens = [token for p in draw(config, 1000) for token in [*tokenizer.encode(p.solution).tokens, "<eos>"]]
    assert sum(token in rare for token in tokens) / len(tokens) > share


@pytest.mark.parametrize("words", [CONNECTIVES, VERBS], ids=["connectives", "verbs"])
def test_words_are_drawn_by_zipf(words: Zipf) -> None:
    assert not set(CONNECTIVES.words) & set(VERBS.words)
    steps = [
        step
        for problem in draw(ArithmeticConfig(), 4000)
        for step in problem.solution.split(" #### ")[0].split("; ")
    ]
    drawn = [step.split()[0] for step in steps if step.split()[0] in words.words]
    assert 0.45 < len(drawn) / len(steps) < 0.55
    counts = Counter(drawn)
    harmonic = sum(1 / rank for rank in range(1, len(words.words) + 1))
    for rank in (1, 2, 10):
        expected = len(drawn) / (rank * harmonic)
        assert abs(counts[words.words[rank - 1]] - expected) < 5 * expected**0.5
    assert len(counts) == len(words.words)


def test_default_responses_are_short() -> None:
    tokenizer = make_task(ArithmeticConfig()).tokenizer()
    lengths = [len(tokenizer.encode(problem.solution).ids) + 1 for problem in draw(ArithmeticConfig(), 500)]
    assert 20 < sum(lengths) / len(lengths) < 26
    assert max(lengths) <= 32
