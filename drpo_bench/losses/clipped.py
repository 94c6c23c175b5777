"""Losses that clip, gate or mask the probability ratio of each token.

x = log pi, m = log mu (or another anchor), r = exp(x - m), A = advantage; sg stops the gradient.
L is the token's loss, to be minimised; g = d(-L)/dx is the gradient that ascends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drpo_bench.losses.masks import clipped_surrogate, masked_surrogate, outside_clip
from drpo_bench.ops import by_mask
from drpo_bench.types import LOG_RATIO_LIMIT, Anchor, Tokens


def grpo_loss(tokens: Tokens, *, clip_low: float, clip_high: float, dual_clip: float | None) -> Tensor:
    """GRPO: PPO's clipped surrogate, with separate bounds and an optional dual clip.

    Objective: L = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)); where A < 0, min(L, -A dual_clip)
    Gradient: g = A r, but 0 where A > 0 and r > 1 + clip_high, or A < 0 and (r < 1 - clip_low or r > dual_clip)
    Boundary: the gradient drops to 0, and nothing pulls pi back.
    Source: PPO, arXiv 1707.06347 eq. 7; clip-higher, DAPO, arXiv 2503.14476 eq. 10; dual clip, arXiv 1912.09729
        (INTELLECT-2's two-sided clip has the same gradient).
    Defaults: 0.2 and 0.28, DAPO's; no dual clip (verl's is always on, at 3).
    """
    loss = clipped_surrogate(tokens.advantages, tokens.ratio(), clip_low, clip_high)
    if dual_clip is None:
        return loss
    return torch.where(tokens.advantages < 0, torch.minimum(loss, -tokens.advantages * dual_clip), loss)


def relaxed_grpo_loss(
    tokens: Tokens, *, clip_low: float, clip_high: float, alpha_low: float, alpha_high: float
) -> Tensor:
    """Relaxed GRPO: the clip is off for tokens that were rare under mu.

    Objective: L = -A r where u < alpha (alpha_high for A > 0, alpha_low for A < 0), else GRPO's
    Gradient: g = A r, but 0 where GRPO clips and u >= alpha
    Boundary: as GRPO's for frequent tokens, none for rare ones.
    Source: DPPO, arXiv 2602.04879, section 6 (`ppo_ablation_*` of its code).
    Defaults: alpha 0.1 on both sides; clip as GRPO's.
    """
    ratio, mu, advantages = tokens.ratio(), tokens.anchor_logprobs.exp(), tokens.advantages
    relaxed = mu < by_mask(advantages > 0, alpha_high, alpha_low, like=mu)
    return torch.where(relaxed, -advantages * ratio, clipped_surrogate(advantages, ratio, clip_low, clip_high))


def minirl_loss(
    tokens: Tokens, *, clip_low: float, clip_high: float, ratio_cap: float, mask_anchor: Anchor | None
) -> Tensor:
    """MiniRL: importance weights over mu, the clip on the ratio of the trainer's own two policies.

    Objective: L = -A sg(min(r, ratio_cap) M) x
    Gradient: g = A min(r, ratio_cap) M, M = 0 where A > 0 and r_o > 1 + clip_high, or A < 0 and r_o < 1 - clip_low,
        r_o = pi / old
    Boundary: the gradient drops to 0 where r_o, free of the engines' mismatch, leaves the interval.
    Source: arXiv 2512.01374; as evaluated by DPPO, arXiv 2602.04879, appendix C.1 (`ppo_recompute` of its code).
    Defaults: 0.2 and 0.28, ratio_cap inf, mask_anchor old; MiniRL-TIS has ratio_cap 3 (preset tis).
    """
    masked = outside_clip(tokens.advantages, tokens.ratio(mask_anchor), clip_low, clip_high)
    return masked_surrogate(tokens, masked, ratio_cap)


def decoupled_ppo_loss(
    tokens: Tokens, *, clip_low: float, clip_high: float, ratio_cap: float, mask_anchor: Anchor | None
) -> Tensor:
    """Decoupled PPO: the clip is measured from a proximal policy, a detached weight corrects for mu.

    Objective: L = max(-A q, -A clip(q, 1 - clip_low, 1 + clip_high)) sg(min(b, ratio_cap)),
        q = pi / prox, b = prox / mu
    Gradient: g = A q min(b, ratio_cap), but 0 where A > 0 and q > 1 + clip_high, or A < 0 and q < 1 - clip_low,
        q = pi / prox, b = prox / mu
    Boundary: the gradient drops to 0, measured from the weights at the start of the batch's updates.
    Source: Hilton et al., arXiv 2110.00641; AReaL, arXiv 2505.24298.
    Defaults: 0.2 on both sides and mask_anchor prox, AReaL's; no cap.
    """
    proximal = tokens.ratio(mask_anchor)
    log_behaviour = tokens.logprobs_of(mask_anchor or tokens.anchor) - tokens.anchor_logprobs
    behaviour = log_behaviour.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().clamp(max=ratio_cap)
    return clipped_surrogate(tokens.advantages, proximal, clip_low, clip_high) * behaviour


def dis_loss(tokens: Tokens, *, clip_low: float, clip_high: float, mask_anchor: Anchor | None) -> Tensor:
    """DIS, double-sided importance sampling: tokens outside a band of ratios are dropped, whatever their advantage.

    Objective: L = -A r sg(M), M = 1 where 1 - clip_low < r < 1 + clip_high
    Gradient: g = A r M, M = 1 where 1 - clip_low < r < 1 + clip_high, else 0
    Boundary: the gradient drops to 0 on both sides, also where it would pull pi back.
    Source: SkyRL's `rollout_is`; with this band it is IcePop (arXiv 2510.18855) as a pure policy gradient.
    Defaults: 0.5 and 4, IcePop's band of [0.5, 5].
    """
    ratio = tokens.ratio(mask_anchor)
    kept = (ratio > 1 - clip_low) & (ratio < 1 + clip_high)
    return torch.where(kept, -tokens.advantages * tokens.ratio(), 0.0)


def sapo_loss(tokens: Tokens, *, tau_pos: float, tau_neg: float) -> Tensor:
    """SAPO: a sigmoid gate in place of the clip.

    Objective: L = -A (4 / tau) s, s = sigmoid(tau (r - 1)), tau = tau_pos where A > 0, else tau_neg
    Gradient: g = A r 4 s (1 - s), s = sigmoid(tau (r - 1))
    Boundary: the weight falls smoothly from 1 at r = 1, to 0.42 at |r - 1| = 2 / tau; it never turns round.
    Source: arXiv 2511.20347.
    Defaults: tau 1.0 and 1.05, the paper's.
    """
    tau = by_mask(tokens.advantages > 0, tau_pos, tau_neg, like=tokens.logprobs)
    return -tokens.advantages * (4 / tau) * torch.sigmoid(tau * (tokens.ratio() - 1))
