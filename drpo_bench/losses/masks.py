"""Pieces that several losses share: PPO's clip, DPPO's mask, and the surrogate under a mask.

r = pi / anchor, p - u = pi - anchor (signed), A = advantage; sg stops the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drpo_bench.types import Tokens


def clipped_surrogate(advantages: Tensor, ratio: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """PPO's max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))."""
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))


def outside_clip(advantages: Tensor, ratio: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Where PPO's clip takes the gradient away: r went past its bound in the advantage's direction."""
    return ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))


def moved_too_far(advantages: Tensor, shift: Tensor, divergence: Tensor, low: float, high: float) -> Tensor:
    """DPPO's mask: the divergence is past its bound and p moved in the advantage's direction."""
    rose = (advantages > 0) & (shift > 0) & (divergence > high)
    fell = (advantages < 0) & (shift < 0) & (divergence > low)
    return rose | fell


def masked_surrogate(tokens: Tokens, masked: Tensor, ratio_cap: float) -> Tensor:
    """-A sg(min(r, ratio_cap)) x, and exactly 0 where `masked`; ratio and mask are coefficients."""
    ratio = tokens.ratio().detach().clamp(max=ratio_cap)
    return -tokens.advantages * ratio.masked_fill(masked, 0.0) * tokens.logprobs
