"""Tables of the smooth trust regions: SPO, DRPO and its ablations."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from drpo_bench.loss_configs.base import (
    LossBase,
    Number,
)

PenaltyKind = Literal["kl", "reverse_kl", "k2", "k3", "tv", "binary_kl", "chi2"]


class SPOConfig(LossBase):
    """Simple Policy Optimization: a quadratic penalty on the ratio."""

    id: Literal["spo"] = "spo"
    epsilon: Number = Field(default=0.2, gt=0, description="Trust-region radius on |ratio - 1|.")


class DRPOConfig(LossBase):
    """DRPO: a quadratic penalty on pi - mu."""

    id: Literal["drpo"] = "drpo"
    delta: Number = Field(default=0.15, gt=0, description="Trust-region radius on |pi - mu|, a probability.")

    def warnings(self) -> list[str]:
        return unreachable_boundary(self.delta)


class MaskDRPOConfig(LossBase):
    """DRPO's penalty outside DPPO's region only."""

    id: Literal["mask_drpo"] = "mask_drpo"
    delta: Number = Field(default=0.15, gt=0, description="Trust-region radius of the penalty, a probability.")
    delta_mask: Number = Field(default=0.15, ge=0, description="The penalty acts where |pi - mu| exceeds this.")
    mask_side: Literal["harmful", "both"] = Field(
        default="harmful", description="harmful: only where pi moved in the advantage's direction; both: anywhere."
    )
    continuous: bool = Field(default=False, description="Penalise |pi - mu| - delta_mask, without a jump.")

    def warnings(self) -> list[str]:
        if self.delta_mask >= 1:
            return [f"loss.delta_mask = {self.delta_mask:g}: |pi - mu| never exceeds 1, so this is pg_is"]
        farthest = (1 - self.delta_mask * self.continuous) / self.delta
        if farthest > 1:
            return []
        return [
            f"loss.delta = {self.delta:g}: |pi - mu| never exceeds 1, so the gradient weight stays above "
            f"{1 - farthest:.2f} and never turns corrective"
        ]


class DRPONoAbsAdvantageConfig(LossBase):
    """DRPO's ablation: the penalty is not weighted by |A|."""

    id: Literal["drpo_no_abs_advantage"] = "drpo_no_abs_advantage"
    delta: Number = Field(default=0.15, gt=0, description="Trust-region radius is delta |A|.")

    @property
    def zero_advantage_zero_gradient(self) -> bool:
        return self.delta == float("inf")


class PenaltyConfig(LossBase):
    """The surrogate with one of the divergences that DRPO is compared with."""

    id: Literal["penalty"] = "penalty"
    kind: PenaltyKind = Field(default="k3", description="kl, reverse_kl, k2, k3, tv, binary_kl or chi2.")
    coef: float = Field(default=1.0, ge=0, description="Of the divergence.")
    weight_by_abs_advantage: bool = Field(default=True, description="Multiply the coefficient by |A|, as DRPO does.")

    @property
    def zero_advantage_zero_gradient(self) -> bool:
        return self.weight_by_abs_advantage or self.coef == 0


def unreachable_boundary(delta: float) -> list[str]:
    """DRPO's warning: |pi - mu| <= 1, so that a larger radius never acts as a boundary."""
    if delta < 1:
        return []
    low, high = 1 - 1 / delta, 1 + 1 / delta
    return [
        f"loss.delta = {delta:g}: |pi - mu| never exceeds 1, so the boundary cannot be reached; the gradient weight "
        f"stays in [{low:.2f}, {high:.2f}] and never turns corrective (pg_is is the limit)"
    ]
