"""Losses whose ratio, mask or budget belongs to a whole response.

x = log pi, m = log mu (or another anchor), l = x - m, r = exp l, |y| = response tokens, A = advantage, the same for
all tokens of a response. The value of a response stands on each of its tokens: 1/|y| comes from the weights alone.
g_t = d(-L)/dx_t, where L is the sum over the response's tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drpo_bench.losses.masks import clipped_surrogate, masked_surrogate
from drpo_bench.types import Tokens


def gspo_loss(tokens: Tokens, *, clip_low: float, clip_high: float) -> Tensor:
    """GSPO: the clipped surrogate on the geometric mean of a response's ratios.

    Objective: L = max(-A S, -A clip(S, 1 - clip_low, 1 + clip_high)), S = exp(mean l)
    Gradient: g = A S, S = exp(mean of log r over the response), but 0 where A > 0 and S > 1 + clip_high, or A < 0 and
        S < 1 - clip_low
    Boundary: the gradient of the whole response drops to 0.
    Source: arXiv 2507.18071 eq. 5 and 7.
    Defaults: 3e-4 and 4e-4, section 5.1. It was published with seq_mean_token_mean; verl forces that.
    """
    ratio = tokens.sequence_mean(tokens.log_ratio()).exp()
    return clipped_surrogate(tokens.advantages, ratio, clip_low, clip_high)


def gmpo_loss(tokens: Tokens, *, clip_low: float, clip_high: float) -> Tensor:
    """GMPO: the geometric mean of ratios that are clipped token by token.

    Objective: L = -A G, G = exp(mean z), z = s min(s l, s clip(l, -clip_low, clip_high)), s = sign A
    Gradient: g = A G, G the geometric mean of the response's clipped r, but 0 for tokens with A > 0 and
        l = log r > clip_high, or A < 0 and l < -clip_low
    Boundary: a token beyond its bound has no gradient, and scales that of its response no further.
    Source: arXiv 2507.20673.
    Defaults: 0.4 on both sides of the log-ratio, the paper's. verl averages over the micro-batch, so its split matters.
    """
    log_ratio, sign = tokens.log_ratio(), tokens.advantages.sign()
    clipped = sign * torch.minimum(sign * log_ratio, sign * log_ratio.clamp(-clip_low, clip_high))
    return -tokens.advantages * tokens.sequence_mean(clipped).exp()


def opsm_loss(tokens: Tokens, *, clip_low: float, clip_high: float, delta: float) -> Tensor:
    """OPSM, off-policy sequence masking: GRPO without the bad responses that pi has moved away from.

    Objective: L = GRPO's, but 0 for responses with A < 0 and mean(m - x) > delta
    Gradient: g = GRPO's, but 0 for responses with A < 0 and mean(m - x) > delta
    Boundary: the gradient of the whole response drops to 0.
    Source: DeepSeek-V3.2, arXiv 2512.02556.
    Defaults: delta 0.5, TRL's suggestion (slime: 1e-4; the paper gives none); clip as GRPO's.
    """
    moved_away = tokens.sequence_mean(-tokens.log_ratio()) > delta
    loss = clipped_surrogate(tokens.advantages, tokens.ratio(), clip_low, clip_high)
    return loss.masked_fill((tokens.advantages < 0) & moved_away, 0.0)


def cppo_loss(
    tokens: Tokens, *, delta: float, budget_low: float, budget_high: float, last_weight: float, ratio_cap: float
) -> Tensor:
    """CPPO: DPPO's mask with a budget of divergence that a response spends from left to right.

    Objective: L = -A sg(min(r, ratio_cap) M) x, M = 0 where A (r - 1) > 0 and w D > threshold
    Gradient: g = A min(r, ratio_cap) M, M = 0 where A (r - 1) > 0 and w D > threshold; D = |p - u|, w falls linearly
        from 1 to last_weight over the response, threshold = min(delta, delta + b sum_before w - sum_before w D), b =
        90% quantile of D, at least budget_low and at most budget_high
    Boundary: the gradient drops to 0; a prefix that moved far tightens the bound for what follows.
    Source: arXiv 2606.10968. The quantile is taken over the response, so that no other response has a say in it.
    Defaults: delta 0.15, budget 0.02 to 0.04, last weight 0.8, the released settings; no cap (released: 20).
    """
    shift = tokens.shift()
    divergence = tokens.by_rollout(shift.abs())  # [B, T], 0 in the padding
    present = tokens.by_rollout(torch.ones_like(shift)) > 0
    last = (present.sum(1, keepdim=True) - 1).clamp(min=1)
    position = torch.arange(present.shape[1], device=shift.device)
    weight = torch.where(present, 1 - (1 - last_weight) * position / last, 0.0).to(shift.dtype)
    quantile = torch.where(present, divergence, torch.nan).nanquantile(0.9, dim=1, keepdim=True)
    spent = weight * divergence
    saved = quantile.clamp(budget_low, budget_high) * (weight.cumsum(1) - weight) - (spent.cumsum(1) - spent)
    over = (spent > (delta + saved).clamp(max=delta))[present]  # [N]
    return masked_surrogate(tokens, over & (tokens.advantages * shift > 0), ratio_cap)
