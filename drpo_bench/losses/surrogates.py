"""Surrogates without a trust region: no ratio, the ratio, or a truncated or softened one.

x = log pi, m = log mu (or another anchor), r = exp(x - m), A = advantage; sg stops the gradient.
L is the token's loss, to be minimised; g = d(-L)/dx is the gradient that ascends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drpo_bench.ops import by_mask
from drpo_bench.types import LOG_RATIO_LIMIT, Tokens


def reinforce_loss(tokens: Tokens) -> Tensor:
    """REINFORCE: the score function weighted by the advantage, with no correction for off-policy tokens.

    Objective: L = -A x
    Gradient: g = A
    Boundary: none; what pi has become since the tokens were sampled does not matter to it.
    Source: Williams 1992; verl's `gpg` (arXiv 2504.02546).
    Defaults: no parameters.
    """
    return -tokens.advantages * tokens.logprobs


def pg_is_loss(tokens: Tokens) -> Tensor:
    """PG-IS: the unregularised importance-weighted surrogate.

    Objective: L = -A r
    Gradient: g = A r
    Boundary: none; the weight is 1 everywhere and the ratio is unbounded.
    Source: DPPO, arXiv 2602.04879, appendix C; TRPO's surrogate, arXiv 1502.05477 eq. 14.
    Defaults: no parameters. Stable-RL's `pg_no_mask` truncates r at `clip_ratio_c`, 3 unless it is set.
    """
    return -tokens.advantages * tokens.ratio()


def pg_tis_loss(tokens: Tokens, *, ratio_cap: float) -> Tensor:
    """PG-TIS: the surrogate with a truncated ratio.

    Objective: L = -A sg(min(r, ratio_cap)) x
    Gradient: g = A min(r, ratio_cap)
    Boundary: above ratio_cap the weight is constant, never 0: the policy is still pushed on.
    Source: DPPO, arXiv 2602.04879, appendix C, where it is called "CISPO"; truncated IS, Ionides 2008.
    Defaults: ratio_cap 3, DPPO's sanity runs; its scaling runs use 5. inf is pg_is.
    """
    return -tokens.advantages * tokens.ratio().detach().clamp(max=ratio_cap) * tokens.logprobs


def cispo_loss(tokens: Tokens, *, clip_low: float, clip_high: float) -> Tensor:
    """CISPO: a clipped importance weight on every token, so that no token loses its gradient.

    Objective: L = -A sg(clip(r, 1 - clip_low, 1 + clip_high)) x
    Gradient: g = A clip(r, 1 - clip_low, 1 + clip_high)
    Boundary: outside the interval the weight is constant, never 0.
    Source: MiniMax-M1, arXiv 2506.13585 eq. 4.
    Defaults: clip_low 1 (off) and clip_high 4, a cap of 5, as in ScaleRL and SkyRL. Other systems mean other things by
        the same names: TRL's epsilon_high is the cap itself, verl's bare default is 0.2 on both sides.
    """
    weight = tokens.ratio().detach().clamp(1 - clip_low, 1 + clip_high)
    return -tokens.advantages * weight * tokens.logprobs


def topr_loss(tokens: Tokens, *, level: str) -> Tensor:
    """TOPR: plain REINFORCE for A > 0, an importance weight truncated at 1 for A < 0.

    Objective: L = -A sg(c) x, c = 1 where A >= 0, else min(R, 1); R = prod r over the response, or r itself
    Gradient: g = A where A >= 0, else A min(R, 1), R = prod r over the response, or r
    Boundary: what has become unlikely and was bad is left alone, weight R -> 0; what was good is always pulled.
    Source: arXiv 2503.14286; the token level is ROLL's.
    Defaults: level sequence, as in the paper.
    """
    log_ratio = tokens.log_ratio().detach()
    if level == "sequence":
        log_ratio = tokens.sequence_sum(log_ratio)
    taper = torch.where(tokens.advantages < 0, log_ratio.clamp(-LOG_RATIO_LIMIT, 0.0).exp(), 1.0)
    return -tokens.advantages * taper * tokens.logprobs


def vespo_loss(tokens: Tokens, *, k_pos: float, lambda_pos: float, k_neg: float, lambda_neg: float) -> Tensor:
    """VESPO: a smooth weight of the response's ratio that falls to 0 for small and for large ones.

    Objective: L = -A sg(phi(R)) x, phi(R) = R^k exp(lambda (1 - R)), R = prod r over the response
    Gradient: g = A phi(R), phi(R) = R^k exp(lambda (1 - R)), with k and lambda by the sign of A
    Boundary: phi is 1 on policy, largest at R = k / lambda, and falls to 0 as R goes to 0 or to infinity; no kink.
    Source: arXiv 2602.10693.
    Defaults: k 2 and lambda 3 where A >= 0, k 3 and lambda 2 where A < 0, as in the paper and TRL.
    """
    log_ratio = tokens.sequence_sum(tokens.log_ratio().detach()).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    positive = tokens.advantages >= 0
    k = by_mask(positive, k_pos, k_neg, like=log_ratio)
    decay = by_mask(positive, lambda_pos, lambda_neg, like=log_ratio)
    weight = (decay + k * log_ratio - decay * log_ratio.exp()).exp()
    return -tokens.advantages * weight * tokens.logprobs


def dro_loss(tokens: Tokens, *, coef: float) -> Tensor:
    """DRO: REINFORCE with a quadratic penalty on the log-ratio.

    Objective: L = -A x + coef (x - m)^2 / 2
    Gradient: g = A - coef (x - m)
    Boundary: g = 0 at x - m = A / coef; beyond it pi is pulled back, in nats.
    Source: DRO, arXiv 2405.19107, and Kimi k1.5, arXiv 2501.12599, per token as tinker's `dro` and verl's.
    Defaults: coef 0.05; the papers tune theirs.
    """
    return -tokens.advantages * tokens.logprobs + 0.5 * coef * tokens.log_ratio().square()
