"""Two runs' records, value by value and bit by bit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
UNCOMPARED_GROUPS = ("time", "perf")  # what the clock decides


@dataclass(frozen=True)
class Difference:
    """One value that is another one; None where one side has none."""

    step: int
    metric: str
    then: Any
    now: Any

    @property
    def relative(self) -> float:
        """|then - now| over the larger of the two; infinite where that is no number."""
        numbers = [v for v in (self.then, self.now) if isinstance(v, int | float) and math.isfinite(v)]
        if len(numbers) < 2:
            return math.inf
        largest = max(map(abs, numbers))
        return abs(numbers[0] - numbers[1]) / largest if largest else 0.0


@dataclass(frozen=True)
class Comparison:
    """All values of all records of both sides."""

    records: int
    metrics: tuple[int, int]  # fewest and most a record
    values: int
    differences: tuple[Difference, ...]  # in the order of the records

    def first(self) -> list[Difference]:
        """The differences of the first record that has some, the largest first."""
        at_first = (d for d in self.differences if d.step == self.differences[0].step)
        return sorted(at_first, key=lambda d: -d.relative)

    def worst(self, count: int) -> list[Difference]:
        """The metrics that differ most, each where it does."""
        largest: dict[str, Difference] = {}
        for difference in self.differences:
            if difference.metric not in largest or difference.relative > largest[difference.metric].relative:
                largest[difference.metric] = difference
        return sorted(largest.values(), key=lambda d: -d.relative)[:count]


def compare(then: Iterable[Record], now: Iterable[Record]) -> Comparison:
    """Compare all but the clock's values. A record, or a metric, that only one side has is a difference."""
    before, after = by_step(then), by_step(now)
    differences: list[Difference] = []
    sizes: list[int] = []
    for key in sorted({*before, *after}):
        left, right = before.get(key, {}), after.get(key, {})
        names = sorted({*left, *right})
        sizes.append(len(set(names) - {"step"}))
        differences += [
            Difference(key[0], name, left.get(name), right.get(name))
            for name in names
            if not same(left.get(name), right.get(name))
        ]
    return Comparison(len(sizes), (min(sizes), max(sizes)), sum(sizes), tuple(differences))


def by_step(records: Iterable[Record]) -> dict[tuple[int, int], Record]:
    """The records by step and, should a step stand twice, by which of them it is."""
    seen: Counter[int] = Counter()
    result = {}
    for record in records:
        step = record["step"]
        result[step, seen[step]] = dict(compared(record))
        seen[step] += 1
    return result


def compared(record: Record) -> Iterator[tuple[str, Any]]:
    """The entries of a record that a replay must give again; a missing record shows by its step."""
    for name, value in record.items():
        if name != "time_s" and name.split("/")[0] not in UNCOMPARED_GROUPS:
            yield name, value


def same(left: Any, right: Any) -> bool:
    """Whether two values are the same bits: repr tells -0.0 from 0.0 and 1 from 1.0, and nan is nan."""
    return repr(left) == repr(right)
