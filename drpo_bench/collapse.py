"""The collapse detector: held-out accuracy below a share of its peak, several evaluations in a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class CollapseDetector:
    """Feed it every evaluation; `step` is where the accuracy first fell for good measure, or None.

    Once collapsed stays collapsed: a run that recovers later has still collapsed.
    """

    fraction: float
    patience: int
    peak: float = 0.0
    last: float | None = None
    below: int = 0
    step: int | None = None

    def observe(self, step: int, accuracy: float) -> None:
        """Take note of one evaluation."""
        self.peak, self.last = max(self.peak, accuracy), accuracy
        self.below = self.below + 1 if accuracy < self.fraction * self.peak else 0
        if self.below == self.patience and self.step is None:
            self.step = step

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"peak": self.peak, "last": self.last, "below": self.below, "step": self.step}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint kept."""
        self.peak, self.last, self.below, self.step = (state[key] for key in ("peak", "last", "below", "step"))
