"""The updates of one rollout batch: minibatches of whole groups, one optimizer step each, one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from drpo_bench.advantages import group_advantages
from drpo_bench.batching import MicroBatch, micro_batches, minibatch_groups, token_weights
from drpo_bench.config import RunConfig
from drpo_bench.head import score_tokens
from drpo_bench.losses import Loss
from drpo_bench.metrics import correction_metrics, weight_metrics
from drpo_bench.models import Policy, response_hidden
from drpo_bench.ops import kl_k3
from drpo_bench.optim import NonFinite, Optimizer, StepResult
from drpo_bench.rollout.batch import RolloutBatch
from drpo_bench.routing import padded_routes, routers, routing
from drpo_bench.types import Tokens


@dataclass(frozen=True)
class FlatTokens:
    """Constant per-token quantities of a whole rollout batch, [N] or [N, K+1] in the order of its rollouts."""

    advantages: Tensor
    mu_logprobs: Tensor
    old_logprobs: Tensor | None = None
    prox_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    topk_ids: Tensor | None = None
    topk_mu_logprobs: Tensor | None = None

    def at(self, places: Tensor) -> FlatTokens:
        """The tokens at these places."""
        return self.each(lambda values: values[places])

    def each(self, change: Callable[[Tensor], Tensor]) -> FlatTokens:
        """Every quantity that is there, changed."""
        present = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(self, **{name: change(value) for name, value in present.items()})


def flatten(
    batch: RolloutBatch,
    advantage: str,
    device: torch.device,
    prox_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
) -> FlatTokens:
    """Everything the losses read, one value a response token."""
    per_rollout = group_advantages(batch.rewards, advantage).flatten()
    advantages = per_rollout.repeat_interleave(torch.tensor(batch.lengths))
    topk_ids, topk_mu_logprobs = batch.topk or (None, None)
    tokens = FlatTokens(
        advantages=advantages,
        mu_logprobs=batch.mu_logprobs,
        old_logprobs=batch.old_logprobs,
        prox_logprobs=prox_logprobs,
        ref_logprobs=ref_logprobs,
        topk_ids=topk_ids,
        topk_mu_logprobs=topk_mu_logprobs,
    )
    return tokens.each(lambda values: values.to(device))


class Updater:
    """The updates of one rollout batch; `run` does them all and returns `update/*` and `optim/*`."""

    def __init__(
        self, policy: Policy, optimizer: Optimizer, loss: Loss, batch: RolloutBatch, flat: FlatTokens, config: RunConfig
    ) -> None:
        self.policy, self.optimizer, self.loss, self.batch, self.flat = policy, optimizer, loss, batch, flat
        self.config, self.train = config, config.train
        self.gradients = torch.zeros_like(flat.mu_logprobs)  # d(-L)/dx of every token, before its weight
        self.logprobs = flat.mu_logprobs.clone()  # pi at the moment of each token's update
        self.advantages = group_advantages(batch.rewards, self.train.advantage).flatten()  # of each rollout
        self.routes = batch.replayed(config.train.routing_replay)
        self.multipliers: list[Tensor] = []  # the rollout correction's, of the tokens that were trained on

    def run(self) -> dict[str, float]:
        """All optimizer steps. Minibatches and weights are fixed first; then tokens without gradient are skipped.

        A minibatch with nothing left still takes its optimizer step. Raises NonFinite.
        """
        batch, train = self.batch, self.train
        lengths, group_size = torch.tensor(batch.lengths), batch.rewards.shape[1]
        steps: list[StepResult] = []
        minibatches = minibatch_groups(len(batch.rewards), train.updates_per_batch, self.config.seed, batch.step)
        for number, groups in enumerate(minibatches):
            members = [group * group_size + sample for group in groups for sample in range(group_size)]
            horizon = train.horizon or self.config.rollout.max_new_tokens
            weights = torch.zeros(len(lengths))
            weights[members] = token_weights(lengths[members], train.aggregation, horizon)
            weights = weights.to(self.policy.device)
            selected = self.select(members, weights, number) if self.loss.scope == "minibatch" else None
            for part in self.micro_batches(self.with_gradient(members)):
                self.backward(part, weights, selected)
            steps.append(self.optimizer.step())
        anchor = self.flat.mu_logprobs if train.anchor == "mu" else getattr(self.flat, f"{train.anchor}_logprobs")
        measured = weight_metrics(self.gradients, self.logprobs, anchor, self.flat.mu_logprobs, self.flat.advantages)
        measured |= correction_metrics(self.multipliers)
        return measured | optim_metrics(steps, train.max_grad_norm, self.optimizer)

    def with_gradient(self, members: Sequence[int]) -> Sequence[int]:
        """The rollouts of a minibatch that have a gradient: A = 0 has none, unless loss or coefficient say so."""
        if not self.loss.zero_advantage_zero_gradient or self.train.kl_coef or self.train.entropy_coef:
            return members
        return [index for index in members if self.advantages[index] != 0]

    def micro_batches(self, members: Sequence[int]) -> Iterator[MicroBatch]:
        """Whole rollouts within the token budget, laid out one after the other."""
        return micro_batches(self.batch.rollouts, members, self.train.microbatch_tokens, self.policy.device)

    @torch.no_grad()
    def select(self, members: Sequence[int], weights: Tensor, minibatch: int) -> Tensor:
        """What a loss of minibatch scope chooses from all tokens of the minibatch, bool over the batch's tokens."""
        parts = [(part.flat, self.forward(part, weights)[0]) for part in self.micro_batches(members)]
        whole = concatenate([tokens for _, tokens in parts])
        seed = (self.config.seed * 1_000_003 + self.batch.step) * 1_000_003 + minibatch
        selected = torch.zeros_like(self.flat.mu_logprobs, dtype=torch.bool)
        selected[torch.cat([places for places, _ in parts])] = self.loss.select(whole, seed)
        return selected

    def backward(self, part: MicroBatch, weights: Tensor, selected: Tensor | None) -> None:
        """Add a micro-batch's gradient to the policy's.

        The loss is differentiated with respect to pi's logprobs first: so each token's gradient is measured, with the
        same code for every loss.
        """
        tokens, entropy = self.forward(part, weights)
        leaf = tokens.logprobs.detach().requires_grad_()
        at_leaf = replace(tokens, logprobs=leaf, selected=None if selected is None else selected[part.flat])
        losses, multiplier = self.loss.with_multiplier(at_leaf)
        if multiplier is not None:
            self.multipliers.append(multiplier)
        if broken := int((~torch.isfinite(losses)).sum()):
            raise NonFinite(f"the loss of {broken} of {len(losses)} tokens is not finite")
        (grad,) = torch.autograd.grad((tokens.weights * losses).sum(), leaf)
        self.gradients[part.flat] = -grad / tokens.weights
        self.logprobs[part.flat] = leaf.detach()
        if tokens.ref_logprobs is not None:
            divergence = self.train.kl_coef * kl_k3(tokens.ref_logprobs, leaf)  # KL(pi || ref) on samples of pi
            grad = grad + torch.autograd.grad((tokens.weights * divergence).sum(), leaf)[0]
        outputs, grads = [tokens.logprobs], [grad]
        if entropy is not None:
            outputs, grads = [*outputs, entropy], [*grads, -self.train.entropy_coef * tokens.weights]
        torch.autograd.backward(outputs, [g * self.optimizer.loss_scale for g in grads])
        self.policy.gather_gradients()

    def forward(self, part: MicroBatch, weights: Tensor) -> tuple[Tokens, Tensor | None]:
        """The tokens of a micro-batch under the current policy and, where it is trained on, their entropy."""
        flat = self.flat.at(part.flat)
        with routing(routers(self.policy.model), padded_routes(self.routes, part)):
            hidden = response_hidden(self.policy.model, part)
        temperature, entropy = self.config.rollout.temperature, self.train.entropy_coef > 0
        scores = score_tokens(self.policy.model, hidden, part.targets, temperature, flat.topk_ids, entropy)
        tokens = Tokens(
            logprobs=scores.logprobs,
            mu_logprobs=flat.mu_logprobs,
            advantages=flat.advantages,
            rollout_index=part.rollout_index,
            weights=weights[part.rollout_index],
            old_logprobs=flat.old_logprobs,
            prox_logprobs=flat.prox_logprobs,
            ref_logprobs=flat.ref_logprobs,
            topk_mu_logprobs=flat.topk_mu_logprobs,
            topk_logprobs=scores.topk_logprobs,
        )
        return tokens, scores.entropy


def concatenate(parts: Sequence[Tokens]) -> Tokens:
    """The tokens of several micro-batches as one."""
    present = [f.name for f in fields(Tokens) if isinstance(getattr(parts[0], f.name), Tensor)]
    merged: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in present}
    return replace(parts[0], **merged)


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
