"""Logprobs, entropy and top-k logprobs of N tokens over a large vocabulary, without an [N, V] tensor.

Rows go through the head in chunks; with gradient, each chunk's logits are computed again in backward
(`torch.utils.checkpoint`), so that forward and backward hold one chunk at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from drpo_bench.models import float32_head
from drpo_bench.ops import scale_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Logits of a chunk, in elements. On a CPU 40 MB of float32: just above 32 MB, from where glibc's malloc gives memory
# back at once; smaller blocks stay in its heap and add up. A GPU needs more rows to be busy.
CHUNK_ELEMENTS = {"cpu": 10 * 2**20, "cuda": 2**27}


@dataclass(frozen=True)
class TokenScores:
    """What the head says of N tokens, in float32 or wider.

    `logprobs` [N] and `entropy` [N] (nats) carry gradient where the hidden states do; `topk_logprobs` [N, K] never.
    """

    logprobs: Tensor
    entropy: Tensor | None = None
    topk_logprobs: Tensor | None = None
    routes: list[Tensor] | None = None  # of each rollout [positions, layers, experts], where a mixture was scored


def score_tokens(
    model: PreTrainedModel,
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    topk_ids: Tensor | None = None,
    entropy: bool = False,
    chunk_elements: int | None = None,
) -> TokenScores:
    """Scores of `targets` [N] given the head's inputs `hidden` [N, H]: log softmax(logits / temperature).

    `topk_ids` [N, K] asks for the logprobs of further tokens; `entropy` for that of the whole distribution.
    """
    budget = chunk_elements or CHUNK_ELEMENTS[hidden.device.type]
    rows = max(1, budget // model.get_output_embeddings().weight.shape[0])
    head = float32_head(model, hidden.dtype)

    def of_chunk(inputs: Tensor, ids: Tensor, more_ids: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        log_probs = scale_logits(head(inputs), temperature).log_softmax(-1)  # [rows, V]
        chosen = log_probs.gather(-1, ids[:, None]).squeeze(-1)
        spread = -(log_probs.exp() * log_probs).sum(-1) if entropy else None
        further = None if more_ids is None else log_probs.detach().gather(-1, more_ids)
        return chosen, spread, further

    if len(hidden) <= rows:
        return TokenScores(*of_chunk(hidden, targets, topk_ids))
    chunks = zip(
        hidden.split(rows),
        targets.split(rows),
        repeat(None) if topk_ids is None else topk_ids.split(rows),
        strict=False,
    )
    parts = [checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    logprobs, spread, further = zip(*parts, strict=True)
    return TokenScores(
        torch.cat(logprobs),
        torch.cat(spread) if entropy else None,
        None if topk_ids is None else torch.cat(further),
    )
