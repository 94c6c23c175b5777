"""The `[loss]` table of an experiment file: one frozen config class a loss.

Defaults are the `controlled` ones: every loss at a setting where its own mechanism is active, so that a
sweep compares the losses and nothing else. The formulas stand in `drpo_bench.losses`.
"""

from __future__ import annotations

from math import inf
from typing import Annotated, Literal

from pydantic import AllowInfNan, BeforeValidator, Field

from drpo_bench.task_configs import Frozen


def _number(value: object) -> object:
    """Accept the string "inf": JSON has no infinity, and config.json must be replayable. Never NaN."""
    if value != value:
        raise ValueError("is not a number")
    return inf if value == "inf" else value


Number = Annotated[float, AllowInfNan(True), BeforeValidator(_number)]


class PGISConfig(Frozen):
    """The unregularised importance-weighted surrogate."""

    id: Literal["pg_is"] = "pg_is"


class GRPOConfig(Frozen):
    """PPO's clipped surrogate with separate bounds (clip-higher)."""

    id: Literal["grpo"] = "grpo"
    clip_low: Number = Field(default=0.2, gt=0, description="The ratio is clipped below 1 - clip_low.")
    clip_high: Number = Field(default=0.28, gt=0, description="The ratio is clipped above 1 + clip_high.")


class SPOConfig(Frozen):
    """Simple Policy Optimization: a quadratic penalty on the ratio."""

    id: Literal["spo"] = "spo"
    epsilon: Number = Field(default=0.2, gt=0, description="Trust-region radius on |ratio - 1|.")


class DPPOTVConfig(Frozen):
    """DPPO with the binary total-variation mask."""

    id: Literal["dppo_tv"] = "dppo_tv"
    delta_low: Number = Field(default=0.15, gt=0, description="Largest fall of a token's probability for A < 0.")
    delta_high: Number = Field(default=0.15, gt=0, description="Largest rise of a token's probability for A > 0.")
    ratio_cap: Number = Field(default=inf, gt=0, description="The detached ratio is truncated at this value.")


class DRPOConfig(Frozen):
    """DRPO: a quadratic penalty on pi - mu."""

    id: Literal["drpo"] = "drpo"
    delta: Number = Field(default=0.15, gt=0, description="Trust-region radius on |pi - mu|, a probability.")


LossConfig = Annotated[PGISConfig | GRPOConfig | SPOConfig | DPPOTVConfig | DRPOConfig, Field(discriminator="id")]
