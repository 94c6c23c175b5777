"""Is it the wiring or the policy? Probes of a run's rollout engine: determinism, and agreement with the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from drpo_bench.config import RunConfig
from drpo_bench.models import Policy
from drpo_bench.optim import Collapse
from drpo_bench.rollout.alarm import CAUSES, MismatchAlarm, find_mismatch
from drpo_bench.rollout.engine import Response, RolloutEngine, Sampling, sample_seeds
from drpo_bench.scoring import score
from drpo_bench.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Prompts = Sequence[Sequence[int]]


class MismatchGrew(Collapse):
    """Engine and trainer drifted apart although the wiring is sound: training led the policy there, a result."""

    reason = "mismatch"


def is_deterministic(
    engine: RolloutEngine, model: PreTrainedModel, prompts: Prompts, seed: int, sampling: Sampling
) -> bool:
    """Whether one small batch, sampled twice from the same weights, is the same bit for bit."""
    seeds = sample_seeds(seed, "probe", 0, len(prompts), 2)
    samples: list[list[Response]] = []
    for _ in range(2):
        engine.load_weights(model)
        samples.append([r for row in engine.generate(prompts, 2, seeds, sampling) for r in row])
    return all(
        a.token_ids == b.token_ids and torch.equal(a.logprobs, b.logprobs) for a, b in zip(*samples, strict=True)
    )


def explain_mismatch(
    problem: str, config: RunConfig, engine: RolloutEngine, initial: PreTrainedModel, prompts: Prompts, step: int
) -> None:
    """Raise MismatchAlarm (the run fails) or MismatchGrew (it has collapsed, which is a result).

    `initial` are the weights that the run started from. At step 0 nothing else can be wrong but the wiring. Later,
    engine and trainer are compared at the initial weights once more: if they agree there, the policy went to where
    the formats cannot follow it.
    """
    saw = f"step {step}: {problem} for precision {config.precision.name}"
    if step > 0:
        engine.load_weights(initial)
        sampling = Sampling(config.rollout.temperature, config.rollout.max_new_tokens, stop_ids=())
        seeds = sample_seeds(config.seed, "wiring", step, len(prompts), 1)
        responses = [row[0] for row in engine.generate(prompts, 1, seeds, sampling)]
        rollouts = [
            Rollout(i, tuple(prompt), r.token_ids, r.logprobs, r.truncated, 0, routes=r.routes)
            for i, (prompt, r) in enumerate(zip(prompts, responses, strict=True))
        ]
        policy = Policy(initial, config.precision.trainer, torch.device(config.runtime.device))
        old = score(policy, rollouts, config.rollout.temperature, config.train.microbatch_tokens).logprobs
        mu = torch.cat([rollout.mu_logprobs for rollout in rollouts])
        if find_mismatch(old, mu, config.precision) is None:
            raise MismatchGrew(f"{saw}; at the initial weights engine and trainer agree")
    raise MismatchAlarm(f"{saw}; usual causes: {CAUSES}")
