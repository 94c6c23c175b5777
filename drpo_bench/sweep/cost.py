"""What a sweep will cost, for the plan: tokens, minutes and disk, as rough estimates."""

from __future__ import annotations

from dataclasses import dataclass

from drpo_bench.config import RunConfig

# Parameters that multiply a token, without embeddings; a checkpoint's are not known before it is loaded.
PARAMETERS = {"nano": 0.22e6, "micro": 1.1e6, "mini": 5.2e6, "small": 29.5e6}
FLOPS_PER_THREAD = 2.0e10  # what small fp32 models were seen to reach on one core of a server CPU
MEAN_LENGTH = 0.6  # of max_new_tokens; responses mostly stop earlier
BYTES_PER_PARAMETER = 12  # weights and two AdamW moments in fp32
VOCABULARY = 500  # rows of the embedding that a from-scratch model adds, for the disk estimate


@dataclass(frozen=True)
class Cost:
    """Of one run; `minutes` is None where the model's size is not known."""

    tokens: float
    minutes: float | None
    megabytes: float | None


def estimate(run: RunConfig) -> Cost:
    """Response tokens, minutes on its threads (training and rollouts, without the warm start), checkpoint disk."""
    rollouts = run.rollout.problems_per_batch * run.rollout.group_size
    length = MEAN_LENGTH * run.rollout.max_new_tokens
    tokens = run.train.steps * rollouts * length
    evaluations = run.train.steps // run.eval.every + 2
    evaluated = evaluations * run.eval.problems * (1 + run.eval.greedy) * length
    parameters = PARAMETERS.get(run.model.name)
    if parameters is None:
        return Cost(tokens, None, None)
    passes = 2 + 6 + 3 * 2 / run.metrics.every  # rollout, update, diagnostics: 2 FLOPs a parameter and pass
    flops = parameters * (tokens * passes + 2 * evaluated)
    disk = (run.checkpoint.keep + 1) * (parameters + 200 * VOCABULARY) * BYTES_PER_PARAMETER / 1e6
    return Cost(tokens, flops / (FLOPS_PER_THREAD * run.runtime.threads) / 60, disk)
