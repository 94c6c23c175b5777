"""How the cost of a step grows with batch, length, parameters and vocabulary, one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from drpo_bench.bench.machine import rollouts, updates
from drpo_bench.bench.shapes import Shape, random_model
from drpo_bench.bench.timing import take_turns
from drpo_bench.config import SIZES
from drpo_bench.models import Policy
from drpo_bench.precision_configs import PrecisionConfig
from drpo_bench.rollout.torch_engine import TorchEngine

BASE = Shape(problems=8, group_size=4)
FP32 = PrecisionConfig.model_validate("fp32")


@dataclass(frozen=True)
class Point:
    """Seconds of one rollout batch and of forward and backward over it, at one value of one axis."""

    axis: str
    value: int
    rollout: float
    trainer: float


@dataclass(frozen=True)
class Case:
    """What is measured at a point."""

    axis: str
    value: int
    shape: Shape = BASE
    size: str = "nano"
    vocabulary: int = 200


def cases(largest: int) -> list[Case]:
    """Powers of two to `largest` times the least of batch and length, every size, vocabularies to 32768."""
    factors = [2**i for i in range(int(math.log2(largest)) + 1)]
    found = [Case("rollouts", 16 * f, replace(BASE, problems=4 * f)) for f in factors]
    found += [Case("response tokens", 16 * f, replace(BASE, response=16 * f)) for f in factors]
    found += [Case("parameters", 0, replace(BASE, problems=4), size=size) for size in list(SIZES)[: len(factors)]]
    found += [Case("vocabulary", 128 * 4**i, vocabulary=128 * 4**i) for i in range(min(5, len(factors)))]
    return found


def measure(repeats: int, largest: int = 32) -> list[Point]:
    """Medians, axis by axis."""
    points, device = [], torch.device("cpu")
    for case in cases(largest):
        model = random_model(case.size, case.vocabulary)
        engine, policy = TorchEngine(model, FP32.rollout, device), Policy(model, FP32.trainer, device)
        rollout, trainer = take_turns([rollouts(engine, case.shape), updates(policy, engine, case.shape)], repeats)
        value = case.value or sum(parameter.numel() for parameter in model.parameters())
        points.append(Point(case.axis, value, rollout.median, trainer.median))
    return points


def slopes(points: Iterable[Point]) -> dict[str, tuple[float, float]]:
    """By axis, the slopes of log seconds against log value over the upper half of its points: rollout and trainer."""
    found = {}
    by_axis: dict[str, list[Point]] = {}
    for point in points:
        by_axis.setdefault(point.axis, []).append(point)
    for axis, line in by_axis.items():
        upper = sorted(line, key=lambda point: point.value)[len(line) // 2 - 1 :]
        first, last = upper[0], upper[-1]
        run = math.log(last.value / first.value)
        found[axis] = (math.log(last.rollout / first.rollout) / run, math.log(last.trainer / first.trainer) / run)
    return found
