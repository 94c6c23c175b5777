"""Tables of the surrogates without a trust region, or with a truncated weight only."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from drpo_bench.loss_configs.base import ClipHigh, ClipLow, LossBase, RatioCap, Scope


class ReinforceConfig(LossBase):
    """REINFORCE: no ratio at all."""

    uses_anchor: ClassVar[bool] = False
    corrects: ClassVar[bool] = False

    id: Literal["reinforce"] = "reinforce"


class PGISConfig(LossBase):
    """The unregularised importance-weighted surrogate."""

    id: Literal["pg_is"] = "pg_is"


class PGTISConfig(LossBase):
    """The surrogate with a truncated ratio; its cap is its mechanism, so it is finite by default."""

    id: Literal["pg_tis"] = "pg_tis"
    ratio_cap: RatioCap = 3.0


class CISPOConfig(LossBase):
    """CISPO: a clipped weight on every token, never a mask."""

    id: Literal["cispo"] = "cispo"
    clip_low: ClipLow = 1.0
    clip_high: ClipHigh = 4.0


class TOPRConfig(LossBase):
    """Tapered off-policy REINFORCE: no ratio where A > 0, a truncated one where A < 0."""

    scope: ClassVar[Scope] = "sequence"

    id: Literal["topr"] = "topr"
    level: Literal["sequence", "token"] = Field(default="sequence", description="Whose ratio is truncated at 1.")

    @property
    def sequence_ratio(self) -> bool:
        return self.level == "sequence"


class VESPOConfig(LossBase):
    """VESPO: a soft weight of the sequence's ratio."""

    scope: ClassVar[Scope] = "sequence"

    id: Literal["vespo"] = "vespo"
    k_pos: float = Field(default=2.0, ge=0, description="Power of the ratio where A >= 0.")
    lambda_pos: float = Field(default=3.0, ge=0, description="Decay in the ratio where A >= 0.")
    k_neg: float = Field(default=3.0, ge=0, description="Power of the ratio where A < 0.")
    lambda_neg: float = Field(default=2.0, ge=0, description="Decay in the ratio where A < 0.")

    @property
    def sequence_ratio(self) -> bool:
        return True


class DROConfig(LossBase):
    """Kimi's and DRO's quadratic in the log-ratio; no importance ratio."""

    corrects: ClassVar[bool] = False

    id: Literal["dro"] = "dro"
    coef: float = Field(default=0.05, ge=0, description="Of the quadratic penalty on the log-ratio.")

    @property
    def zero_advantage_zero_gradient(self) -> bool:
        return self.coef == 0
