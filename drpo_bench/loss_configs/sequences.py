"""Tables of the losses whose ratio, mask or budget belongs to a whole response."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from drpo_bench.loss_configs.base import (
    ClipHigh,
    ClipLow,
    LossBase,
    Number,
    RatioCap,
    Scope,
)


class GSPOConfig(LossBase):
    """GSPO: the clipped surrogate on the geometric mean of a sequence's ratios."""

    scope: ClassVar[Scope] = "sequence"

    id: Literal["gspo"] = "gspo"
    clip_low: ClipLow = 3e-4
    clip_high: ClipHigh = 4e-4

    @property
    def sequence_ratio(self) -> bool:
        return True


class GMPOConfig(LossBase):
    """GMPO: the geometric mean of token ratios that are clipped one by one."""

    scope: ClassVar[Scope] = "sequence"

    id: Literal["gmpo"] = "gmpo"
    clip_low: Number = Field(default=0.4, gt=0, description="The log-ratio is clipped below -clip_low.")
    clip_high: Number = Field(default=0.4, gt=0, description="The log-ratio is clipped above clip_high.")

    @property
    def sequence_ratio(self) -> bool:
        return True


class OPSMConfig(LossBase):
    """The clipped surrogate without the sequences of negative advantage that drifted too far."""

    scope: ClassVar[Scope] = "sequence"

    id: Literal["opsm"] = "opsm"
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.28
    delta: Number = Field(default=0.5, gt=0, description="Largest mean of log anchor - log pi where A < 0, in nats.")


class CPPOConfig(LossBase):
    """DPPO's mask with a budget that a sequence spends from left to right."""

    scope: ClassVar[Scope] = "sequence"

    id: Literal["cppo"] = "cppo"
    delta: Number = Field(default=0.15, gt=0, description="Largest weighted |pi - mu| of a token.")
    budget_low: Number = Field(default=0.02, ge=0, description="Least budget a token adds.")
    budget_high: Number = Field(default=0.04, ge=0, description="Largest budget a token adds.")
    last_weight: float = Field(default=0.8, gt=0, le=1, description="Weight of the last token; the first has 1.")
    ratio_cap: RatioCap = float("inf")

    @model_validator(mode="after")
    def _ordered(self) -> CPPOConfig:
        if self.budget_low > self.budget_high:
            raise ValueError(f"budget_low ({self.budget_low:g}) is above budget_high ({self.budget_high:g})")
        return self
