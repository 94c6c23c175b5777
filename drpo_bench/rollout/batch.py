"""A graded rollout batch, and the queue that makes rollouts `lag` batches old."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from drpo_bench.types import Rollout


@dataclass
class RolloutBatch:
    """The rollouts of one batch, group by group, with their rewards [P, G].

    Flat logprobs are [N] over the response tokens of all rollouts in order. `metrics` are what was
    measured when the batch was sampled; `old_logprobs` the trainer's at the sampling weights, if asked for.
    """

    step: int  # the batch's number, from 0
    rollouts: list[Rollout]
    rewards: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    old_logprobs: Tensor | None = None
    old_routes: list[Tensor] | None = None  # the trainer's, when old_logprobs were computed

    def replayed(self, mode: str) -> list[Tensor] | None:
        """Routes of each rollout that `train.routing_replay` asks for. Raises ValueError where there are none."""
        if mode == "off":
            return None
        engine = [rollout.routes for rollout in self.rollouts if rollout.routes is not None]
        routes = self.old_routes if mode == "R2" else engine
        if routes is None or len(routes) != len(self.rollouts):
            side = "trainer's model" if mode == "R2" else "rollout engine"
            raise ValueError(f"train.routing_replay is {mode!r}, but the {side} tells no routes of experts")
        return routes

    @property
    def mu_logprobs(self) -> Tensor:
        """The engine's logprobs of all response tokens, [N]."""
        return torch.cat([rollout.mu_logprobs for rollout in self.rollouts])

    @cached_property
    def topk(self) -> tuple[Tensor, Tensor] | None:
        """(ids, mu's logprobs) [N, K + 1]: mu's likeliest tokens, then the sampled one, whose logprob is -inf where it
        is among them already; None if they were not asked for."""
        if self.rollouts[0].topk_ids is None:
            return None
        ids = torch.cat([rollout.topk_ids for rollout in self.rollouts if rollout.topk_ids is not None])
        mu = torch.cat([r.topk_mu_logprobs for r in self.rollouts if r.topk_mu_logprobs is not None])
        sampled = torch.tensor([token for rollout in self.rollouts for token in rollout.response_ids])
        among = (ids == sampled[:, None]).any(1)
        last = self.mu_logprobs.masked_fill(among, -torch.inf)
        return torch.cat([ids, sampled[:, None]], 1), torch.cat([mu, last[:, None]], 1)

    @property
    def lengths(self) -> list[int]:
        """Response tokens of each rollout."""
        return [len(rollout.response_ids) for rollout in self.rollouts]


class RolloutQueue:
    """Batches between sampling and training.

    Before the updates of batch t the rollouts of batch t + lag are sampled with the current weights, so
    batches 0..lag all come from version 0 and no batch beyond the last is ever sampled.
    """

    def __init__(self, generate: Callable[[int], RolloutBatch], lag: int, num_batches: int) -> None:
        self.generate, self.lag, self.num_batches = generate, lag, num_batches
        self.waiting: list[RolloutBatch] = []

    def next(self, step: int) -> RolloutBatch:
        """Sample what is due before the updates of batch `step`, and return that batch."""
        first = self.waiting[-1].step + 1 if self.waiting else step
        for number in range(first, min(step + self.lag, self.num_batches - 1) + 1):
            self.waiting.append(self.generate(number))
        batch = self.waiting.pop(0)
        assert batch.step == step, f"batch {batch.step} stood in the queue at step {step}"
        return batch
