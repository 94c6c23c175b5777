"""Hard trust regions on the sampled token's probability, or on a divergence of the distribution (DPPO and relatives).

x = log pi, m = log mu (or another anchor), p = exp x, u = exp m, r = p / u, A = advantage; sg stops the gradient.
L is the token's loss, to be minimised; g = d(-L)/dx is the gradient that ascends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drpo_bench.losses.masks import masked_surrogate, moved_too_far
from drpo_bench.ops import binary_kl, topk_kl, topk_tv
from drpo_bench.types import Anchor, Tokens


def dppo_tv_loss(
    tokens: Tokens, *, delta_low: float, delta_high: float, ratio_cap: float, mask_anchor: Anchor | None
) -> Tensor:
    """DPPO-Binary-TV: a hard mask on the sampled token's probability shift.

    Objective: L = -A sg(min(r, ratio_cap) M) x
    Gradient: g = A min(r, ratio_cap) M, M = 0 where A > 0 and p - u > delta_high, or A < 0 and u - p > delta_low
    Boundary: the gradient drops to 0, and nothing pulls pi back.
    Source: arXiv 2602.04879 eq. 12.
    Defaults: 0.15, its sanity runs (0.2 in most scaling runs; 0.6 in the DRPO paper's fp8 end to end); ratio_cap inf.
        verl's example runs the `old` anchor since it dropped bypass_mode, the one the paper shows collapsing.
    """
    shift = tokens.shift(mask_anchor)
    masked = moved_too_far(tokens.advantages, shift, shift.abs(), delta_low, delta_high)
    return masked_surrogate(tokens, masked, ratio_cap)


def dppo_kl_loss(
    tokens: Tokens, *, delta_low: float, delta_high: float, ratio_cap: float, mask_anchor: Anchor | None
) -> Tensor:
    """DPPO-Binary-KL: the mask on the KL divergence of sampled token or not.

    Objective: L = -A sg(min(r, ratio_cap) M) x
    Gradient: g = A min(r, ratio_cap) M, M = 0 where D > delta and p moved in the advantage's direction;
        D = KL(mu || pi) of two outcomes = u (m - x) + (1 - u) log((1 - u) / (1 - p)), in float64
    Boundary: the gradient drops to 0, and nothing pulls pi back.
    Source: arXiv 2602.04879 eq. 11-12.
    Defaults: 0.05, the paper's; ratio_cap inf.
    """
    anchor_logprobs = tokens.logprobs_of(mask_anchor or tokens.anchor)
    divergence = binary_kl(tokens.logprobs, anchor_logprobs)
    masked = moved_too_far(tokens.advantages, tokens.shift(mask_anchor), divergence, delta_low, delta_high)
    return masked_surrogate(tokens, masked, ratio_cap)


def topk_pair(tokens: Tokens, replace: bool) -> tuple[Tensor, Tensor]:
    """(pi, mu) logprobs [N, K+1] of the outcomes that are told apart; mu's is -inf where there is none.

    `replace`: the released code keeps exactly K ids; the sampled one takes the K-th's place where it is not among them.
    """
    pi, mu = tokens.topk_logprobs, tokens.topk_mu_logprobs
    if pi is None or mu is None:
        raise ValueError("topk_logprobs and topk_mu_logprobs are needed (rollouts with mu's top-k): None given")
    if replace:
        mu = mu.clone()
        mu[:, -2].masked_fill_(mu[:, -1] > -torch.inf, -torch.inf)
    return pi, mu


def dppo_topk_tv_loss(
    tokens: Tokens, *, delta_low: float, delta_high: float, ratio_cap: float, replace: bool
) -> Tensor:
    """DPPO-TopK-TV: the mask on total variation over mu's top-k tokens, the sampled one and the rest.

    Objective: L = -A sg(min(r, ratio_cap) M) x
    Gradient: g = A min(r, ratio_cap) M, M = 0 where D > delta and p moved in the advantage's direction;
        D = 1/2 sum |pi - mu| over top-k of mu, the sampled token and one bucket for all others
    Boundary: the gradient drops to 0, also where the sampled token moved little but others much. Measured from mu,
        whose top-k it is, also where train.anchor is another policy.
    Source: arXiv 2602.04879 eq. 15.
    Defaults: 0.15 as dppo_tv (paper: 0.2), k 20. Union of top-k and sampled token as in the paper; `replace` as in its
        code, where k = 1 is dppo_tv exactly (anchor mu).
    """
    divergence = topk_tv(*topk_pair(tokens, replace))
    masked = moved_too_far(tokens.advantages, tokens.shift("mu"), divergence, delta_low, delta_high)
    return masked_surrogate(tokens, masked, ratio_cap)


def dppo_topk_kl_loss(
    tokens: Tokens, *, delta_low: float, delta_high: float, ratio_cap: float, replace: bool
) -> Tensor:
    """DPPO-TopK-KL: the mask on KL(mu || pi) over mu's top-k tokens, the sampled one and the rest.

    Objective: L = -A sg(min(r, ratio_cap) M) x
    Gradient: g = A min(r, ratio_cap) M, M = 0 where D > delta and p moved in the advantage's direction;
        D = sum mu log(mu / pi) over top-k of mu, the sampled token and one bucket for all others
    Boundary: the gradient drops to 0, also where the sampled token moved little but others much. Measured from mu,
        whose top-k it is, also where train.anchor is another policy.
    Source: arXiv 2602.04879 eq. 16.
    Defaults: 0.05, the paper's; k 20; `replace` as for dppo_topk_tv.
    """
    divergence = topk_kl(*topk_pair(tokens, replace))
    masked = moved_too_far(tokens.advantages, tokens.shift("mu"), divergence, delta_low, delta_high)
    return masked_surrogate(tokens, masked, ratio_cap)


def ipo_loss(tokens: Tokens, *, delta: float, kl_coef: float, mask_anchor: Anchor | None) -> Tensor:
    """IPO: a mask on |pi - mu| in both directions and for both signs of A, and a small quadratic penalty.

    Objective: L = -A r sg(M) + kl_coef (x - m)^2, M = 1 where |p - u| <= delta
    Gradient: g = A r M - 2 kl_coef (x - m), M = 1 where |p - u| <= delta, else 0
    Boundary: only the penalty is left, which pulls pi back in nats.
    Source: prime-rl, which replaced DPPO by it: in asynchronous RL the sign of A does not predict where pi moves.
    Defaults: delta 0.1 and kl_coef 1e-3, prime-rl's.
    """
    kept = tokens.shift(mask_anchor).abs() <= delta
    surrogate = torch.where(kept, -tokens.advantages * tokens.ratio(), 0.0)
    return surrogate + kl_coef * tokens.log_ratio().square()


def neg_mask_loss(tokens: Tokens, *, delta: float, mask_anchor: Anchor | None) -> Tensor:
    """Negative mask: the surrogate without the few bad tokens whose probability fell furthest.

    Objective: L = -A r sg(M), M = 0 where A < 0 and u - p >= delta
    Gradient: g = A r M, M = 0 where A < 0 and u - p >= delta, else 1
    Boundary: the gradient drops to 0 for A < 0; none for A > 0.
    Source: DPPO, arXiv 2602.04879, section 5.3: a probe of which updates do the damage.
    Defaults: 0.5, the paper's.
    """
    masked = (tokens.advantages < 0) & (-tokens.shift(mask_anchor) >= delta)
    return (-tokens.advantages * tokens.ratio()).masked_fill(masked, 0.0)
