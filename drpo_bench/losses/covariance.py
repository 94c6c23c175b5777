"""Losses that look at a whole minibatch for tokens of high covariance between advantage and logprob.

x = log pi, m = log mu (or another anchor), r = exp(x - m), A = advantage; cov = (A - mean A)(x - mean x), means over
all response tokens of the minibatch. The choice of tokens is made once an optimizer step, before its micro-batches.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from drpo_bench.losses.masks import clipped_surrogate, outside_clip
from drpo_bench.types import Tokens


def covariance(tokens: Tokens) -> Tensor:
    """(A - mean A)(x - mean x) of every token, in float64: [N]."""
    advantages, logprobs = tokens.advantages.double(), tokens.logprobs.double()
    return (advantages - advantages.mean()) * (logprobs - logprobs.mean())


def token_keys(tokens: Tokens, seed: int) -> Tensor:
    """A random int64 for each token, a function of seed, rollout and position alone: order and split do not matter."""
    digest = hashlib.sha256(str(seed).encode()).digest()  # neighbouring seeds have nothing in common
    position = torch.cat([torch.arange(length) for length in tokens.lengths()]).to(tokens.rollout_index.device)
    return mixed(mixed(tokens.rollout_index ^ int.from_bytes(digest[:8], "big", signed=True)) + position)


def mixed(values: Tensor) -> Tensor:
    """splitmix64's finaliser on int64, shifts without sign (Steele et al. 2014)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        values = (values ^ ((values >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return values ^ ((values >> 31) & ((1 << 33) - 1))


def num_selected(select_frac: float, num_tokens: int) -> int:
    """How many tokens of a minibatch are chosen: at least one, unless the share is 0, as in verl."""
    return max(1, int(select_frac * num_tokens)) if select_frac else 0


def clip_cov_select(
    tokens: Tokens, seed: int, *, clip_low: float, clip_high: float, select_frac: float, cov_low: float, cov_high: float
) -> Tensor:
    """The tokens that clip_cov drops, bool [N]: random ones among those of the minibatch that qualify."""
    cov = covariance(tokens)
    clipped = outside_clip(tokens.advantages, tokens.ratio(), clip_low, clip_high)
    candidates = ((cov > cov_low) & (cov < cov_high) & ~clipped).nonzero().squeeze(1)
    order = token_keys(tokens, seed)[candidates].argsort(stable=True)
    selected = torch.zeros_like(cov, dtype=torch.bool)
    selected[candidates[order[: num_selected(select_frac, len(cov))]]] = True
    return selected


def clip_cov_loss(
    tokens: Tokens, *, clip_low: float, clip_high: float, select_frac: float, cov_low: float, cov_high: float
) -> Tensor:
    """Clip-Cov: PPO that drops a few random tokens whose covariance lies in a band.

    Objective: L = PPO's, but 0 for n = max(1, select_frac N) random tokens with cov_low < cov < cov_high that PPO keeps
    Gradient: g = PPO's, but 0 for the selected tokens; cov = (A - mean A)(x - mean x) over the N tokens of the
        minibatch
    Boundary: as PPO's; the selected tokens keep entropy from falling.
    Source: arXiv 2505.22617, Clip-Cov.
    Defaults: select_frac 2e-4, band 1 to 5, clip 0.2, as in the paper's code and verl.
    """
    assert tokens.selected is not None
    loss = clipped_surrogate(tokens.advantages, tokens.ratio(), clip_low, clip_high)
    return loss.masked_fill(tokens.selected, 0.0)


def kl_cov_select(tokens: Tokens, seed: int, *, select_frac: float, coef: float) -> Tensor:
    """The tokens that kl_cov penalises, bool [N]: those of the largest covariance; ties at random."""
    cov, order = covariance(tokens), token_keys(tokens, seed).argsort()
    order = order[cov[order].argsort(descending=True, stable=True)]
    selected = torch.zeros_like(cov, dtype=torch.bool)
    selected[order[: num_selected(select_frac, len(cov))]] = True
    return selected


def kl_cov_loss(tokens: Tokens, *, select_frac: float, coef: float) -> Tensor:
    """KL-Cov: the surrogate with a penalty on the tokens of highest covariance.

    Objective: L = -A r + coef |x - m| for the n = max(1, select_frac N) tokens with the largest cov, else -A r
    Gradient: g = A r - coef sign(x - m) for the selected tokens, else A r; cov = (A - mean A)(x - mean x) over the N
        tokens of the minibatch
    Boundary: none; the selected tokens are pulled back with constant force.
    Source: arXiv 2505.22617, KL-Cov.
    Defaults: select_frac 2e-4, coef 1, the paper's (verl's yaml: 0.1).
    """
    assert tokens.selected is not None
    penalty = torch.where(tokens.selected, coef * tokens.log_ratio().abs(), 0.0)
    return -tokens.advantages * tokens.ratio() + penalty
