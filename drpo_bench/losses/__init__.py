"""The registry of policy losses: one row a loss, one formula behind it.

Every loss maps `Tokens` to one value a token, `[N]`, to be minimised; the caller reduces with
`(tokens.weights * loss(tokens)).sum()`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import Tensor

from drpo_bench import loss_configs
from drpo_bench.losses.clipped import grpo_loss, pg_is_loss
from drpo_bench.losses.trust_region import dppo_tv_loss, drpo_loss, spo_loss
from drpo_bench.task_configs import Frozen
from drpo_bench.types import Anchor, Tokens

Scope = Literal["token", "sequence", "minibatch"]


@dataclass(frozen=True)
class LossSpec:
    """A row of the registry.

    `scope` says over what a token's loss takes statistics; `zero_advantage_zero_gradient` that a token
    with A = 0 has no gradient, so that the trainer may skip it.
    """

    formula: Callable[..., Tensor]
    config: type[Frozen]
    scope: Scope = "token"
    zero_advantage_zero_gradient: bool = True


LOSSES: dict[str, LossSpec] = {
    "pg_is": LossSpec(pg_is_loss, loss_configs.PGISConfig),
    "grpo": LossSpec(grpo_loss, loss_configs.GRPOConfig),
    "spo": LossSpec(spo_loss, loss_configs.SPOConfig),
    "dppo_tv": LossSpec(dppo_tv_loss, loss_configs.DPPOTVConfig),
    "drpo": LossSpec(drpo_loss, loss_configs.DRPOConfig),
}


@dataclass(frozen=True)
class Loss:
    """A loss with its parameters and its anchor; call it with the tokens of a micro-batch."""

    id: str
    spec: LossSpec
    formula: Callable[[Tokens], Tensor]
    anchor: Anchor

    def __call__(self, tokens: Tokens) -> Tensor:
        return self.formula(replace(tokens, anchor=self.anchor))


def make_loss(loss_id: str, anchor: Anchor = "mu", **params: Any) -> Loss:
    """The loss `loss_id`; parameters that are not given take the defaults of its config class.

    Raises ValueError for an unknown id; pydantic.ValidationError for a parameter out of range.
    """
    if loss_id not in LOSSES:
        raise ValueError(f"unknown loss {loss_id!r}; known: {', '.join(LOSSES)}")
    spec = LOSSES[loss_id]
    values = spec.config(**params).model_dump(exclude={"id"})
    return Loss(loss_id, spec, partial(spec.formula, **values), anchor)
