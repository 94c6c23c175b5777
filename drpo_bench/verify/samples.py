"""Random response tokens in float64 on both sides of every boundary, as torch tokens and as numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from drpo_bench.losses import Loss
from drpo_bench.types import Tokens

VOCABULARY = 16
SCALES = (1e-4, 1e-3, 0.02, 0.1, 0.3, 1.0, 2.0)  # of the noise on a rollout's logits: from on policy to far off


@dataclass(frozen=True)
class Sample:
    """Tokens of whole rollouts, everything `[N]` unless it says otherwise; logprobs in float64.

    `full_*` [N, V] are whole distributions; `chosen` the sampled tokens.
    """

    advantages: np.ndarray
    rollout: np.ndarray
    chosen: np.ndarray
    full_pi: np.ndarray
    full_mu: np.ndarray
    full_old: np.ndarray
    full_prox: np.ndarray

    def of_chosen(self, full: np.ndarray) -> np.ndarray:
        """Logprobs of the sampled tokens under a whole distribution."""
        return full[np.arange(len(self.chosen)), self.chosen]

    @property
    def x(self) -> np.ndarray:
        """log pi."""
        return self.of_chosen(self.full_pi)

    @property
    def m(self) -> np.ndarray:
        """log mu."""
        return self.of_chosen(self.full_mu)

    def logprobs(self, policy: str) -> np.ndarray:
        """Of mu, old or prox."""
        return self.of_chosen({"mu": self.full_mu, "old": self.full_old, "prox": self.full_prox}[policy])

    def topk(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(pi, mu) logprobs [N, K+1]: mu's k likeliest tokens, then the sampled one, -inf if it is among them."""
        ids = np.argsort(-self.full_mu, axis=1, kind="stable")[:, :k]
        among = (ids == self.chosen[:, None]).any(1)
        columns = np.concatenate([ids, self.chosen[:, None]], 1)
        pi, mu = (np.take_along_axis(full, columns, 1).copy() for full in (self.full_pi, self.full_mu))
        mu[among, -1] = -np.inf
        return pi, mu

    def tokens(self, k: int = 0) -> Tokens:
        """The same as `Tokens`; log pi is a leaf with gradient."""
        pi, mu = (torch.from_numpy(values) for values in self.topk(k)) if k else (None, None)
        return Tokens(
            logprobs=torch.from_numpy(self.x.copy()).requires_grad_(),
            mu_logprobs=torch.from_numpy(self.m.copy()),
            advantages=torch.from_numpy(self.advantages),
            rollout_index=torch.from_numpy(self.rollout),
            weights=torch.ones(len(self.chosen), dtype=torch.float64),
            old_logprobs=torch.from_numpy(self.logprobs("old").copy()),
            prox_logprobs=torch.from_numpy(self.logprobs("prox").copy()),
            topk_mu_logprobs=mu,
            topk_logprobs=pi,
        )

    def at(self, places: np.ndarray) -> Sample:
        """The tokens at these places, in this order."""
        return Sample(*(getattr(self, name)[places] for name in self.__dataclass_fields__))


def make_sample(seed: int = 0, rollouts: int = 160, longest: int = 9, on_policy: bool = False) -> Sample:
    """Rollouts of 1 to `longest` tokens; each has an advantage (some 0) and a distance from mu of its own."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, rollouts)
    rollout = np.repeat(np.arange(rollouts), lengths)
    scale = rng.choice(SCALES, rollouts)[rollout][:, None] * (not on_policy)
    shape = (len(rollout), VOCABULARY)
    mu_logits = 2.5 * rng.standard_normal(shape)
    old_logits = mu_logits + 0.3 * scale * rng.standard_normal(shape)
    prox_logits = old_logits + 0.5 * scale * rng.standard_normal(shape)
    pi_logits = prox_logits + scale * rng.standard_normal(shape)
    # A common push on the sampled token moves sequence ratios too, whose token noise averages out.
    chosen = rng.integers(0, VOCABULARY, len(rollout))
    push = scale[:, 0] * rng.standard_normal(rollouts)[rollout]
    pi_logits[np.arange(len(chosen)), chosen] += push
    size = rng.choice([0.0, 0.2, 2.0], rollouts, p=[0.15, 0.25, 0.6])
    advantages = (size * rng.uniform(-1, 1, rollouts))[rollout]
    full = [log_softmax(logits) for logits in (pi_logits, mu_logits, old_logits, prox_logits)]
    return Sample(advantages, rollout, chosen, *full)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of each row."""
    shifted = logits - logits.max(1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def gradient(loss: Loss, tokens: Tokens, weights: Tensor | None = None) -> np.ndarray:
    """g = d(-sum of weight * L)/dx of every token, by autograd; weights are 1 unless given."""
    values = loss(tokens)
    assert values.shape == tokens.logprobs.shape
    total = values.sum() if weights is None else (weights * values).sum()
    (grad,) = torch.autograd.grad(-total, tokens.logprobs)
    return grad.numpy()


def leaf_at(tokens: Tokens, places: Tensor) -> Tokens:
    """The tokens at these places, with a leaf of their own."""
    chosen = {
        name: value[places]
        for name in tokens.__dataclass_fields__
        if isinstance(value := getattr(tokens, name), Tensor)
    }
    chosen["logprobs"] = chosen["logprobs"].detach().requires_grad_()
    return replace(tokens, **chosen)  # type: ignore[arg-type]
