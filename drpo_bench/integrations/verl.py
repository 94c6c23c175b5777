"""Our losses in verl's policy-loss registry, under the names `drpo_bench_<id>`. For verl 0.9.

verl imports this module in every worker when it is named as `external_lib`:
    actor_rollout_ref.model.external_lib=drpo_bench.integrations.verl
    actor_rollout_ref.actor.policy_loss.loss_mode=drpo_bench_drpo
verl's config classes take no further fields, so parameters need ours in the place of PolicyLossConfig:
    actor_rollout_ref.actor.policy_loss._target_=drpo_bench.integrations.verl.LossConfig
    +actor_rollout_ref.actor.policy_loss.loss_params.delta=0.2
or a module of one's own as `external_lib`, that calls `register("drpo", name="my_drpo", delta=0.2)`.

verl hands a loss two sets of logprobs:
    log_prob      pi, with gradient, at the sampling temperature
    old_log_prob  the anchor. With `algorithm.rollout_correction.bypass_mode=true` it IS mu, what the rollout engine
                  recorded: the default here (`anchor="mu"`). Without, the trainer recomputed it before the batch's
                  updates: our old (`anchor="old"`); in asynchronous training our prox
A loss cannot see which it was given, so `anchor` says it. It decides about `rollout_is_weights`, verl's old / mu:
with anchor mu they are refused, for the ratio corrects by itself. What needs more is in NOT_REGISTERED.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, agg_loss, register_policy_loss
from verl.workers.config import PolicyLossConfig

from drpo_bench.errors import UserError
from drpo_bench.integrations import loss_for, require_version
from drpo_bench.losses import LOSSES, Loss
from drpo_bench.ops import kl_k1
from drpo_bench.types import Anchor, Tokens

require_version("verl", "0.9")

PREFIX = "drpo_bench_"
POLICIES = ("mu", "old", "prox")


@dataclass
class LossConfig(PolicyLossConfig):
    """verl's table of the policy loss with our parameters. Raises ValueError for what cannot be computed in verl."""

    anchor: str | None = None
    loss_params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        loss_id = self.loss_mode.removeprefix(PREFIX)
        if loss_id == self.loss_mode:
            return
        if loss_id in NOT_REGISTERED:
            raise UserError(f"loss_mode: {self.loss_mode} does not exist: {NOT_REGISTERED[loss_id]}")
        verl_loss(loss_id, self.anchor or "mu", dict(self.loss_params))


def verl_loss(loss_id: str, anchor: str, params: dict[str, Any]) -> Loss:
    """The loss, or ValueError: verl gives a loss one set of logprobs beside pi's, and micro-batches only."""
    one = "verl hands a loss one set of old logprobs, which `anchor` names"
    lacking = {policy: one for policy in POLICIES if policy != anchor}
    loss = loss_for(loss_id, cast(Anchor, anchor), params, lacking | {"topk": "verl records the sampled token's only"})
    if loss.scope == "minibatch":
        raise UserError(f"{loss_id}: takes statistics over a minibatch; verl hands a loss its micro-batches one by one")
    return loss


def register(loss_id: str, name: str | None = None, anchor: Anchor = "mu", **params: Any) -> str:
    """Register a loss with these parameters; returns its name, for `policy_loss.loss_mode`.

    `anchor` and `loss_params` of a LossConfig take precedence over those given here.
    """
    verl_loss(loss_id, anchor, params)
    name = name or PREFIX + loss_id
    taken = POLICY_LOSS_REGISTRY.get(name)
    if taken is not None and not (isinstance(taken, partial) and taken.func is policy_loss):
        raise UserError(f"name: verl has a policy loss {name!r} of its own")
    register_policy_loss(name)(partial(policy_loss, loss_id=loss_id, anchor=anchor, params=params))
    return name


def policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
    *,
    loss_id: str,
    anchor: str,
    params: dict[str, Any],
) -> tuple[Tensor, dict[str, Any]]:
    """What verl calls with a micro-batch [B, T]; its own `agg_loss` reduces, with the batch's global counts.

    Metrics, means over its response tokens: `actor/ppo_kl` log anchor - log pi, `actor/tv_mean` |pi - anchor|.
    """
    anchor = config.policy_loss.get("anchor") or anchor
    loss = verl_loss(loss_id, anchor, params | dict(config.policy_loss.get("loss_params") or {}))
    if rollout_is_weights is not None and anchor == "mu" and loss.config.corrects:
        raise UserError(
            f"algorithm.rollout_correction.rollout_is: the ratio of {loss_id} is over mu already (anchor = 'mu'), so "
            "the weights would correct twice; set rollout_is=null and bypass_mode=true, or policy_loss.anchor=old"
        )
    mask = response_mask.bool()
    tokens = response_tokens(old_log_prob, log_prob, advantages, mask, anchor)
    losses = loss(tokens) if len(tokens.logprobs) else tokens.logprobs  # [N]
    padded = torch.zeros(mask.shape, dtype=losses.dtype, device=losses.device).masked_scatter(mask, losses)
    if rollout_is_weights is not None:
        padded = padded * rollout_is_weights
    total = agg_loss(loss_mat=padded, loss_mask=mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info)
    sums = {"ppo_kl": kl_k1(tokens.logprobs.detach(), tokens.anchor_logprobs), "tv_mean": tokens.shift().abs()}
    count = max(len(tokens.logprobs), 1)  # verl wants the same names of every micro-batch; its own means are 0 there
    return total, {f"actor/{name}": value.sum().item() / count for name, value in sums.items()}


def response_tokens(
    old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, mask: Tensor, anchor: str = "mu"
) -> Tokens:
    """verl's micro-batch [B, T] as the `Tokens` [N] of its responses; weights are verl's to apply."""
    wide = torch.promote_types(log_prob.dtype, torch.float32)
    logprobs, given = log_prob[mask].to(wide), old_log_prob[mask].to(wide)
    rows = torch.arange(len(mask), device=mask.device).unsqueeze(1)
    unknown = torch.full_like(given, torch.nan)  # a formula that read it would not go unnoticed
    return Tokens(
        logprobs=logprobs,
        mu_logprobs=given if anchor == "mu" else unknown,
        advantages=advantages[mask].to(wide),
        rollout_index=rows.expand_as(mask)[mask],
        weights=torch.ones_like(given),
        old_logprobs=given if anchor == "old" else None,
        prox_logprobs=given if anchor == "prox" else None,
        anchor=cast(Anchor, anchor),
    )


def _register_all() -> dict[str, str]:
    """Register every loss at its defaults; the others and why not."""
    refused = {}
    for loss_id in LOSSES:
        try:
            register(loss_id)
        except UserError as reason:
            refused[loss_id] = str(reason)
    return refused


# Top-k losses, losses of minibatch scope, and those whose mask is measured from another policy than their ratio.
NOT_REGISTERED = _register_all()
