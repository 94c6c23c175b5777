"""What must hold of each loss: closed form, on policy, A = 0, any split and order, masked tokens, extreme inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drpo_bench.losses import LOSSES, Loss, make_loss
from drpo_bench.types import Anchor, Tokens
from drpo_bench.verify.closed_forms import CLOSED_FORMS, closed_form, ppo_keeps
from drpo_bench.verify.samples import Sample, gradient, leaf_at, make_sample
from drpo_bench.verify.variants import VARIANTS

ANCHORS: tuple[Anchor, ...] = ("mu", "old", "prox")
# A hard mask drops these tokens: (log pi, log anchor, A) with a ratio beyond e^20 on the side that A pushes to.
OVERFLOWING = {"grpo", "minirl", "decoupled_ppo", "dis", "gspo", "gmpo", "clip_cov", "dppo_tv", "dppo_kl", "cppo"}
OVERFLOWING |= {"dppo_topk_tv", "dppo_topk_kl", "opsm"}


@dataclass(frozen=True)
class Check:
    """One thing that must hold: the largest error that was seen, and how much is allowed."""

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether it holds; an error that is not a number does not."""
        return bool(self.error <= self.tolerance)


def relative_error(value: np.ndarray, expected: np.ndarray) -> float:
    """max |value - expected| / max(1, |expected|); infinite where a value is not finite."""
    if not np.isfinite(value).all():
        return float("inf")
    return float((np.abs(value - expected) / np.maximum(1.0, np.abs(expected))).max())


def resolved(loss_id: str, **params: Any) -> dict[str, Any]:
    """All parameters of a loss with its defaults, as its closed form takes them."""
    return LOSSES[loss_id].config(**params).model_dump(exclude={"id", "preset"})


def topk_of(loss: Loss) -> int:
    """How many of mu's likeliest tokens a sample must have for the loss."""
    return min(loss.config.topk, 15)


def check_closed_form(loss_id: str) -> Check:
    """Autograd against the closed form, at every variant's parameters and every anchor."""
    if loss_id == "clip_cov":
        return check_clip_cov()
    errors = []
    for seed, params in enumerate([{}, *VARIANTS.get(loss_id, [])]):
        for anchor in ANCHORS:
            sample, loss = make_sample(seed), make_loss(loss_id, anchor, **params)
            expected = closed_form(loss_id, sample, anchor, resolved(loss_id, **params))
            errors.append(relative_error(gradient(loss, sample.tokens(topk_of(loss))), expected))
    return Check(f"{loss_id}: gradient is the closed form", max(errors), 1e-9)


def check_clip_cov() -> Check:
    """PPO's gradient but for the right number of dropped tokens, all of which qualify and not always the same."""
    sample, loss = make_sample(), make_loss("clip_cov", select_frac=0.05, cov_low=0.1, cov_high=1.0)
    tokens = sample.tokens()
    g, ratio = gradient(loss, tokens), np.exp(sample.x - sample.m)
    cov = (sample.advantages - sample.advantages.mean()) * (sample.x - sample.x.mean())
    keeps = ppo_keeps(sample.advantages, ratio, 0.2, 0.2)
    candidates = (cov > 0.1) & (cov < 1.0) & keeps
    selected = loss.select(tokens).numpy()
    others = loss.select(tokens, seed=1).numpy()
    fair = selected.sum() == others.sum() == max(1, int(0.05 * len(cov))) and (selected != others).any()
    fair = fair and candidates[selected].all() and candidates[others].all()
    everything = make_loss("clip_cov", select_frac=1.0, cov_low=0.1, cov_high=1.0).select(tokens).numpy()
    fair = fair and (everything == candidates).all() and not make_loss("clip_cov", select_frac=0.0).select(tokens).any()
    expected = np.where(keeps & ~selected, sample.advantages * ratio, 0.0)
    return Check("clip_cov: gradient is the closed form", relative_error(g, expected) if fair else float("inf"), 1e-9)


def check_on_policy(loss_id: str) -> Check:
    """With pi = mu = old = prox the gradient is the advantage. Of the penalties, k1's constant slope is left out."""
    sample = make_sample(on_policy=True)
    params: list[dict[str, Any]] = [{}]
    if loss_id == "penalty":
        params = [{"kind": kind} for kind in ("k2", "k3", "tv", "binary_kl", "chi2")]
    losses = [make_loss(loss_id, **p) for p in params]
    errors = [
        relative_error(gradient(loss, sample.tokens(topk_of(loss))), expected_on_policy(loss, sample))
        for loss in losses
    ]
    return Check(f"{loss_id}: on policy the gradient is A", max(errors), 1e-9)


def expected_on_policy(loss: Loss, sample: Sample) -> np.ndarray:
    """A; clip_cov drops its few tokens on policy too."""
    if loss.id != "clip_cov":
        return sample.advantages
    return np.where(loss.select(sample.tokens()).numpy(), 0.0, sample.advantages)


