"""Arithmetic: right results, non-negative steps, all dials, random order, and a tail of rare tokens."""

from __future__ import annotations

import ast
import re
from collections import Counter

import pytest

from drpo_bench.task_configs import ArithmeticConfig
from drpo_bench.tasks import Problem, make_task
from drpo_bench.tasks.arithmetic import OPENERS

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
    with pytest.raises(ValueError, match=r"nesting: .* max_terms"):
        ArithmeticConfig(min_terms=2, max_terms=2, nesting=0.1)


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


@pytest.mark.parametrize("max_operand", [9, 30, 99])
def test_share_of_rare_tokens(max_operand: int) -> None:
    """The grammar gives more than 3% of the tokens a probability of at most 0.01."""
    config = ArithmeticConfig(max_operand=max_operand, min_terms=4 if max_operand == 9 else 3, max_terms=4)
    tokenizer = make_task(config).tokenizer()
    # 249 words: the n-th has 1 / (1.965 (n + 40)), which is at most 0.01 from the 11th on
    rare = {f"{word} " for word in OPENERS.words[10:]}
    tokens = [token for p in draw(config, 1000) for token in [*tokenizer.encode(p.solution).tokens, "<eos>"]]
    assert sum(token in rare for token in tokens) / len(tokens) > 0.03


def test_every_third_step_begins_with_a_word_drawn_by_zipf() -> None:
    problems = draw(ArithmeticConfig(min_terms=5, max_terms=5), 3000)
    steps = [problem.solution.split(" #### ")[0].split("; ") for problem in problems]
    assert {tuple(step[0].isalpha() for step in solution) for solution in steps} == {(True, False, False, True)}
    drawn = [step.split()[0] for solution in steps for step in (solution[0], solution[3])]
    counts, total = Counter(drawn), sum(1 / (rank + 40) for rank in range(1, 250))
    for rank in (1, 2, 10, 100):
        expected = len(drawn) / ((rank + 40) * total)
        assert abs(counts[OPENERS.words[rank - 1]] - expected) < 5 * expected**0.5
    assert len(counts) == len(OPENERS.words) == 249


def test_default_responses_are_short() -> None:
    tokenizer = make_task(ArithmeticConfig()).tokenizer()
    lengths = [len(tokenizer.encode(problem.solution).ids) + 1 for problem in draw(ArithmeticConfig(), 500)]
    assert 18 < sum(lengths) / len(lengths) < 24
    assert max(lengths) <= 32


def test_guesses_skip_the_work_and_are_in_the_warm_start_alone() -> None:
    task = make_task(ArithmeticConfig(guesses=0.4))
    problems = [task.problem("warmstart", 0, index) for index in range(1000)]
    guessed = [problem for problem in problems if "=" not in problem.solution]
    assert 340 < len(guessed) < 460
    right = sum(task.grade(problem, problem.solution).reward for problem in guessed)
    assert right < 0.1 * len(guessed)
    assert all(task.grade(problem, problem.solution).reward for problem in problems if "=" in problem.solution)
    assert all("=" in task.problem("train", 0, index).solution for index in range(200))
