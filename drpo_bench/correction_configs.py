"""The `[correction]` table of an experiment file: an outer multiplier on a loss for the rollouts' mismatch.

With train.anchor = "old" or "prox" the ratio leaves out how far that policy is from mu: the multiplier makes up for
it. With anchor "mu" the ratio corrects by itself, and weights are refused; rejection is not a weight and composes.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from drpo_bench.loss_configs import LossBase, Number
from drpo_bench.task_configs import Frozen


class CorrectionBase(Frozen):
    """Base of the correction tables. `weighs`: it multiplies by a ratio and does not only reject."""

    weighs: ClassVar[bool] = True
    level: ClassVar[Literal["token", "sequence"]] = "token"
    id: str

    def misfit(self, loss_id: str, loss: LossBase, anchor: str) -> str | None:
        """Why it does not go with a loss and an anchor, naming the field, or None."""
        if self.id == "none":
            return None
        if self.level == "token" and loss.sequence_ratio:
            return (
                f"correction.id: {self.id} is a token-level correction and {loss_id} has a ratio of whole responses; "
                "use tis_seq, mis_seq, geo_rs, k3_rs or outlier"
            )
        if self.weighs and loss.corrects and anchor == "mu":
            return (
                f"correction.id: the ratio of {loss_id} is over mu already (train.anchor = 'mu'), so {self.id} would "
                "correct twice; set train.anchor = 'old' or 'prox'"
            )
        return None


class NoCorrection(CorrectionBase):
    """No multiplier."""

    weighs: ClassVar[bool] = False
    id: Literal["none"] = "none"


class _Cap(CorrectionBase):
    cap: Number = Field(default=2.0, gt=0, description="The ratio anchor / mu is truncated, or masked, above it.")


class TISToken(_Cap):
    """Truncated importance sampling of each token: min(rho, cap). Default 2, as in verl and slime."""

    id: Literal["tis_token"] = "tis_token"


class TISSeq(_Cap):
    """Truncated importance sampling of the response: min(prod rho, cap). Default 2, as in verl."""

    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    id: Literal["tis_seq"] = "tis_seq"


class MISToken(_Cap):
    """Masked importance sampling of each token: rho where rho <= cap, else 0."""

    id: Literal["mis_token"] = "mis_token"


class MISSeq(_Cap):
    """Masked importance sampling of the response: prod rho where it is <= cap, else 0. TRL's default has cap 3."""

    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    id: Literal["mis_seq"] = "mis_seq"
    cap: Number = Field(default=3.0, gt=0, description="A response whose ratio anchor / mu is larger is masked.")


class _Band(CorrectionBase):
    low: Number = Field(ge=0, description="Lower end of what is kept.")
    high: Number = Field(gt=0, description="Upper end of what is kept.")

    @model_validator(mode="after")
    def _ordered(self) -> _Band:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) is not below high ({self.high:g})")
        return self


class IcePop(_Band):
    """IcePop: rho where low <= rho <= high, else 0. Default 0.5 to 5, as in verl and NeMo-RL; arXiv 2510.18855."""

    id: Literal["icepop"] = "icepop"
    low: Number = Field(default=0.5, ge=0, description="Tokens with a smaller ratio anchor / mu are masked.")
    high: Number = Field(default=5.0, gt=0, description="Tokens with a larger ratio anchor / mu are masked.")


class GeoRS(_Band):
    """Geometric rejection: responses with exp(mean log rho) in [low, high] are kept, unweighted. verl's defaults."""

    weighs: ClassVar[bool] = False
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    id: Literal["geo_rs"] = "geo_rs"
    low: Number = Field(default=0.999, ge=0, description="Least geometric mean of anchor / mu (verl's is mu / anchor).")
    high: Number = Field(default=1.001, gt=0, description="Largest geometric mean of anchor / mu.")


class K3RS(CorrectionBase):
    """Rejection by divergence: responses whose mean of rho - 1 - log rho is at most `limit` are kept, as in verl."""

    weighs: ClassVar[bool] = False
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    id: Literal["k3_rs"] = "k3_rs"
    limit: Number = Field(default=0.01, gt=0, description="Largest KL(mu || anchor) of a response by k3, nats a token.")


class Outlier(_Band):
    """Rejection by outliers: responses whose every token has rho in [low, high] are kept. SkyRL's; no default band."""

    weighs: ClassVar[bool] = False
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    id: Literal["outlier"] = "outlier"


CorrectionConfig = Annotated[
    NoCorrection | TISToken | TISSeq | MISToken | MISSeq | IcePop | GeoRS | K3RS | Outlier, Field(discriminator="id")
]
