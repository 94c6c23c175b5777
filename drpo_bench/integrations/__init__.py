"""Our losses inside other trainers, `trl` and `verl`: the formulas are ours, everything around them is theirs.

Neither package is a dependency of this one; only the module of its name imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any, get_args

from pydantic import ValidationError

from drpo_bench.errors import UserError, explain
from drpo_bench.losses import LOSSES, Loss, make_loss
from drpo_bench.types import Anchor


def require_version(package: str, version: str) -> None:
    """Raise ImportError unless the installed package is of this series: what we override in it is not public."""
    installed = metadata.version(package)
    if not installed.startswith(f"{version}."):
        raise ImportError(f"drpo_bench.integrations.{package} is written for {package} {version}, not {installed}")


def loss_for(loss_id: str, anchor: Anchor, params: Mapping[str, Any], lacking: Mapping[str, str]) -> Loss:
    """The loss, for a trainer without what `lacking` names (mu, old, prox, topk) and says why.

    Raises ValueError naming the field, also for what `make_loss` refuses.
    """
    if anchor not in get_args(Anchor):
        raise UserError(f"anchor: unknown policy {anchor!r}; known: {', '.join(get_args(Anchor))}")
    if "preset" in params:
        raise UserError("loss_params.preset: presets belong to experiment files; give the parameters themselves")
    try:
        loss = make_loss(loss_id, anchor=anchor, **params)
    except ValidationError as error:
        raise explain(error, "loss_params", LOSSES[loss_id].config) from error
    mask_anchor = getattr(loss.config, "mask_anchor", None) or anchor
    fields = {anchor: "anchor", mask_anchor: "loss_params.mask_anchor", "topk": loss_id}
    for read in sorted((loss.needs | {anchor, mask_anchor}) & lacking.keys()):
        raise UserError(f"{fields[read]}: {loss_id} reads {read}; {lacking[read]}")
    return loss
