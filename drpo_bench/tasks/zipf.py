"""Zipf-weighted word lists: where the long tail of rare tokens comes from."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate


class Zipf:
    """Words with probability proportional to 1/(rank + shift), in the order given.

    `shift` is Mandelbrot's: it flattens the head of the list and leaves its tail.
    """

    def __init__(self, words: Sequence[str], shift: int = 0) -> None:
        assert len(set(words)) == len(words), "a word stands twice in a Zipf list"
        weights = [1 / (rank + shift) for rank in range(1, len(words) + 1)]
        self.words = tuple(words)
        self.probabilities = tuple(weight / sum(weights) for weight in weights)
        self._cumulative = list(accumulate(self.probabilities))[:-1]  # the last word takes the rest

    def draw(self, rng: random.Random) -> str:
        """One word."""
        return self.words[bisect(self._cumulative, rng.random())]

    def tail_mass(self, threshold: float = 0.01) -> float:
        """Probability that a draw is a word whose own probability is at most the threshold."""
        return sum(p for p in self.probabilities if p <= threshold)
