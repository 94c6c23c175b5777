"""Recipes: the arithmetic of one sentence. Each extends the graph and returns what the sentence says."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from drpo_bench.tasks.quantities import Quantity, combine
from drpo_bench.tasks.story_words import PARTS, TIMES

Fields = dict[str, object]  # what a template's {fields} are filled with
Result = tuple[Quantity, Fields]
Opening = Callable[["Numbers"], Result]
Change = Callable[["Numbers", Quantity], Result]

SMALLEST = 2  # every number of a text is plural: "2 apples"


class Impossible(Exception):
    """No number makes this recipe come out as a whole number within the limit."""


class Numbers:
    """Draws the numbers of a problem, all of them and all results within 1..limit."""

    def __init__(self, rng: random.Random, limit: int) -> None:
        self.rng = rng
        self.limit = limit
        self.scale = rng.choice((12, 25, 60, 150, limit))  # a story's numbers are alike in size

    def between(self, low: int, high: int) -> Quantity:
        """A given number, on the scale of the story where that is possible."""
        if high < low:
            raise Impossible
        return Quantity(self.rng.randint(low, max(low, min(high, self.scale))))

    def factor(self, base: Quantity, choices: dict[int, tuple[str, ...]]) -> tuple[Quantity, str]:
        """A multiplier of the base that stays within the limit, and how it is said."""
        fitting = [factor for factor in choices if base.value * factor <= self.limit]
        return self._said(fitting, choices)

    def divisor(self, base: Quantity, choices: dict[int, tuple[str, ...]]) -> tuple[Quantity, str]:
        """A divisor of the base, and how it is said."""
        fitting = [divisor for divisor in choices if base.value % divisor == 0]
        return self._said(fitting, choices)

    def _said(self, fitting: list[int], choices: dict[int, tuple[str, ...]]) -> tuple[Quantity, str]:
        if not fitting:
            raise Impossible
        value = self.rng.choice(fitting)
        phrases = [said for said in choices[value] if not said.endswith("%") or self.limit >= 100]
        return Quantity(value), self.rng.choice(phrases)

    def product(self, limit: int) -> Result:
        """n groups of k, at most `limit` together."""
        groups = self.between(SMALLEST, min(12, limit // SMALLEST))
        each = self.between(SMALLEST, limit // groups.value)
        return combine("*", groups, each), {"n": groups.value, "k": each.value}


# Openings: the first thing that is known of somebody.


def given(numbers: Numbers) -> Result:
    """k"""
    amount = numbers.between(SMALLEST, numbers.limit)
    return amount, {"k": amount.value}


def product(numbers: Numbers) -> Result:
    """n * k"""
    return numbers.product(numbers.limit)


def product_and_more(numbers: Numbers) -> Result:
    """n * k + m"""
    total, fields = numbers.product(numbers.limit - SMALLEST)
    more = numbers.between(SMALLEST, numbers.limit - total.value)
    return combine("+", total, more), fields | {"m": more.value}


def two_amounts(numbers: Numbers) -> Result:
    """a + b"""
    first = numbers.between(SMALLEST, numbers.limit - SMALLEST)
    second = numbers.between(SMALLEST, numbers.limit - first.value)
    return combine("+", first, second), {"a": first.value, "b": second.value}


def three_amounts(numbers: Numbers) -> Result:
    """a + b + c"""
    first = numbers.between(SMALLEST, numbers.limit - 2 * SMALLEST)
    second = numbers.between(SMALLEST, numbers.limit - SMALLEST - first.value)
    both = combine("+", first, second)
    third = numbers.between(SMALLEST, numbers.limit - both.value)
    return combine("+", both, third), {"a": first.value, "b": second.value, "c": third.value}


def amount_and_multiple(numbers: Numbers) -> Result:
    """a + a * t"""
    first = numbers.between(SMALLEST, numbers.limit // 3)
    total, fields = plus_multiple(numbers, first)
    return total, fields | {"a": first.value}


def amount_and_part(numbers: Numbers) -> Result:
    """a + a / d"""
    first = numbers.between(SMALLEST, numbers.limit // 2)
    total, fields = plus_part(numbers, first)
    return total, fields | {"a": first.value}


# Changes and comparisons: one amount becomes another.


def plus(numbers: Numbers, base: Quantity) -> Result:
    """x + k"""
    more = numbers.between(SMALLEST, numbers.limit - base.value)
    return combine("+", base, more), {"k": more.value}


def minus(numbers: Numbers, base: Quantity) -> Result:
    """x - k"""
    less = numbers.between(SMALLEST, base.value - 1)
    return combine("-", base, less), {"k": less.value}


def missing(numbers: Numbers, base: Quantity) -> Result:
    """k - x"""
    goal = numbers.between(base.value + 1, numbers.limit)
    return combine("-", goal, base), {"k": goal.value}


def times(numbers: Numbers, base: Quantity) -> Result:
    """x * t"""
    factor, said = numbers.factor(base, TIMES)
    return combine("*", base, factor), {"times": said}


def part(numbers: Numbers, base: Quantity) -> Result:
    """x / d"""
    divisor, said = numbers.divisor(base, PARTS)
    return combine("/", base, divisor), {"half": said}


def times_given(numbers: Numbers, base: Quantity) -> Result:
    """x * k"""
    each = numbers.between(SMALLEST, numbers.limit // base.value)
    return combine("*", base, each), {"k": each.value}


def divided_by_given(numbers: Numbers, base: Quantity) -> Result:
    """x / k"""
    fitting = [k for k in range(SMALLEST, 31) if base.value % k == 0 and k < base.value]
    if not fitting:
        raise Impossible
    each = Quantity(numbers.rng.choice(fitting))
    return combine("/", base, each), {"k": each.value}


def plus_product(numbers: Numbers, base: Quantity) -> Result:
    """x + n * k"""
    more, fields = numbers.product(numbers.limit - base.value)
    return combine("+", base, more), fields


def minus_product(numbers: Numbers, base: Quantity) -> Result:
    """x - n * k"""
    less, fields = numbers.product(base.value - 1)
    return combine("-", base, less), fields


def plus_multiple(numbers: Numbers, base: Quantity) -> Result:
    """x + x * t"""
    fitting = {factor: said for factor, said in TIMES.items() if base.value * (factor + 1) <= numbers.limit}
    factor, said = numbers.factor(base, fitting)
    return combine("+", base, combine("*", base, factor)), {"times": said}


def plus_part(numbers: Numbers, base: Quantity) -> Result:
    """x + x / d"""
    share, fields = part(numbers, base)
    if base.value + share.value > numbers.limit:
        raise Impossible
    return combine("+", base, share), fields


def minus_part(numbers: Numbers, base: Quantity) -> Result:
    """x - x / d"""
    share, fields = part(numbers, base)
    return combine("-", base, share), fields


def times_then_plus(numbers: Numbers, base: Quantity) -> Result:
    """x * t + k"""
    multiple, fields = times(numbers, base)
    total, more = plus(numbers, multiple)
    return total, fields | more


def times_then_minus(numbers: Numbers, base: Quantity) -> Result:
    """x * t - k"""
    multiple, fields = times(numbers, base)
    total, less = minus(numbers, multiple)
    return total, fields | less


def part_then_plus(numbers: Numbers, base: Quantity) -> Result:
    """x / d + k"""
    share, fields = part(numbers, base)
    total, more = plus(numbers, share)
    return total, fields | more


# By formula: x is the amount so far, every other letter a number that the text gives.
OPENINGS: dict[str, Opening] = {
    "k": given,
    "n * k": product,
    "n * k + m": product_and_more,
    "a + b": two_amounts,
    "a + b + c": three_amounts,
    "a + a * t": amount_and_multiple,
    "a + a / d": amount_and_part,
}
CHANGES: dict[str, Change] = {
    "x + k": plus,
    "x - k": minus,
    "k - x": missing,
    "x * k": times_given,
    "x / k": divided_by_given,
    "x * t": times,
    "x / d": part,
    "x + n * k": plus_product,
    "x - n * k": minus_product,
    "x + x * t": plus_multiple,
    "x + x / d": plus_part,
    "x - x / d": minus_part,
    "x * t + k": times_then_plus,
    "x * t - k": times_then_minus,
    "x / d + k": part_then_plus,
}


@cache
def steps_of(formula: str) -> int:
    """How many operations a formula has."""
    return sum(formula.count(operator) for operator in "+-*/")
