"""Tables of the hard trust regions on the sampled probability or the distribution (DPPO and relatives)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from drpo_bench.loss_configs.base import (
    DeltaHigh,
    DeltaLow,
    LossBase,
    MaskAnchor,
    Number,
    RatioCap,
)


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


class IPOConfig(LossBase):
    """A mask on |pi - mu| in both directions and for both signs of A, and a small quadratic penalty."""

    id: Literal["ipo"] = "ipo"
    delta: Number = Field(default=0.1, gt=0, description="Largest |pi - mu| of a token that is trained on.")
    kl_coef: float = Field(default=1e-3, ge=0, description="Of the squared log-ratio, on every token.")
    mask_anchor: MaskAnchor = None

    @property
    def zero_advantage_zero_gradient(self) -> bool:
        return self.kl_coef == 0


class NegMaskConfig(LossBase):
    """DPPO's probe: only tokens of negative advantage whose probability fell far are dropped."""

    id: Literal["neg_mask"] = "neg_mask"
    delta: Number = Field(default=0.5, gt=0, description="Largest fall mu - pi where A < 0.")
    mask_anchor: MaskAnchor = None
