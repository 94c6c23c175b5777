"""Speed of rollout and trainer on this machine, against the matmul rate measured in the same process."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import typer

from drpo_bench.batching import micro_batches
from drpo_bench.config import SIZES, ModelConfig
from drpo_bench.environment import cpu_name
from drpo_bench.errors import UserError, did_you_mean
from drpo_bench.head import score_tokens
from drpo_bench.models import Policy, build_model, response_hidden
from drpo_bench.precision_configs import ALIASES, PRESETS, PrecisionConfig
from drpo_bench.rollout.engine import Sampling, sample_seeds
from drpo_bench.rollout.torch_engine import TorchEngine
from drpo_bench.types import Rollout

PROBLEMS, GROUP_SIZE, PROMPT, RESPONSE, VOCABULARY = 32, 8, 12, 32, 200
MATMUL = (2048, 1024, 1024)  # m, k, n of the reference product


def measure(size: str, threads: int, preset: str, repeats: int) -> None:
    """Print one JSON object: tokens/s of rollout and trainer, and the trainer's share of the fp32 matmul rate."""
    if size not in SIZES:
        raise UserError(f"--size {size}: unknown{did_you_mean(size, SIZES)}; known: {', '.join(SIZES)}")
    if ALIASES.get(preset, preset) not in PRESETS:
        raise UserError(f"--precision {preset}: unknown{did_you_mean(preset, PRESETS)}; known: {', '.join(PRESETS)}")
    torch.set_num_threads(threads)
    typer.echo(json.dumps(report(size, threads, PrecisionConfig.model_validate(preset), repeats), indent=1))


def report(size: str, threads: int, precision: PrecisionConfig, repeats: int) -> dict[str, Any]:
    """The measurements: equal lengths (no stop token), a model with random weights."""
    device = torch.device("cpu")
    model = build_model(ModelConfig(name=size), VOCABULARY, seed=0)
    parameters = sum(p.numel() for p in model.parameters())
    engine = TorchEngine(model, precision.rollout, device)
    policy = Policy(model, precision.trainer, device)
    prompts = [list(range(4 + i, 4 + i + PROMPT)) for i in range(PROBLEMS)]
    seeds = sample_seeds(0, "bench", 0, PROBLEMS, GROUP_SIZE)
    sampling = Sampling(1.0, RESPONSE, stop_ids=())
    groups = engine.generate(prompts, GROUP_SIZE, seeds, sampling)
    rollouts = [
        Rollout(i, tuple(prompts[i]), response.token_ids, response.logprobs, True, 0)
        for i, group in enumerate(groups)
        for response in group
    ]

    def update() -> None:
        for batch in micro_batches(rollouts, range(len(rollouts)), 16384, device):
            hidden = response_hidden(policy.model, batch.input_ids, batch.gather)
            score_tokens(policy.model, hidden, batch.targets, 1.0).logprobs.mean().backward()
            policy.gather_gradients()

    left, right = torch.randn(MATMUL[0], MATMUL[1]), torch.randn(MATMUL[1], MATMUL[2])
    matmul = timed(lambda: torch.mm(left, right), repeats)
    rollout = timed(lambda: engine.generate(prompts, GROUP_SIZE, seeds, sampling), repeats)
    trainer = timed(update, repeats)
    responses = PROBLEMS * GROUP_SIZE * RESPONSE
    positions = PROBLEMS * GROUP_SIZE * (PROMPT + RESPONSE - 1)
    peak = 2 * MATMUL[0] * MATMUL[1] * MATMUL[2] / statistics.median(matmul)
    flops = 6 * parameters * positions / statistics.median(trainer)
    return {
        "size": size,
        "parameters": parameters,
        "precision": precision.name,
        "emulated": policy.emulated or engine.emulated,
        "threads": threads,
        "cpu": cpu_name(),
        "shape": f"{PROBLEMS} x {GROUP_SIZE} rollouts, {PROMPT} + {RESPONSE} tokens",
        "rollout_tokens_per_s": responses / statistics.median(rollout),
        "trainer_tokens_per_s": responses / statistics.median(trainer),
        "trainer_flops_per_s": flops,
        "matmul_fp32_flops_per_s": peak,
        "trainer_share_of_matmul": flops / peak,
        "spread": {"matmul": spread(matmul), "rollout": spread(rollout), "trainer": spread(trainer)},
    }


def timed(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each repeat, after one that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return seconds


def spread(seconds: list[float]) -> float:
    """(slowest - fastest) / median: above a few percent the machine is busy with something else."""
    return (max(seconds) - min(seconds)) / statistics.median(seconds)
