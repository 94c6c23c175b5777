"""The updates of one rollout batch: minibatches of whole groups, one optimizer step each, one pass."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drpo_bench.advantages import group_advantages
from drpo_bench.batching import PaddedBatch, micro_batches, minibatch_groups, token_weights
from drpo_bench.config import RunConfig
from drpo_bench.losses import Loss
from drpo_bench.metrics import weight_metrics
from drpo_bench.models import Policy, response_logits
from drpo_bench.ops import token_logprobs
from drpo_bench.optim import NonFinite, Optimizer, StepResult
from drpo_bench.rollout.batch import RolloutBatch
from drpo_bench.types import Tokens


@dataclass(frozen=True)
class FlatTokens:
    """Constant per-token quantities of a whole rollout batch, [N] in the order of its rollouts."""

    advantages: Tensor
    mu_logprobs: Tensor
    old_logprobs: Tensor | None
    prox_logprobs: Tensor | None


def flatten(batch: RolloutBatch, advantage: str, prox_logprobs: Tensor | None, device: torch.device) -> FlatTokens:
    """Everything the losses read, one value a response token."""
    per_rollout = group_advantages(batch.rewards, advantage).flatten()
    advantages = per_rollout.repeat_interleave(torch.tensor(batch.lengths))
    old_logprobs = batch.old_logprobs
    return FlatTokens(
        advantages=advantages.to(device),
        mu_logprobs=batch.mu_logprobs.to(device),
        old_logprobs=None if old_logprobs is None else old_logprobs.to(device),
        prox_logprobs=None if prox_logprobs is None else prox_logprobs.to(device),
    )


def update_policy(
    policy: Policy, optimizer: Optimizer, loss: Loss, batch: RolloutBatch, flat: FlatTokens, config: RunConfig
) -> dict[str, float]:
    """All optimizer steps of a rollout batch; returns `update/*` and `optim/*`.

    Minibatches and weights are fixed first. Then tokens with A = 0 are skipped where the loss declares
    that they have no gradient; a minibatch with nothing left still takes its optimizer step.
    Raises NonFinite.
    """
    train = config.train
    lengths = torch.tensor(batch.lengths)
    per_rollout = group_advantages(batch.rewards, train.advantage).flatten()
    group_size = batch.rewards.shape[1]
    gradients = torch.zeros_like(flat.mu_logprobs)  # d(-L)/dx of every token, before its weight
    logprobs = flat.mu_logprobs.clone()  # pi at the moment of each token's update
    steps: list[StepResult] = []
    for groups in minibatch_groups(len(batch.rewards), train.updates_per_batch, config.seed, batch.step):
        members = [group * group_size + sample for group in groups for sample in range(group_size)]
        horizon = train.horizon or config.rollout.max_new_tokens
        weights = torch.zeros(len(lengths))
        weights[members] = token_weights(lengths[members], train.aggregation, horizon)
        if loss.spec.zero_advantage_zero_gradient:
            members = [index for index in members if per_rollout[index] != 0]
        for padded in micro_batches(batch.rollouts, members, train.microbatch_tokens, policy.device):
            tokens = forward(policy, padded, flat, weights.to(policy.device), config.rollout.temperature)
            leaf = tokens.logprobs.detach().requires_grad_()
            losses = loss(replace(tokens, logprobs=leaf))
            (grad,) = torch.autograd.grad((tokens.weights * losses).sum(), leaf)
            tokens.logprobs.backward(grad * optimizer.loss_scale)
            policy.gather_gradients()
            gradients[padded.flat] = -grad / tokens.weights
            logprobs[padded.flat] = leaf.detach()
            if not bool(torch.isfinite(losses).all()):
                raise NonFinite("loss is not finite")
        steps.append(optimizer.step())
    anchor_logprobs = {"mu": flat.mu_logprobs, "old": flat.old_logprobs, "prox": flat.prox_logprobs}[train.anchor]
    assert anchor_logprobs is not None
    return weight_metrics(gradients, logprobs, anchor_logprobs, flat.mu_logprobs, flat.advantages) | optim_metrics(
        steps, train.max_grad_norm, optimizer
    )


def forward(policy: Policy, padded: PaddedBatch, flat: FlatTokens, weights: Tensor, temperature: float) -> Tokens:
    """The tokens of a micro-batch under the current policy, with gradient."""
    logits = response_logits(policy.model, padded.input_ids, padded.gather)
    return Tokens(
        logprobs=token_logprobs(logits, padded.targets, temperature),
        mu_logprobs=flat.mu_logprobs[padded.flat],
        advantages=flat.advantages[padded.flat],
        rollout_index=padded.rollout_index,
        weights=weights[padded.rollout_index],
        old_logprobs=None if flat.old_logprobs is None else flat.old_logprobs[padded.flat],
        prox_logprobs=None if flat.prox_logprobs is None else flat.prox_logprobs[padded.flat],
    )


def optim_metrics(steps: list[StepResult], max_grad_norm: float, optimizer: Optimizer) -> dict[str, float]:
    """`optim/*` over the updates of a batch; norms are before clipping, skipped steps have none."""
    norms = [step.grad_norm for step in steps if not step.skipped]
    result = {"optim/lr": optimizer.lr, "optim/skipped_steps": float(len(steps) - len(norms))}
    if optimizer.scaler:
        result["optim/loss_scale"] = optimizer.loss_scale
    if norms:
        result["optim/grad_norm"] = math.fsum(norms) / len(norms)
        result["optim/grad_norm_max"] = max(norms)
        result["optim/grad_norm_last"] = norms[-1]
        result["optim/clip_event_frac"] = sum(norm > max_grad_norm for norm in norms) / len(norms)
    return result
