"""What a sweep will cost, for the plan: tokens, minutes and disk, as rough estimates."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from drpo_bench.config import RunConfig

# Parameters that multiply a token, without embeddings.
PARAMETERS = {"nano": 0.22e6, "micro": 1.1e6, "mini": 5.2e6, "small": 29.5e6}
FLOPS_PER_THREAD = 2.0e10  # what small fp32 models were seen to reach on one core of a server CPU
MEAN_LENGTH = 0.6  # of max_new_tokens; responses mostly stop earlier
BYTES_PER_PARAMETER = 12  # weights and two AdamW moments in fp32
EMBEDDING = 0.2e6  # parameters that a from-scratch model's vocabulary adds, for the disk
BYTES_PER_TOKEN = 30  # of a queued rollout: its id as text, logprobs of engine and trainer
BYTES_PER_STEP = 4000  # of metrics.jsonl
BYTES_PER_EVALUATION = 100_000  # of samples.jsonl, at most


@dataclass(frozen=True)
class Cost:
    """Of one run; minutes and megabytes are None where the model's size is not known: a hub id not yet loaded."""

    tokens: float
    minutes: float | None
    megabytes: float | None


def estimate(run: RunConfig) -> Cost:
    """Response tokens, minutes on its threads (training and rollouts, without the warm start), disk at most."""
    rollouts = run.rollout.problems_per_batch * run.rollout.group_size
    length = MEAN_LENGTH * run.rollout.max_new_tokens
    tokens = run.train.steps * rollouts * length
    evaluations = run.train.steps // run.eval.every + 2
    evaluated = evaluations * run.eval.problems * (1 + run.eval.greedy) * length
    parameters = parameters_of(run.model.name)
    if parameters is None:
        return Cost(tokens, None, None)
    passes = 2 + 6 + 3 * 2 / run.metrics.every  # rollout, update, diagnostics: 2 FLOPs a parameter and pass
    flops = parameters * (tokens * passes + 2 * evaluated)
    queued = (run.rollout.lag + 1) * rollouts * 2 * run.rollout.max_new_tokens * BYTES_PER_TOKEN
    checkpoint = (parameters + EMBEDDING * run.model.from_scratch) * BYTES_PER_PARAMETER + queued
    records = run.train.steps * BYTES_PER_STEP + evaluations * BYTES_PER_EVALUATION
    disk = ((run.checkpoint.keep + 1) * checkpoint + records) / 1e6  # one more while it is being written
    return Cost(tokens, flops / (FLOPS_PER_THREAD * run.runtime.threads) / 60, disk)


def parameters_of(model: str) -> float | None:
    """Of a size, those that multiply a token; of a checkpoint directory, all that its safetensors headers list."""
    if model in PARAMETERS:
        return PARAMETERS[model]
    files = list(Path(model).glob("*.safetensors"))
    return float(sum(map(parameters_in, files))) if files else None


def parameters_in(path: Path) -> int:
    """Numbers in one safetensors file, read from its header alone."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
