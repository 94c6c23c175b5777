"""Tables of the losses that clip, gate or mask the probability ratio of each token."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from drpo_bench.loss_configs.base import (
    ClipHigh,
    ClipLow,
    LossBase,
    MaskAnchor,
    Number,
    RatioCap,
)


class GRPOConfig(LossBase):
    """PPO's clipped surrogate with separate bounds (clip-higher)."""

    id: Literal["grpo"] = "grpo"
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.28
    dual_clip: Number | None = Field(
        default=None, gt=1, description="Where A < 0, no gradient above this ratio; none by default."
    )


class RelaxedGRPOConfig(LossBase):
    """The clipped surrogate that leaves rare tokens unclipped."""

    id: Literal["relaxed_grpo"] = "relaxed_grpo"
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.28
    alpha_low: Number = Field(default=0.1, ge=0, le=1, description="Below this mu nothing with A < 0 is clipped.")
    alpha_high: Number = Field(default=0.1, ge=0, le=1, description="Below this mu nothing with A > 0 is clipped.")


class MiniRLConfig(LossBase):
    """MiniRL: the ratio over mu, the clip on the trainer's own ratio."""

    id: Literal["minirl"] = "minirl"
    clip_low: Number = Field(default=0.2, gt=0, description="Masked where A < 0 and pi / mask_anchor < 1 - clip_low.")
    clip_high: Number = Field(
        default=0.28, gt=0, description="Masked where A > 0 and pi / mask_anchor > 1 + clip_high."
    )
    ratio_cap: RatioCap = float("inf")
    mask_anchor: MaskAnchor = "old"


class DecoupledPPOConfig(LossBase):
    """Decoupled PPO: the clip is measured from a proximal policy, the correction from mu."""

    id: Literal["decoupled_ppo"] = "decoupled_ppo"
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.2
    ratio_cap: RatioCap = float("inf")
    mask_anchor: MaskAnchor = "prox"


class DISConfig(LossBase):
    """Double-sided importance sampling: tokens outside a band of ratios are dropped, whatever A is."""

    id: Literal["dis"] = "dis"
    clip_low: Number = Field(default=0.5, gt=0, description="Tokens with a ratio below 1 - clip_low are dropped.")
    clip_high: Number = Field(default=4.0, gt=0, description="Tokens with a ratio above 1 + clip_high are dropped.")
    mask_anchor: MaskAnchor = None


class SAPOConfig(LossBase):
    """SAPO: a sigmoid gate on the ratio."""

    id: Literal["sapo"] = "sapo"
    tau_pos: float = Field(default=1.0, gt=0, description="Sharpness of the gate where A > 0.")
    tau_neg: float = Field(default=1.05, gt=0, description="Sharpness of the gate where A <= 0.")
