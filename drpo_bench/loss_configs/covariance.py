"""Tables of the losses that look at a whole minibatch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from drpo_bench.loss_configs.base import (
    ClipHigh,
    ClipLow,
    LossBase,
    Number,
    Scope,
)


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
    coef: float = Field(default=1.0, ge=0, description="Of abs(log pi - log anchor) on the selected tokens.")

    @property
    def zero_advantage_zero_gradient(self) -> bool:
        return self.coef == 0 or self.select_frac == 0
