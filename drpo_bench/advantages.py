"""Advantages of grouped rewards."""

from __future__ import annotations

import torch
from torch import Tensor

STD_EPSILON = 1e-6


def group_advantages(rewards: Tensor, kind: str) -> Tensor:
    """Advantages `[P, G]` of rewards `[P, G]`, within each group of one problem.

    - `mean`: R - mean(R); Dr. GRPO, DPPO and DRPO.
    - `group_std`: (R - mean) / (std + 1e-6), unbiased std; GRPO (arXiv 2402.03300).
    - `batch_std`: (R - mean) / (std + 1e-6), std of all rewards of the batch; TRL's `scale_rewards="batch"`.
    - `rloo`: R minus the mean of the *other* rewards, G / (G - 1) times `mean`; arXiv 2402.14740.
    - `none`: R.

    A group whose rewards are all equal has advantages of exactly 0 (except with `none`): float error
    in its mean must never be divided by a tiny standard deviation.
    """
    if kind == "none":
        return rewards.clone()
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if kind == "group_std":
        centred = centred / (rewards.std(dim=1, keepdim=True) + STD_EPSILON)
    elif kind == "batch_std":
        centred = centred / (rewards.std() + STD_EPSILON)
    elif kind == "rloo":
        group_size = rewards.shape[1]
        centred = centred * group_size / (group_size - 1)
    elif kind != "mean":
        raise ValueError(f"train.advantage: unknown estimator {kind!r}")
    constant = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
    return torch.where(constant, torch.zeros_like(centred), centred)
