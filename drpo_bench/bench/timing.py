"""Two contestants that take turns, so that whatever slows the machine slows both; what is claimed is their ratio."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Work = Callable[[], int]  # does a piece of work; how many response tokens it was


@dataclass(frozen=True)
class Measured:
    """Repeats of one contestant's work."""

    seconds: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def rates(self) -> list[float]:
        """Tokens a second of each repeat: lengths are not the same where stop tokens are sampled."""
        return [tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds, strict=True)]

    def data(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "seconds": self.median,
            "tokens_per_s": statistics.median(self.rates),
            "spread": spread(self.seconds),
            "repeats": len(self.seconds),
        }


@dataclass(frozen=True)
class Comparison:
    """What was measured of both, or why the peer was not."""

    what: str
    ours: Measured | None
    peer_name: str
    peer: Measured | None = None
    not_measured: str | None = None
    by_rate: bool = True  # tokens a second; else seconds a piece of work

    @property
    def ratios(self) -> list[float]:
        """How many times as fast as the peer we were, turn by turn."""
        if self.ours is None or self.peer is None:
            return []
        if self.by_rate:
            return [ours / peer for ours, peer in zip(self.ours.rates, self.peer.rates, strict=True)]
        return [peer / ours for ours, peer in zip(self.ours.seconds, self.peer.seconds, strict=True)]

    @property
    def is_doubtful(self) -> bool:
        """Whether some turn says the opposite of the median."""
        ratios = self.ratios
        return bool(ratios) and min(ratios) <= 1.0 <= max(ratios)

    def data(self) -> dict[str, Any]:
        """As JSON; `ratio` above 1 says that we were faster."""
        row: dict[str, Any] = {"what": self.what, "peer": self.peer_name, "by_rate": self.by_rate}
        if self.not_measured is not None:
            return row | {"not_measured": self.not_measured}
        assert self.ours is not None and self.peer is not None
        ratios = self.ratios
        return row | {
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "doubtful": self.is_doubtful,
            "ours": self.ours.data(),
            "theirs": self.peer.data(),
        }


def spread(seconds: Sequence[float]) -> float:
    """(slowest - fastest) / median: above a few percent the machine is busy with something else."""
    return (max(seconds) - min(seconds)) / statistics.median(seconds)


def timed(work: Work) -> tuple[float, int]:
    """Seconds and tokens of one piece of work."""
    begin = time.perf_counter()
    tokens = work()
    return time.perf_counter() - begin, tokens


@contextmanager
def loaded_is_kept() -> Iterator[None]:
    """As in a run's process, what is loaded is not searched for garbage, for a quarter of a second each time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def take_turns(works: Sequence[Work], repeats: int) -> list[Measured]:
    """Every contestant `repeats` times, one after the other, after one round that is not counted."""
    for work in works:
        work()
    with loaded_is_kept():
        rounds = [[timed(work) for work in works] for _ in range(repeats)]
    return [Measured(*zip(*column, strict=True)) for column in zip(*rounds, strict=True)]
