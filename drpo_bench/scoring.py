"""What a model says of given response tokens, without gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from drpo_bench.batching import micro_batches
from drpo_bench.head import TokenScores, score_tokens
from drpo_bench.models import Policy, response_hidden
from drpo_bench.routing import padded_routes, routers, routing, unpadded_routes
from drpo_bench.types import Rollout


@torch.no_grad()
def score(
    policy: Policy,
    rollouts: Sequence[Rollout],
    temperature: float,
    max_tokens: int,
    topk_ids: Tensor | None = None,
    replay: Sequence[Tensor] | None = None,
    entropy: bool = False,
) -> TokenScores:
    """Logprobs [N] of all response tokens in the order of the rollouts, logprobs of `topk_ids` [N, K] and, if asked
    for, the entropy [N] of each token's distribution.

    float32, on the CPU. `replay` are routes of each rollout that a mixture takes; `routes` of the result are those
    that it would choose by itself.
    """
    total = sum(len(rollout.response_ids) for rollout in rollouts)
    logprobs, entropies = torch.empty(total), torch.empty(total) if entropy else None
    topk_logprobs = None if topk_ids is None else torch.empty(topk_ids.shape)
    routes: dict[int, Tensor] = {}
    for batch in micro_batches(rollouts, range(len(rollouts)), max_tokens, policy.device):
        with routing(routers(policy.model), padded_routes(replay, batch)) as recorder:
            hidden = response_hidden(policy.model, batch)
        if (chosen := recorder.take()) is not None:
            lengths = [len(rollouts[i].prompt_ids) + len(rollouts[i].response_ids) - 1 for i in batch.order]
            routes |= zip(batch.order, unpadded_routes(chosen, batch, lengths), strict=True)
        where = batch.flat.cpu()
        ids = None if topk_ids is None else topk_ids[where].to(policy.device)
        scores = score_tokens(policy.model, hidden, batch.targets, temperature, ids, entropy)
        logprobs[where] = scores.logprobs.cpu()
        if entropies is not None and scores.entropy is not None:
            entropies[where] = scores.entropy.cpu()
        if topk_logprobs is not None and scores.topk_logprobs is not None:
            topk_logprobs[where] = scores.topk_logprobs.cpu()
    ordered = [routes[index] for index in sorted(routes)] or None
    return TokenScores(logprobs, entropies, topk_logprobs, ordered)
