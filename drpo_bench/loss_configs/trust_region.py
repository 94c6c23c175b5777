"""Tables of the trust regions on the probability itself, by mask (DPPO) or by penalty (SPO, DRPO)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from drpo_bench.loss_configs.base import DeltaHigh, DeltaLow, LossBase, MaskAnchor, Number, RatioCap, Scope

PenaltyKind = Literal["kl", "reverse_kl", "k2", "k3", "tv", "binary_kl", "chi2"]


class SPOConfig(LossBase):
    """Simple Policy Optimization: a quadratic penalty on the ratio."""

    id: Literal["spo"] = "spo"
    epsilon: Number = Field(default=0.2, gt=0, description="Trust-region radius on |ratio - 1|.")


class DPPOTVConfig(LossBase):
    """DPPO with the binary total-variation mask."""

    id: Literal["dppo_tv"] = "dppo_tv"
    delta_low: DeltaLow = 0.15
    delta_high: DeltaHigh = 0.15
    ratio_cap: RatioCap = float("inf")
    mask_anchor: MaskAnchor = None


class DPPOKLConfig(LossBase):
    """DPPO with the binary KL mask."""

    id: Literal["dppo_kl"] = "dppo_kl"
    delta_low: DeltaLow = 0.05
    delta_high: DeltaHigh = 0.05
    ratio_cap: RatioCap = float("inf")
    mask_anchor: MaskAnchor = None


class _TopK(LossBase):
    """Masks on a divergence over mu's likeliest tokens, the sampled one and the rest."""

    ratio_cap: RatioCap = float("inf")
    k: int = Field(default=20, ge=1, description="mu's likeliest tokens at each position; vLLM's limit is 20.")
    replace: bool = Field(
        default=False, description="Exactly k tokens: the sampled one takes the k-th's place, as in the released code."
    )

    @property
    def parameters(self) -> dict[str, object]:
        return self.model_dump(exclude={"id", "preset", "k"})  # k is the engine's to know

    @property
    def topk(self) -> int:
        return self.k

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"topk"})


class DPPOTopKTVConfig(_TopK):
    """DPPO with total variation over top-k tokens."""

    id: Literal["dppo_topk_tv"] = "dppo_topk_tv"
    delta_low: DeltaLow = 0.15
    delta_high: DeltaHigh = 0.15


class DPPOTopKKLConfig(_TopK):
    """DPPO with KL over top-k tokens."""

    id: Literal["dppo_topk_kl"] = "dppo_topk_kl"
    delta_low: DeltaLow = 0.05
    delta_high: DeltaHigh = 0.05


class CPPOConfig(LossBase):
    """DPPO's mask with a budget that a sequence spends from left to right."""

    scope: ClassVar[Scope] = "sequence"

    id: Literal["cppo"] = "cppo"
    delta: Number = Field(default=0.15, gt=0, description="Largest weighted |pi - mu| of a token.")
    budget_low: Number = Field(default=0.02, ge=0, description="Least budget a token adds.")
    budget_high: Number = Field(default=0.04, ge=0, description="Largest budget a token adds.")
    last_weight: float = Field(default=0.8, gt=0, le=1, description="Weight of the last token; the first has 1.")
    ratio_cap: RatioCap = float("inf")


class IPOConfig(LossBase):
    """A mask on |pi - mu| in both directions and for both signs of A, and a small quadratic penalty."""

    id: Literal["ipo"] = "ipo"
    delta: Number = Field(default=0.1, gt=0, description="Largest |pi - mu| of a token that is trained on.")
    kl_coef: Number = Field(default=1e-3, ge=0, description="Of the squared log-ratio, on every token.")
    mask_anchor: MaskAnchor = None

    @property
    def zero_advantage_zero_gradient(self) -> bool:
        return self.kl_coef == 0


class NegMaskConfig(LossBase):
    """DPPO's probe: only tokens of negative advantage whose probability fell far are dropped."""

    id: Literal["neg_mask"] = "neg_mask"
    delta: Number = Field(default=0.5, gt=0, description="Largest fall mu - pi where A < 0.")
    mask_anchor: MaskAnchor = None


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
    coef: Number = Field(default=1.0, ge=0, lt=float("inf"), description="Of the divergence.")
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
