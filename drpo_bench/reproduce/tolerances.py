"""How far a replay may be from its run where the arithmetic is another one; what is judged, and why so.

Other arithmetic (another CPU, GPU or library) rounds otherwise. At the same weights that moves a logprob by what
`rollout.alarm.TOLERANCE` allows its number format, so that a token is another one with about that probability, and
with it the rest of the answer. Training then amplifies: the updates learn from other answers, and after some steps the
two runs are two draws of the same noise. So only means over answers are judged, never what single tokens decide
(extreme ratios, gradient norms, divergences), and they are judged in two ways.

At the same weights (record 0, and what records 1 to lag + 1 say of their rollouts, all sampled from the initial
policy): an answer of at most L tokens is another one with probability s = min(1, L x the format's rounding). The mean
of n answers, each between low and high, has then a difference of variance 2 s v / n, where v = (mean - low)(high -
mean) is the largest variance that values with this mean can have. Allowed: four standard errors and one answer.

Later: s = 1, as if all answers were drawn anew, and besides DRIFT of the range for policies that have drifted apart.
DRIFT cannot be derived; it is twice what was measured. Replays of the quickstart's ten runs with AVX2 kernels instead
of AVX512 began with at most one other verdict among 512 answers, and later differed by up to 0.20 in the accuracy of
one evaluation (0.08 beyond four standard errors) and 0.35 in the reward of one batch (0.09 beyond). So wide a tolerance
tells a run that learned from one that did not, and no more.

Where a run collapsed, the fall is the most chaotic part of all: that it collapsed is judged, its path is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from drpo_bench.config import RunConfig
from drpo_bench.reproduce.compare import Record
from drpo_bench.rollout.alarm import TOLERANCE

STANDARD_ERRORS = 4.0  # a hundred comparisons exceed it by chance in one replay of a hundred and fifty
DRIFT = 0.2  # of the range


@dataclass(frozen=True)
class Mean:
    """A metric that is a mean over answers: how many, between which values, and since when the weights can differ."""

    answers: int
    low: float
    high: float
    rounding: float  # of a logprob in the format that sampled
    initial: int  # the last record at the initial weights


@dataclass(frozen=True)
class Judgement:
    """One metric over all records: where it came closest to what is allowed, or went furthest beyond."""

    metric: str
    step: int
    then: float | None
    now: float | None
    allowed: float
    records: int = 1
    outside: int = 0

    @property
    def difference(self) -> float:
        """Infinite where one side has no value."""
        return math.inf if self.then is None or self.now is None else abs(self.then - self.now)

    @property
    def share(self) -> float:
        """Of what is allowed; above 1 is outside."""
        return self.difference / self.allowed if self.allowed else math.inf


def judged(config: RunConfig) -> dict[str, Mean]:
    """The table: every metric that is judged."""
    rollout, longest = config.rollout, config.rollout.max_new_tokens
    formats, evaluation = config.precision, f"eval/{config.task.name}"
    trainer, engine = TOLERANCE[formats.trainer], TOLERANCE["fp8" if formats.rollout.has_fp8 else formats.rollout.dtype]
    sampled, first = rollout.problems_per_batch * rollout.group_size, rollout.lag + 1
    return {
        f"{evaluation}/accuracy": Mean(config.eval.problems, 0, 1, trainer, 0),
        f"{evaluation}/greedy_accuracy": Mean(config.eval.problems, 0, 1, trainer, 0),
        f"{evaluation}/truncated_frac": Mean(config.eval.problems, 0, 1, trainer, 0),
        f"{evaluation}/length_mean": Mean(config.eval.problems, 0, longest, trainer, 0),
        "reward/mean": Mean(sampled, -config.task.overlong_penalty, 1, engine, first),
        "response/truncated_frac": Mean(sampled, 0, 1, engine, first),
        "response/length_mean": Mean(sampled, 0, longest, engine, first),
    }


def allowed(mean: Mean, then: float, now: float, at_same_weights: bool, longest: int) -> float:
    """The largest difference of the two that other arithmetic explains."""
    middle, width = (then + now) / 2, mean.high - mean.low
    variance = max(0.0, (middle - mean.low) * (mean.high - middle))
    changed = min(1.0, longest * mean.rounding) if at_same_weights else 1.0
    error = math.sqrt(2 * changed * variance / mean.answers)
    return STANDARD_ERRORS * error + width / mean.answers + (0.0 if at_same_weights else DRIFT * width)


def judge(
    config: RunConfig, then: Sequence[Record], now: Sequence[Record], same_start: bool, collapsed: bool
) -> list[Judgement]:
    """Every judged metric. `same_start`: the two began with the same weights; `collapsed`: one of them fell."""
    before, after = ({record["step"]: record for record in records} for records in (then, now))
    judgements = []
    for metric, mean in judged(config).items():
        entries = []
        for step in sorted({*before, *after}):
            left, right = before.get(step, {}).get(metric), after.get(step, {}).get(metric)
            at_same_weights = same_start and step <= mean.initial
            if (left is None and right is None) or (collapsed and not at_same_weights):
                continue
            limit = 0.0
            if left is not None and right is not None:
                limit = allowed(mean, left, right, at_same_weights, config.rollout.max_new_tokens)
            entries.append(Judgement(metric, step, left, right, limit))
        if entries:
            worst = max(entries, key=lambda entry: entry.share)
            outside = sum(entry.share > 1 for entry in entries)
            judgements.append(replace(worst, records=len(entries), outside=outside))
    return judgements
