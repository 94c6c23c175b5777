"""Rollout correction: an outer multiplier on a token's loss for the distance between the anchor and mu.

l = log rho = log anchor - log mu, clamped to +-20; with anchor mu (rejection only, or losses without a ratio) it is
log pi - log mu without gradient, as in verl's bypass mode. A masked token has exactly no loss and stays in every
denominator: weights of tokens are fixed before anything is masked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drpo_bench import correction_configs as configs
from drpo_bench.correction_configs import CorrectionBase
from drpo_bench.ops import kl_k3
from drpo_bench.types import LOG_RATIO_LIMIT, Tokens


def correction_multiplier(tokens: Tokens, correction: CorrectionBase) -> Tensor:
    """The constant multiplier [N] of each token's loss; 0 where it is masked or its response rejected."""
    numerator = tokens.logprobs.detach() if tokens.anchor == "mu" else tokens.anchor_logprobs
    difference = numerator - tokens.mu_logprobs
    log_rho = difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    rho = log_rho.exp()
    match correction:
        case configs.TISToken():
            return rho.clamp(max=correction.cap)
        case configs.MISToken():
            return torch.where(rho <= correction.cap, rho, 0.0)
        case configs.IcePop():
            return torch.where((rho >= correction.low) & (rho <= correction.high), rho, 0.0)
        case configs.TISSeq() | configs.MISSeq():
            product = tokens.sequence_sum(log_rho).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
            if isinstance(correction, configs.TISSeq):
                return product.clamp(max=correction.cap)
            return torch.where(product <= correction.cap, product, 0.0)
        case configs.GeoRS():
            mean = tokens.sequence_mean(log_rho).exp()
            kept = (mean >= correction.low) & (mean <= correction.high)
        case configs.K3RS():
            kept = tokens.sequence_mean(kl_k3(log_rho, torch.zeros_like(log_rho))) <= correction.limit
        case configs.Outlier():
            outside = (rho < correction.low) | (rho > correction.high)
            kept = tokens.sequence_sum(outside.to(rho.dtype)) == 0
        case _:
            raise AssertionError(f"no multiplier for {correction.id}")
    return kept.to(rho.dtype)
