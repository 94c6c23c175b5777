"""What travels between engine, trainer and losses: rollouts, and the response tokens of a minibatch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from drpo_bench.ops import probability_shift

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
    topk_ids: Tensor | None = None  # [n, K] int64, mu's likeliest tokens at each position, if asked for
    topk_mu_logprobs: Tensor | None = None  # [n, K] float32, theirs
    routes: Tensor | None = None  # [prompt + n - 1, layers, experts] int16, the experts that the engine chose


@dataclass(frozen=True)
class Tokens:
    """The response tokens of a micro-batch, flattened: no prompt, no padding, everything `[N]`.

    Rollouts are whole and stand one after the other. Logprobs are float32 or wider. `logprobs` (pi) carries
    the gradient, everything else is constant.
    """

    logprobs: Tensor
    mu_logprobs: Tensor
    advantages: Tensor
    rollout_index: Tensor  # which rollout each token belongs to, int64
    weights: Tensor  # the aggregation's weight of each token, fixed for the optimizer step
    old_logprobs: Tensor | None = None  # trainer, sampling weights
    prox_logprobs: Tensor | None = None  # trainer, start of the batch's updates
    ref_logprobs: Tensor | None = None  # a frozen reference model
    topk_mu_logprobs: Tensor | None = None  # [N, K+1], the last column is the sampled token, -inf if among the K
    topk_logprobs: Tensor | None = None  # [N, K+1] of the same ids, no gradient
    selected: Tensor | None = None  # bool, what a loss of minibatch scope chose from the whole minibatch
    anchor: Anchor = "mu"

    def logprobs_of(self, policy: Anchor) -> Tensor:
        """Constant logprobs of the sampled tokens under mu, old or prox. Raises ValueError if they are missing."""
        logprobs = {"mu": self.mu_logprobs, "old": self.old_logprobs, "prox": self.prox_logprobs}[policy]
        if logprobs is None:
            raise ValueError(f"{policy}_logprobs are needed as anchor (train.anchor or loss.mask_anchor), None given")
        return logprobs

    @property
    def anchor_logprobs(self) -> Tensor:
        """Logprobs of the ratio's denominator: the behaviour policy mu unless `anchor` says otherwise."""
        return self.logprobs_of(self.anchor)

    def log_ratio(self, policy: Anchor | None = None) -> Tensor:
        """log(pi / anchor), or over another policy, clamped to +-20."""
        denominator = self.logprobs_of(policy or self.anchor)
        return (self.logprobs - denominator).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)

    def ratio(self, policy: Anchor | None = None) -> Tensor:
        """pi / anchor, or over another policy; differentiable in `logprobs`."""
        return self.log_ratio(policy).exp()

    def shift(self, policy: Anchor | None = None) -> Tensor:
        """pi - anchor of the sampled token's probability, without gradient: the binary total variation, signed."""
        return probability_shift(self.logprobs.detach(), self.logprobs_of(policy or self.anchor))

    def lengths(self) -> list[int]:
        """Response tokens of each rollout, in order."""
        counts: list[int] = self.rollout_index.unique_consecutive(return_counts=True)[1].tolist()
        return counts

    def by_rollout(self, values: Tensor) -> Tensor:
        """Token values `[N]` as rows of rollouts, padded with 0: `[B, T]`."""
        return pad_sequence(list(values.split(self.lengths())), batch_first=True)

    def sequence_sum(self, values: Tensor) -> Tensor:
        """The sum of each rollout's values, repeated on each of its tokens: [N] -> [N].

        Padded rows and not a scatter: its order of additions, and so its last bit, would depend on the run.
        """
        rows = self.by_rollout(values)
        present = self.by_rollout(torch.ones_like(self.rollout_index)) > 0
        return rows.sum(1, keepdim=True).expand_as(rows)[present]

    def sequence_mean(self, values: Tensor) -> Tensor:
        """The mean of each rollout's values, repeated on each of its tokens: [N] -> [N]."""
        return self.sequence_sum(values) / self.sequence_sum(torch.ones_like(values))
