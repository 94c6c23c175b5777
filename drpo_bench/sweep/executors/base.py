"""What the runner asks of an executor. Run directories are the truth; an executor only starts and ends processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from drpo_bench.sweep.worker import Order


@dataclass(frozen=True)
class Ending:
    """How the process of a run ended: `reason` where something ended it, None where the run's own files tell."""

    reason: str | None = None
    signal: int | None = None  # that killed it


class Executor(Protocol):
    """Takes orders for runs, known by their run ids; a run has one order at a time."""

    capacity: int  # orders that it takes at a time

    def submit(self, orders: Sequence[Order]) -> None:
        """Start the runs, or queue them for a start elsewhere."""

    def ended(self, seconds: float) -> dict[str, Ending]:
        """The runs whose processes have ended since the last call; waits so long for one at most."""

    def stop(self) -> None:
        """End the processes of all runs, and take the queued ones back."""

    def close(self) -> None:
        """Leave nothing behind."""
