"""The `[loss]` table of an experiment file: one frozen config class a loss.

Defaults are the `controlled` ones: every loss at a setting where its own mechanism is active, so that a
sweep compares the losses and nothing else. The formulas stand in `drpo_bench.losses`, the published
settings in `drpo_bench.loss_presets`.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from drpo_bench.loss_configs.base import CONTROLLED, AnchorName, LossBase, Number, Scope
from drpo_bench.loss_configs.clipped import (
    DecoupledPPOConfig,
    DISConfig,
    GRPOConfig,
    MiniRLConfig,
    RelaxedGRPOConfig,
    SAPOConfig,
)
from drpo_bench.loss_configs.covariance import (
    ClipCovConfig,
    KLCovConfig,
)
from drpo_bench.loss_configs.regularized import (
    DRPOConfig,
    DRPONoAbsAdvantageConfig,
    MaskDRPOConfig,
    PenaltyConfig,
    SPOConfig,
)
from drpo_bench.loss_configs.sequences import (
    CPPOConfig,
    GMPOConfig,
    GSPOConfig,
    OPSMConfig,
)
from drpo_bench.loss_configs.surrogates import (
    CISPOConfig,
    DROConfig,
    PGISConfig,
    PGTISConfig,
    ReinforceConfig,
    TOPRConfig,
    VESPOConfig,
)
from drpo_bench.loss_configs.trust_region import (
    DPPOKLConfig,
    DPPOTopKKLConfig,
    DPPOTopKTVConfig,
    DPPOTVConfig,
    IPOConfig,
    NegMaskConfig,
)

_AnyLoss = (
    ReinforceConfig
    | PGISConfig
    | PGTISConfig
    | CISPOConfig
    | TOPRConfig
    | VESPOConfig
    | DROConfig
    | GRPOConfig
    | RelaxedGRPOConfig
    | MiniRLConfig
    | DecoupledPPOConfig
    | DISConfig
    | SAPOConfig
    | GSPOConfig
    | GMPOConfig
    | OPSMConfig
    | ClipCovConfig
    | KLCovConfig
    | SPOConfig
    | DPPOTVConfig
    | DPPOKLConfig
    | DPPOTopKTVConfig
    | DPPOTopKKLConfig
    | CPPOConfig
    | IPOConfig
    | NegMaskConfig
    | DRPOConfig
    | MaskDRPOConfig
    | DRPONoAbsAdvantageConfig
    | PenaltyConfig
)
LossConfig = Annotated[_AnyLoss, Field(discriminator="id")]
LOSS_IDS: tuple[str, ...] = tuple(member.model_fields["id"].default for member in get_args(_AnyLoss))

__all__ = ["CONTROLLED", "LOSS_IDS", "AnchorName", "DRPOConfig", "LossBase", "LossConfig", "Number", "Scope"]
