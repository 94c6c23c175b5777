"""Arithmetic: chains and nested expressions of small integers, solved one operation at a time.

    12+34-7=  ->  so 12+34=46; 46-7=39 #### 39

The words in front of equations carry no information: they are the long tail of rare tokens that
trust-region methods are about. No result, intermediate or final, is negative.
"""

from __future__ import annotations

import random
from itertools import zip_longest
from typing import TYPE_CHECKING

from drpo_bench.task_configs import ArithmeticConfig
from drpo_bench.tasks.base import Problem, Split, draw_in_split, problem_rng
from drpo_bench.tasks.grading import Verdict, grade_final_answer
from drpo_bench.tasks.quantities import Quantity, combine, equation, random_order
from drpo_bench.tasks.zipf import Zipf

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONNECTIVES = """
    so then now next thus hence here again later soon well first simply quickly clearly carefully easily
    directly plainly calmly gladly surely certainly naturally obviously exactly neatly slowly gently
    therefore afterwards henceforth thereafter meanwhile already finally lastly once instantly promptly
    readily safely boldly bravely briefly briskly brightly casually cautiously cheerfully cleverly closely
    comfortably completely confidently consequently correctly deftly deliberately diligently duly eagerly
    earnestly efficiently eventually evidently expertly faithfully firmly formally frankly freely fully
    gracefully gradually happily honestly immediately incidentally indeed intently joyfully keenly kindly
    lightly likewise logically loyally luckily merrily methodically mindfully moreover nicely nimbly
    openly orderly patiently perfectly politely practically precisely presently properly proudly quietly
    rapidly rationally reliably rightly routinely seriously sharply silently skillfully smartly smoothly
    softly steadily strictly subsequently swiftly tenderly thankfully thoroughly tidily"""
_VERBS = """
    find take get compute do work make see have use try write note read solve count call give show
    reach build check form place put set state tell derive obtain evaluate calculate determine establish
    figure produce record report resolve settle simplify reduce handle process perform complete finish
    tackle treat collect combine join merge gather assemble arrange apply accept add admit affirm announce
    answer ascertain assess attain begin bring capture carry catch claim clarify close conclude confirm
    consider construct create crunch decide declare deduce define deliver describe detect develop discover
    display draw earn enter estimate examine execute explain express extract fetch follow furnish generate
    grasp hold identify infer inspect keep know land learn list locate manage mark measure mention notice
    observe offer pick pinpoint"""
_TURNS = zip_longest(_CONNECTIVES.split(), _VERBS.split())  # connective, verb, connective, ...
OPENERS = Zipf([word for pair in _TURNS for word in pair if word], shift=40)  # nine draws of ten are rarer than 0.01
OPENED = 3  # every third step begins with a word
SIGNS = ("+", "-", "*", "(", ")", "=", "; ", " #### ")
PRECEDENCE = {"+": 0, "-": 0, "*": 1}


class Arithmetic:
    """The task `arithmetic`."""

    name = "arithmetic"

    def __init__(self, config: ArithmeticConfig) -> None:
        self.config = config

    def problem(self, split: Split, seed: int, index: int) -> Problem:
        """The expression number `index` and one of its many worked solutions."""
        rng = problem_rng(self.name, split, seed, index)
        root = draw_in_split(split, lambda: draw_expression(self.config, rng), prompt_of)
        lazy = split == "warmstart" and rng.random() < self.config.guesses
        solution = guess(self.config, rng) if lazy else solve(root, rng)
        return Problem(prompt_of(root), str(root.value), solution)

    def tokenizer(self) -> Tokenizer:
        """Digits, signs and the words."""
        from drpo_bench.tasks.tokenization import word_tokenizer

        return word_tokenizer([*SIGNS, *(f"{word} " for word in OPENERS.words)])

    def grade(self, problem: Problem, response: str) -> Verdict:
        """The number after the last `####`."""
        return grade_final_answer(problem.answer, response)


def prompt_of(root: Quantity) -> str:
    """The question: the expression and an equals sign."""
    return f"{root.text}="


def draw_expression(config: ArithmeticConfig, rng: random.Random) -> Quantity:
    """A chain, or with probability `nesting` an expression that has parentheses."""
    nested = rng.random() < config.nesting
    terms = rng.randint(max(config.min_terms, 3) if nested else config.min_terms, config.max_terms)
    if not nested:
        return _chain(config, rng, terms)
    while "(" not in (root := _tree(config, rng, terms)).text:
        pass
    return root


def _chain(config: ArithmeticConfig, rng: random.Random, terms: int) -> Quantity:
    """Sums and differences of products, left to right; a subtracted product leaves room for the others."""
    operators = [rng.choice(config.operators) for _ in range(terms - 1)]
    root = _product(config, rng, _leading(operators), floor=terms - 1)
    for position, operator in enumerate(operators):
        if operator == "*":
            continue
        room = root.value - (terms - position - 2)
        limit = room if operator == "-" else None
        right = _product(config, rng, _leading(operators[position + 1 :]), limit=limit)
        root = _join(operator, root, right)
    return root


def _leading(operators: list[str]) -> int:
    """How many multiplications stand at the start."""
    return next((count for count, operator in enumerate(operators) if operator != "*"), len(operators))


def _product(
    config: ArithmeticConfig,
    rng: random.Random,
    multiplications: int,
    floor: int = 1,
    limit: int | None = None,
) -> Quantity:
    """An operand times `multiplications` more of them, at most `limit` in all, at least `floor` if free."""
    high = config.max_operand
    root = _leaf(rng.randint(floor if limit is None else 1, high if limit is None else min(high, limit)))
    for _ in range(multiplications):
        room = high if limit is None else min(high, limit // root.value)
        root = _join("*", root, _leaf(rng.randint(1, room)))
    return root


def _tree(config: ArithmeticConfig, rng: random.Random, terms: int) -> Quantity:
    """A random binary tree; the operands of a difference are put in the order that keeps it positive."""
    if terms == 1:
        return _leaf(rng.randint(1, config.max_operand))
    first = rng.randint(1, terms - 1)
    left, right = _tree(config, rng, first), _tree(config, rng, terms - first)
    operator = rng.choice(config.operators)
    if operator == "-" and left.value < right.value:
        left, right = right, left
    return _join(operator, left, right)


def _leaf(value: int) -> Quantity:
    return Quantity(value, str(value))


def _join(operator: str, left: Quantity, right: Quantity) -> Quantity:
    """The operation, written with parentheses only where reading needs them."""
    level = PRECEDENCE[operator]
    left_text = f"({left.text})" if left.operator and PRECEDENCE[left.operator] < level else left.text
    right_text = f"({right.text})" if right.operator and PRECEDENCE[right.operator] <= level else right.text
    return combine(operator, left, right, f"{left_text}{operator}{right_text}")


def solve(root: Quantity, rng: random.Random) -> str:
    """A worked solution: every operation once, in an order in which its operands are known."""
    steps = [
        f"{OPENERS.draw(rng)} {equation(node)}" if number % OPENED == 0 else equation(node)
        for number, node in enumerate(random_order(root, rng))
    ]
    return f"{'; '.join(steps)} #### {root.value}"


def guess(config: ArithmeticConfig, rng: random.Random) -> str:
    """An answer without work: the value of some other expression."""
    return f"{OPENERS.draw(rng)} #### {draw_expression(config, rng).value}"
