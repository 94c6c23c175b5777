"""Trust regions by penalty or mask: SPO on the ratio, DPPO and DRPO on the probability itself.

x = log pi, m = log mu (or another anchor), p = exp x, u = exp m, r = p / u; g = d(-L)/dx ascends.
"""

from __future__ import annotations

from torch import Tensor

from drpo_bench.types import LOG_RATIO_LIMIT, Tokens


def spo_loss(tokens: Tokens, *, epsilon: float) -> Tensor:
    """SPO: a quadratic penalty on the ratio (arXiv 2401.16025; setting 0.2 there, 12.5 in DRPO's runs).

        L = -A r + |A| (r - 1)^2 / (2 epsilon),    g = A r [1 - sign(A) (r - 1) / epsilon]

    The weight falls to 0 at |r - 1| = epsilon and is unbounded beyond it: a rare token's ratio explodes.
    """
    ratio, advantages = tokens.ratio(), tokens.advantages
    return -advantages * ratio + advantages.abs() * (ratio - 1).square() / (2 * epsilon)


def dppo_tv_loss(tokens: Tokens, *, delta_low: float, delta_high: float, ratio_cap: float) -> Tensor:
    """DPPO-Binary-TV: a hard mask on the sampled token's probability shift (arXiv 2602.04879, eq. 12).

        L = -A sg(min(r, ratio_cap) M) x,    g = A min(r, ratio_cap) M
        M = 0 where A > 0 and p - u > delta_high, or A < 0 and p - u < -delta_low; else 1

    sg stops the gradient: the ratio and the mask are coefficients.
    """
    logprobs, anchor_logprobs = tokens.logprobs.detach(), tokens.anchor_logprobs
    ratio = (logprobs - anchor_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().clamp(max=ratio_cap)
    shift = logprobs.exp() - anchor_logprobs.exp()
    advantages = tokens.advantages
    masked = ((advantages > 0) & (shift > delta_high)) | ((advantages < 0) & (shift < -delta_low))
    return -advantages * ratio.masked_fill(masked, 0.0) * tokens.logprobs


def drpo_loss(tokens: Tokens, *, delta: float) -> Tensor:
    """DRPO: a quadratic penalty on pi - mu, weighted by |A| (arXiv 2606.09821, eq. 8; delta 12.5 there).

        L = -A r + |A| u (r - 1)^2 / (2 delta),    g = A r [1 - sign(A) (p - u) / delta]

    The weight falls smoothly to 0 at the boundary |p - u| = delta and pulls pi back towards mu beyond it.
    Since |p - u| <= 1 the boundary cannot be reached for delta >= 1: then it is nearly PG-IS.
    """
    ratio, mu, advantages = tokens.ratio(), tokens.anchor_logprobs.exp(), tokens.advantages
    return -advantages * ratio + advantages.abs() * mu * (ratio - 1).square() / (2 * delta)
