"""Rollout and trainer alone: tokens a second, the trainer's share of the matmul rate, what the formats cost."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import torch

from drpo_bench.batching import micro_batches
from drpo_bench.bench.shapes import Shape, random_model, tokens_of
from drpo_bench.bench.timing import Measured, Work, take_turns
from drpo_bench.head import score_tokens
from drpo_bench.models import Policy, response_hidden
from drpo_bench.precision_configs import PRESETS, PrecisionConfig
from drpo_bench.rollout.torch_engine import TorchEngine
from drpo_bench.types import Rollout

MATMUL = (2048, 1024, 1024)  # m, k, n of the reference product
MICROBATCH_TOKENS = 16384


@dataclass(frozen=True)
class Alone:
    """What one size and precision reach on this machine."""

    parameters: int
    emulated: bool
    rollout: Measured
    trainer: Measured
    matmul: float  # fp32 FLOP/s of the reference product
    flops: float  # of the trainer: 6 x parameters x positions a second


def measure_alone(size: str, precision: PrecisionConfig, shape: Shape, repeats: int) -> Alone:
    """Rollouts of equal length, and forward and backward over all of them, without an optimizer step."""
    device = torch.device("cpu")
    model = random_model(size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    engine, policy = TorchEngine(model, precision.rollout, device), Policy(model, precision.trainer, device)
    left, right = torch.randn(MATMUL[0], MATMUL[1]), torch.randn(MATMUL[1], MATMUL[2])

    def multiply() -> int:
        torch.mm(left, right)
        return 1

    product, rollout, trainer = take_turns([multiply, rollouts(engine, shape), updates(policy, engine, shape)], repeats)
    positions = shape.rows * (shape.prompt + shape.response - 1)
    peak = 2 * MATMUL[0] * MATMUL[1] * MATMUL[2] / product.median
    emulated = policy.emulated or engine.emulated
    return Alone(parameters, emulated, rollout, trainer, peak, 6 * parameters * positions / trainer.median)


def rollouts(engine: TorchEngine, shape: Shape, ragged: bool = False) -> Work:
    """One rollout batch."""
    prompts, seeds, sampling = shape.prompts(), shape.seeds(), shape.sampling(ragged)
    return lambda: tokens_of(engine.generate(prompts, shape.group_size, seeds, sampling))


def updates(policy: Policy, engine: TorchEngine, shape: Shape) -> Work:
    """Forward and backward over one rollout batch."""
    prompts = shape.prompts()
    groups = engine.generate(prompts, shape.group_size, shape.seeds(), shape.sampling(ragged=False))
    sampled = [
        Rollout(i, tuple(prompts[i]), response.token_ids, response.logprobs, True, 0)
        for i, group in enumerate(groups)
        for response in group
    ]

    def update() -> int:
        for batch in micro_batches(sampled, range(len(sampled)), MICROBATCH_TOKENS, policy.device):
            hidden = response_hidden(policy.model, batch)
            score_tokens(policy.model, hidden, batch.targets, 1.0).logprobs.mean().backward()
            policy.gather_gradients()
        return shape.rows * shape.response

    return update


def format_costs(size: str, shape: Shape, repeats: int) -> dict[str, dict[str, Any]]:
    """Seconds of a rollout batch in every preset's rollout format over those of bf16."""
    device, model = torch.device("cpu"), random_model(size)
    formats = {name: PrecisionConfig.model_validate(name).rollout for name in PRESETS if name != "fp8_e2e"}
    engines = {name: TorchEngine(model, rollout, device) for name, rollout in formats.items()}
    measured = dict(zip(engines, take_turns([rollouts(e, shape) for e in engines.values()], repeats), strict=True))
    reference = measured["bf16"].seconds
    return {
        name: {
            "of_bf16": statistics.median(a / b for a, b in zip(found.seconds, reference, strict=True)),
            "emulated": engines[name].emulated,
        }
        | found.data()
        for name, found in measured.items()
    }
