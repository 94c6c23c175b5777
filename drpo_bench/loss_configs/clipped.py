"""Tables of the losses that clip or mask the probability ratio."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from drpo_bench.loss_configs.base import ClipHigh, ClipLow, LossBase, MaskAnchor, Number, RatioCap, Scope


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
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.28
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
    clip_low: ClipLow = 0.5
    clip_high: ClipHigh = 4.0
    mask_anchor: MaskAnchor = None


class SAPOConfig(LossBase):
    """SAPO: a sigmoid gate on the ratio."""

    id: Literal["sapo"] = "sapo"
    tau_pos: float = Field(default=1.0, gt=0, description="Sharpness of the gate where A > 0.")
    tau_neg: float = Field(default=1.05, gt=0, description="Sharpness of the gate where A <= 0.")


class GSPOConfig(LossBase):
    """GSPO: the clipped surrogate on the geometric mean of a sequence's ratios."""

    scope: ClassVar[Scope] = "sequence"
    sequence_ratio: ClassVar[bool] = True

    id: Literal["gspo"] = "gspo"
    clip_low: ClipLow = 3e-4
    clip_high: ClipHigh = 4e-4


class GMPOConfig(LossBase):
    """GMPO: the geometric mean of token ratios that are clipped one by one."""

    scope: ClassVar[Scope] = "sequence"
    sequence_ratio: ClassVar[bool] = True

    id: Literal["gmpo"] = "gmpo"
    clip_low: Number = Field(default=0.4, gt=0, description="The log-ratio is clipped below -clip_low.")
    clip_high: Number = Field(default=0.4, gt=0, description="The log-ratio is clipped above clip_high.")


class OPSMConfig(LossBase):
    """The clipped surrogate without the sequences of negative advantage that drifted too far."""

    scope: ClassVar[Scope] = "sequence"

    id: Literal["opsm"] = "opsm"
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.28
    delta: Number = Field(default=0.5, gt=0, description="Largest mean of log anchor - log pi where A < 0, in nats.")


class ClipCovConfig(LossBase):
    """PPO that drops a few random tokens of high covariance between advantage and logprob."""

    scope: ClassVar[Scope] = "minibatch"

    id: Literal["clip_cov"] = "clip_cov"
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.2
    select_frac: float = Field(default=2e-4, ge=0, le=1, description="Share of the minibatch's tokens to drop.")
    cov_low: Number = Field(default=1.0, description="Only tokens with a larger covariance are dropped...")
    cov_high: Number = Field(default=5.0, description="...and with a smaller one.")

    @model_validator(mode="after")
    def _ordered(self) -> ClipCovConfig:
        if self.cov_low >= self.cov_high:
            raise ValueError(f"cov_low ({self.cov_low:g}) is not below cov_high ({self.cov_high:g})")
        return self


class KLCovConfig(LossBase):
    """The surrogate with a penalty on the tokens of highest covariance."""

    scope: ClassVar[Scope] = "minibatch"

    id: Literal["kl_cov"] = "kl_cov"
    select_frac: float = Field(default=2e-4, ge=0, le=1, description="Share of the minibatch's tokens to penalise.")
    coef: Number = Field(default=1.0, ge=0, description="Of abs(log pi - log anchor) on the selected tokens.")

    @property
    def zero_advantage_zero_gradient(self) -> bool:
        return self.coef == 0
