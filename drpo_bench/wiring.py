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
from drpo_bench.rollout.handover import check_handover
from drpo_bench.scoring import score
from drpo_bench.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Prompts = Sequence[Sequence[int]]


class MismatchGrew(Collapse):
    """Engine and trainer drifted apart although the wiring is sound: training led the policy there, a result."""

    reason = "mismatch"


def is_deterministic(
    engine: RolloutEngine, model: PreTrainedModel, prompts: Prompts, group_size: int, seed: int, sampling: Sampling
) -> bool:
    """Whether one batch, sampled twice from the same weights, is the same bit for bit."""
    seeds = sample_seeds(seed, "probe", 0, len(prompts), group_size)
    samples: list[list[Response]] = []
    for _ in range(2):
        engine.load_weights(model)
        samples.append([r for row in engine.generate(prompts, group_size, seeds, sampling) for r in row])
    return all(
        a.token_ids == b.token_ids and torch.equal(a.logprobs, b.logprobs) for a, b in zip(*samples, strict=True)
    )


def explain_mismatch(
    problem: str,
    config: RunConfig,
    engine: RolloutEngine,
    initial: PreTrainedModel,
    prompts: Prompts,
    stop_ids: tuple[int, ...],
    step: int,
) -> str:
    """Raise MismatchAlarm or HandoverFailed, and the run fails; or the wiring is sound: return what the alarm saw.

    `initial` are the weights that the run started from. At step 0 nothing else can be wrong but the wiring. Later the
    engine has to follow changed initial weights, and to agree with the trainer at the initial ones, under the run's own
    sampling and replay: then it was training that led the policy to where the formats cannot follow it.
    """
    saw = f"step {step}: {problem} for precision {config.precision.name}"
    if step == 0:
        raise MismatchAlarm(f"{saw}; usual causes: {CAUSES}")
    rollout, temperature = config.rollout, config.rollout.temperature
    check_handover(engine, initial, by_kind=False, longest=(len(prompts[0]), rollout.max_new_tokens))
    seeds = sample_seeds(config.seed, "wiring", step, len(prompts), 1)
    groups = engine.generate(prompts, 1, seeds, Sampling(temperature, rollout.max_new_tokens, stop_ids))
    rollouts = [
        Rollout(i, tuple(prompt), r.token_ids, r.logprobs, r.truncated, 0, routes=r.routes)
        for i, (prompt, (r,)) in enumerate(zip(prompts, groups, strict=True))
    ]
    replay = [r.routes for r in rollouts if r.routes is not None] if config.train.routing_replay == "R3" else None
    policy = Policy(initial, config.precision.trainer, torch.device(config.runtime.device))
    old = score(policy, rollouts, temperature, config.train.microbatch_tokens, replay=replay).logprobs
    mu = torch.cat([rollout.mu_logprobs for rollout in rollouts])
    if at_start := find_mismatch(old, mu, config.precision):
        raise MismatchAlarm(f"{saw}; at the initial weights too: {at_start}; usual causes: {CAUSES}")
    return f"{saw}; at the initial weights engine and trainer agree"
