"""What travels between engine, trainer and losses: rollouts, and the response tokens of a minibatch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Anchor = Literal["mu", "old", "prox"]
LOG_RATIO_LIMIT = 20.0  # log-ratios are clamped here before exp, as in the published code


@dataclass(frozen=True)
class Rollout:
    """One sampled response, as token ids end to end.

    `response_ids` includes the sampled stop token; a truncated response has none.
    `mu_logprobs` [n] float32 are the engine's logprobs of the sampled ids at the sampling temperature.
    """

    group: int  # index of its problem within the batch
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    mu_logprobs: Tensor
    truncated: bool
    policy_version: int  # number of batches the sampling weights had been trained on


@dataclass(frozen=True)
class Tokens:
    """The response tokens of a minibatch, flattened: no prompt, no padding, everything `[N]`.

    Logprobs are float32 or wider. `logprobs` (pi) carries the gradient, everything else is constant.
    """

    logprobs: Tensor
    mu_logprobs: Tensor
    advantages: Tensor
    rollout_index: Tensor  # which rollout each token belongs to, int64
    weights: Tensor  # the aggregation's weight of each token, fixed for the optimizer step
    old_logprobs: Tensor | None = None  # trainer, sampling weights
    prox_logprobs: Tensor | None = None  # trainer, start of the batch's updates
    ref_logprobs: Tensor | None = None  # a frozen reference model
    topk_mu_logprobs: Tensor | None = None  # [N, K+1], the last column is the sampled token
    topk_logprobs: Tensor | None = None  # [N, K+1], no gradient
    anchor: Anchor = "mu"

    @property
    def anchor_logprobs(self) -> Tensor:
        """Logprobs of the ratio's denominator: the behaviour policy mu unless `anchor` says otherwise."""
        logprobs = {"mu": self.mu_logprobs, "old": self.old_logprobs, "prox": self.prox_logprobs}[self.anchor]
        if logprobs is None:
            raise ValueError(f"train.anchor = {self.anchor!r} needs {self.anchor}_logprobs, which were not computed")
        return logprobs

    def log_ratio(self) -> Tensor:
        """log(pi / anchor), clamped to +-20."""
        return (self.logprobs - self.anchor_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)

    def ratio(self) -> Tensor:
        """pi / anchor; differentiable in `logprobs`."""
        return self.log_ratio().exp()
