"""Surrogates on the probability ratio: unregularised, and clipped.

x = log pi, m = log mu (or another anchor), r = exp(x - m); g = d(-L)/dx is the gradient that ascends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drpo_bench.types import Tokens


def pg_is_loss(tokens: Tokens) -> Tensor:
    """PG-IS, the unregularised importance-weighted surrogate (DPPO, arXiv 2602.04879, appendix C).

        L = -A r,    g = A r

    Nothing bounds the ratio: its weight is 1 everywhere.
    """
    return -tokens.advantages * tokens.ratio()


def grpo_loss(tokens: Tokens, *, clip_low: float, clip_high: float) -> Tensor:
    """GRPO / PPO's clipped surrogate (arXiv 1707.06347 eq. 7), with clip-higher (DAPO, arXiv 2503.14476 eq. 10).

        L = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))
        g = A r, but 0 where A > 0 and r > 1 + clip_high, or A < 0 and r < 1 - clip_low

    Advantages and aggregation are axes of their own (`train.advantage`, `train.aggregation`).
    """
    ratio = tokens.ratio()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.maximum(-tokens.advantages * ratio, -tokens.advantages * clipped)
