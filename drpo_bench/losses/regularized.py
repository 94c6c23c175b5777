"""Smooth trust regions: a penalty on how far pi moved, in ratio or in probability (SPO, DRPO and its ablations).

x = log pi, m = log mu (or another anchor), p = exp x, u = exp m, r = p / u, A = advantage; sg stops the gradient.
L is the token's loss, to be minimised; g = d(-L)/dx is the gradient that ascends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drpo_bench.ops import binary_kl
from drpo_bench.types import Tokens


def spo_loss(tokens: Tokens, *, epsilon: float) -> Tensor:
    """SPO: a quadratic penalty on the ratio, weighted by |A|.

    Objective: L = -A r + |A| (r - 1)^2 / (2 epsilon)
    Gradient: g = A r [1 - sign(A) (r - 1) / epsilon]
    Boundary: the weight is 0 at r - 1 = sign(A) epsilon and pulls pi back beyond it, without bound: a rare token's
        ratio explodes. On the other side, where pi moved against the advantage, it grows above 1.
    Source: arXiv 2401.16025 and its released code.
    Defaults: 0.2, the paper's; the DRPO paper's runs use 12.5.
    """
    ratio, advantages = tokens.ratio(), tokens.advantages
    return -advantages * ratio + advantages.abs() * (ratio - 1).square() / (2 * epsilon)


def drpo_loss(tokens: Tokens, *, delta: float) -> Tensor:
    """DRPO: a quadratic penalty on pi - mu, weighted by |A|.

    Objective: L = -A r + |A| u (r - 1)^2 / (2 delta)
    Gradient: g = A r [1 - sign(A) (p - u) / delta]
    Boundary: the weight falls smoothly to 0 at p - u = sign(A) delta and pulls pi back towards mu beyond it, by at
        most 1 / delta - 1; on the other side, where pi moved against the advantage, it grows to at most 1 + 1 /
        delta. Since |p - u| <= 1 the boundary cannot be reached for delta >= 1: then it is nearly pg_is.
    Source: arXiv 2606.09821 eq. 8-9; UniRL's `drpo`.
    Defaults: 0.15, DPPO's radius, at which the boundary acts; the paper and every released code set 12.5.
    """
    ratio, mu, advantages = tokens.ratio(), tokens.anchor_logprobs.exp(), tokens.advantages
    return -advantages * ratio + advantages.abs() * mu * (ratio - 1).square() / (2 * delta)


def mask_drpo_loss(tokens: Tokens, *, delta: float, delta_mask: float, mask_side: str, continuous: bool) -> Tensor:
    """Mask-DRPO: DRPO's penalty outside DPPO's region only.

    Objective: L = -A r + |A| u (r - 1)^2 / (2 delta) where |p - u| > delta_mask (and A (p - u) > 0), else -A r;
        continuous: |A| (|p - u| - delta_mask)^2 / (2 delta u)
    Gradient: g = A r [1 - sign(A) (p - u) / delta] where masked, else A r; continuous: |p - u| - delta_mask for |p - u|
    Boundary: the weight jumps from 1 to 1 - delta_mask / delta (continuous: goes on from 1), then falls as DRPO's.
    Source: arXiv 2606.09821, figure 11 (exact form not printed); the continuous variant is ours.
    Defaults: delta_mask 0.15, DPPO's; delta 0.15 as drpo (paper: 12.5 presumably); the harmful side.
    """
    ratio, mu, advantages = tokens.ratio(), tokens.anchor_logprobs.exp(), tokens.advantages
    shift = tokens.shift()
    masked = shift.abs() > delta_mask
    if mask_side == "harmful":
        masked = masked & (advantages * shift > 0)
    distance = (ratio - 1).abs()  # |p - u| / u
    if continuous:
        distance = (distance - delta_mask / mu.clamp(min=1e-12)).clamp(min=0.0)
    penalty = advantages.abs() * mu * distance.square() / (2 * delta)
    return -advantages * ratio + torch.where(masked, penalty, 0.0)


def drpo_no_abs_advantage_loss(tokens: Tokens, *, delta: float) -> Tensor:
    """DRPO without |A|: the penalty acts on every token alike.

    Objective: L = -A r + u (r - 1)^2 / (2 delta)
    Gradient: g = r [A - (p - u) / delta]
    Boundary: at p - u = delta A, which moves with the advantage; a token with A = 0 is pulled back too.
    Source: arXiv 2606.09821, figure 4.
    Defaults: 0.15 as drpo; the paper's run has 12.5.
    """
    ratio, mu = tokens.ratio(), tokens.anchor_logprobs.exp()
    return -tokens.advantages * ratio + mu * (ratio - 1).square() / (2 * delta)


def penalty_loss(tokens: Tokens, *, kind: str, coef: float, weight_by_abs_advantage: bool) -> Tensor:
    """Penalty: the surrogate with another divergence in the place of DRPO's quadratic.

    Objective: L = -A r + b P, b = coef |A| or coef; P is
        kl: m - x, KL(mu || pi) by k1; reverse_kl: r (x - m), KL(pi || mu); k2: (x - m)^2 / 2; k3: r - 1 - (x - m);
        tv: |r - 1| / 2; binary_kl: DPPO's D; chi2: (r - 1)^2 / 2 (weighted by |A|, SPO at epsilon 1 / coef)
    Gradient: g = A r + b (kl); A r - b r (x - m + 1) (reverse_kl); A r - b (x - m) (k2); A r - b (r - 1) (k3);
        A r - b r sign(r - 1) / 2 (tv); A r - b (p - u) / (1 - p) (binary_kl); A r - b r (r - 1) (chi2)
    Boundary: kl pushes with constant force, tv by two levels; the others pull back with a force that grows in the
        log-ratio, the ratio, or (binary_kl) the probability.
    Source: arXiv 2606.09821, figure 5; its coefficients and weighting are not known.
    Defaults: k3, coef 1, weighted by |A|.
    """
    log_ratio, ratio = tokens.log_ratio(), tokens.ratio()
    divergence = {
        "kl": lambda: -log_ratio,
        "reverse_kl": lambda: ratio * log_ratio,
        "k2": lambda: 0.5 * log_ratio.square(),
        "k3": lambda: ratio - 1 - log_ratio,
        "tv": lambda: 0.5 * (ratio - 1).abs(),
        "binary_kl": lambda: binary_kl(tokens.logprobs, tokens.anchor_logprobs).to(ratio.dtype),
        "chi2": lambda: 0.5 * (ratio - 1).square(),
    }[kind]()
    scale = coef * tokens.advantages.abs() if weight_by_abs_advantage else coef
    return -tokens.advantages * ratio + scale * divergence
