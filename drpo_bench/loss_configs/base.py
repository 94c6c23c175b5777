"""What every loss declares beside its parameters: scope, what it reads, what it does at A = 0."""

from __future__ import annotations

from math import inf
from typing import Annotated, ClassVar, Literal

from pydantic import AllowInfNan, BeforeValidator, Field

from drpo_bench.task_configs import Frozen

Scope = Literal["token", "sequence", "minibatch"]
CONTROLLED = "controlled"
AnchorName = Literal["mu", "old", "prox"]


def _number(value: object) -> object:
    """Accept the string "inf": JSON has no infinity, and config.json must be replayable. Never NaN."""
    if value != value:
        raise ValueError("is not a number")
    return inf if value == "inf" else value


Number = Annotated[float, AllowInfNan(True), BeforeValidator(_number)]

RatioCap = Annotated[Number, Field(gt=0, description="The detached ratio is truncated at this value.")]
ClipLow = Annotated[Number, Field(gt=0, description="The ratio is clipped below 1 - clip_low.")]
ClipHigh = Annotated[Number, Field(gt=0, description="The ratio is clipped above 1 + clip_high.")]
DeltaLow = Annotated[Number, Field(gt=0, description="Divergence allowed where A < 0 and the probability fell.")]
DeltaHigh = Annotated[Number, Field(gt=0, description="Divergence allowed where A > 0 and the probability rose.")]
MaskAnchor = Annotated[
    AnchorName | None,
    Field(description="Policy that the mask measures from; none is the ratio's."),
]


class LossBase(Frozen):
    """Base of the loss tables. Class variables are declarations, fields are parameters of the formula.

    `scope`: over what a token's loss takes statistics. A sequence loss needs whole rollouts in a micro-batch,
    a minibatch loss one look at the whole minibatch before its optimizer step.
    `uses_anchor`: whether it reads the policy of train.anchor at all.
    `corrects`: whether the gradient already carries pi / anchor, so that weighting it once more would correct twice.
    """

    scope: ClassVar[Scope] = "token"
    uses_anchor: ClassVar[bool] = True
    corrects: ClassVar[bool] = True

    preset: str = Field(
        default=CONTROLLED, description="controlled: losses differ in the loss alone; paper: the published settings."
    )

    @property
    def parameters(self) -> dict[str, object]:
        """The keyword arguments of the formula."""
        return self.model_dump(exclude={"id", "preset"})

    @property
    def settings(self) -> dict[str, object]:
        """What tables show of it: the parameters that are set, and the preset unless it is the default."""
        values = self.model_dump(exclude={"id"})
        return {
            name: value
            for name, value in values.items()
            if value is not None and (name != "preset" or value != CONTROLLED)
        }

    @property
    def sequence_ratio(self) -> bool:
        """Whether its ratio belongs to a whole response, so that a token has no weight of its own."""
        return False

    @property
    def zero_advantage_zero_gradient(self) -> bool:
        """Whether a token with A = 0 has no gradient, so that the trainer may skip it."""
        return True

    @property
    def needs(self) -> frozenset[str]:
        """What it reads beyond mu and the ratio's anchor: old, prox, topk."""
        mask_anchor = getattr(self, "mask_anchor", None)
        return frozenset() if mask_anchor in (None, "mu") else frozenset({mask_anchor})

    def needs_with(self, anchor: str) -> frozenset[str]:
        """What it reads beyond mu when `anchor` is the ratio's: old, prox, topk."""
        return self.needs | ({anchor} - {"mu"})

    @property
    def topk(self) -> int:
        """How many of mu's likeliest tokens it reads at each position."""
        return 0

    def warnings(self) -> list[str]:
        """What a user should know about these parameters, one line each."""
        return []
