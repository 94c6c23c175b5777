"""What a model says of given response tokens, without gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from drpo_bench.batching import micro_batches
from drpo_bench.head import score_tokens
from drpo_bench.models import Policy, response_hidden
from drpo_bench.types import Rollout


@torch.no_grad()
def score(policy: Policy, rollouts: Sequence[Rollout], temperature: float, max_tokens: int) -> tuple[Tensor, Tensor]:
    """(logprobs, entropy), float32 [N] each on the CPU, of all response tokens in the order of the rollouts."""
    total = sum(len(rollout.response_ids) for rollout in rollouts)
    logprobs, entropy = torch.empty(total), torch.empty(total)
    for batch in micro_batches(rollouts, range(len(rollouts)), max_tokens, policy.device):
        hidden = response_hidden(policy.model, batch.input_ids, batch.gather)
        scores = score_tokens(policy.model, hidden, batch.targets, temperature, entropy=True)
        assert scores.entropy is not None
        where = batch.flat.cpu()
        logprobs[where] = scores.logprobs.cpu()
        entropy[where] = scores.entropy.cpu()
    return logprobs, entropy
