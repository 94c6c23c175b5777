"""Logprobs of given response tokens under the trainer's model, without gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from drpo_bench.batching import micro_batches
from drpo_bench.models import Policy, response_logits
from drpo_bench.ops import token_entropy, token_logprobs
from drpo_bench.types import Rollout


@torch.no_grad()
def score(policy: Policy, rollouts: Sequence[Rollout], temperature: float, max_tokens: int) -> tuple[Tensor, Tensor]:
    """(logprobs, entropy), float32 [N] each on the CPU, of all response tokens in the order of the rollouts."""
    total = sum(len(rollout.response_ids) for rollout in rollouts)
    logprobs, entropy = torch.empty(total), torch.empty(total)
    for batch in micro_batches(rollouts, range(len(rollouts)), max_tokens, policy.device):
        logits = response_logits(policy.model, batch.input_ids, batch.gather)
        where = batch.flat.cpu()
        logprobs[where] = token_logprobs(logits, batch.targets, temperature).cpu()
        entropy[where] = token_entropy(logits, temperature).cpu()
    return logprobs, entropy