def check_zero_advantage(loss_id: str) -> Check:
    """Tokens with A = 0 have a gradient of exactly 0 where the loss declares it, and some gradient where not."""
    sample = make_sample()
    sample = replace(sample, advantages=np.zeros_like(sample.advantages))
    wrong = 0
    for p in [{}, *VARIANTS.get(loss_id, [])]:
        loss = make_loss(loss_id, **p)
        is_zero = bool((gradient(loss, sample.tokens(topk_of(loss))) == 0).all())
        wrong += is_zero != loss.zero_advantage_zero_gradient
    return Check(f"{loss_id}: A = 0 has the gradient that it declares", wrong, 0)


def check_split_and_order(loss_id: str) -> Check:
    """Whole rollouts in any split and any order, with any padding, give each token the same gradient."""
    sample = make_sample(seed=3)
    params = VARIANTS[loss_id][0] if loss_id in VARIANTS else {}
    loss = make_loss(loss_id, **params)
    tokens = sample.tokens(topk_of(loss))
    if loss.scope == "minibatch":
        tokens = replace(tokens, selected=loss.select(tokens))
    whole = gradient(loss, tokens)
    rollouts = np.unique(sample.rollout)
    errors = []
    for parts in (1, 2, 7, len(rollouts)):
        order = np.random.default_rng(parts).permutation(rollouts)
        if loss.scope == "minibatch":  # the choice itself must not depend on the order either
            places = torch.from_numpy(places_of(sample, order))
            shuffled = loss.select(replace(leaf_at(tokens, places), selected=None))
            errors.append(float((shuffled != tokens.selected[places]).any()) if tokens.selected is not None else 1.0)
        for part in np.array_split(order, parts):
            places = torch.from_numpy(places_of(sample, part))
            errors.append(relative_error(gradient(loss, leaf_at(tokens, places)), whole[places.numpy()]))
    return Check(f"{loss_id}: micro-batch split, order and padding do not matter", max(errors), 1e-12)


def places_of(sample: Sample, rollouts: np.ndarray) -> np.ndarray:
    """Places of the tokens of these rollouts, rollout by rollout."""
    return np.concatenate([np.flatnonzero(sample.rollout == rollout) for rollout in rollouts])


def check_overflow(loss_id: str) -> Check:
    """Where the ratio overflows, gradients are finite, and exactly 0 where the loss masks the token."""
    log_pi, log_mu = torch.tensor([-1e-8, -200.0]), torch.tensor([-1e4, -1e-8])
    advantages = torch.tensor([1.0, -1.0])
    tokens = few_tokens(log_pi, log_mu, advantages)
    loss = make_loss(loss_id)
    if loss.scope == "minibatch":
        tokens = replace(tokens, selected=torch.zeros(2, dtype=torch.bool))
    g = gradient(loss, tokens)
    error = float("inf") if not np.isfinite(g).all() else float(np.abs(g).max()) if loss_id in OVERFLOWING else 0.0
    return Check(f"{loss_id}: an overflowing ratio leaks nothing", error, 0.0)


def check_extremes(loss_id: str) -> Check:
    """mu = 1e-30, pi = 1 - 1e-7, A = 0, responses of one token, float32: loss and gradient are finite."""
    rows = [(p, u, a) for p in (1 - 1e-7, 1e-30, 1.0) for u in (1e-30, 1 - 1e-7, 1.0) for a in (1.0, -1.0, 0.0)]
    pi, mu, advantages = torch.tensor(rows, dtype=torch.float64).float().T
    not_finite = 0
    for params in [{}, *VARIANTS.get(loss_id, [])]:
        loss = make_loss(loss_id, **params)
        tokens = few_tokens(pi.double().log().float(), mu.double().log().float(), advantages)
        values, g = loss(tokens), gradient(loss, tokens)
        not_finite += int((~torch.isfinite(values)).sum()) + int((~np.isfinite(g)).sum())
    return Check(f"{loss_id}: extreme inputs stay finite", not_finite, 0)


def few_tokens(log_pi: Tensor, log_mu: Tensor, advantages: Tensor) -> Tokens:
    """Responses of one token each, whose other anchors are mu, and whose top-k is the sampled token."""
    none = torch.full_like(log_mu, -torch.inf)
    return Tokens(
        logprobs=log_pi.clone().requires_grad_(),
        mu_logprobs=log_mu,
        advantages=advantages,
        rollout_index=torch.arange(len(log_pi)),
        weights=torch.ones_like(log_pi),
        old_logprobs=log_mu,
        prox_logprobs=log_mu,
        topk_mu_logprobs=torch.stack([log_mu, none], 1),
        topk_logprobs=torch.stack([log_pi, none], 1),
    )


PER_LOSS: tuple[Callable[[str], Check], ...] = (
    check_closed_form,
    check_on_policy,
    check_zero_advantage,
    check_split_and_order,
    check_overflow,
    check_extremes,
)


def checks_of(loss_id: str) -> Iterator[Check]:
    """Every check of one loss."""
    for check in PER_LOSS:
        yield check(loss_id)


assert set(CLOSED_FORMS) | {"clip_cov"} == set(LOSSES), "a loss has no closed form to be checked against"
