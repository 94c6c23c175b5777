"""Gradient weights of every loss on a grid of tokens, rare and frequent: the numbers behind `losses plot`."""

from __future__ import annotations

from math import inf, log10
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from drpo_bench.config import canonical
from drpo_bench.losses import LOSSES, Loss, make_loss
from drpo_bench.types import Tokens

FREQUENCIES = {"rare": 0.001, "frequent": 0.5}  # mu of the two tokens
POINTS = 201
RATIOS = (0.05, 20.0)

# What is drawn beside each loss's controlled setting: the published radius of DRPO and SPO.
EXTRA: list[tuple[str, dict[str, Any]]] = [
    ("drpo", {"delta": 12.5}),
    ("spo", {"epsilon": 12.5}),
    ("penalty", {"kind": "kl"}),
    ("penalty", {"kind": "reverse_kl"}),
    ("penalty", {"kind": "k2"}),
    ("penalty", {"kind": "tv"}),
    ("penalty", {"kind": "binary_kl"}),
    ("penalty", {"kind": "chi2"}),
]


def weight_rows() -> list[dict[str, Any]]:
    """A row a loss, setting, token, advantage and point: ratio, shift = pi - mu, and the weight w = g / (A r).

    Every response is one token long, so sequence losses show what they do to it; losses of minibatch scope are drawn
    for tokens that they did not select, top-k losses for a top-k that is the sampled token alone.
    """
    rows: list[dict[str, Any]] = []
    settings: list[tuple[str, dict[str, Any]]] = [*((loss_id, {}) for loss_id in LOSSES), *EXTRA]
    for loss_id, params in track(settings, "gradient weights", console=Console(stderr=True), transient=True):
        loss = make_loss(loss_id, **params)
        for token, mu in FREQUENCIES.items():
            ratio = grid(mu)
            for advantage in (1.0, -1.0):
                weights = gradient_weights(loss, mu, ratio, advantage)
                for r, w in zip(ratio.tolist(), weights.tolist(), strict=True):
                    rows.append(
                        {
                            "loss": loss_id,
                            "loss_params": label(loss),
                            "is_default": not params,
                            "token": token,
                            "mu": mu,
                            "advantage": advantage,
                            "ratio": r,
                            "shift": mu * (r - 1),
                            "weight": w,
                        }
                    )
    return rows


def grid(mu: float) -> torch.Tensor:
    """Ratios at which pi stays below 1: even in the logarithm, and as many more even in pi itself."""
    top = min(RATIOS[1], 0.999 / mu)
    in_log = torch.logspace(log10(RATIOS[0]), log10(top), POINTS, dtype=torch.float64)
    in_pi = torch.linspace(0.001, 0.999, POINTS, dtype=torch.float64) / mu
    points: torch.Tensor = torch.cat([in_log, in_pi]).unique()
    return points


def gradient_weights(loss: Loss, mu: float, ratio: torch.Tensor, advantage: float) -> torch.Tensor:
    """w [N] of responses of one token whose mu is `mu` and whose pi is `ratio` times that."""
    logprobs = (mu * ratio).log().requires_grad_()
    mu_logprobs = torch.full_like(ratio, mu).log()
    advantages = torch.full_like(ratio, advantage)
    nothing = torch.full_like(ratio, -inf)
    tokens = Tokens(
        logprobs,
        mu_logprobs,
        advantages,
        torch.arange(len(ratio)),
        torch.ones_like(ratio),
        old_logprobs=mu_logprobs,
        prox_logprobs=mu_logprobs,
        topk_mu_logprobs=torch.stack([mu_logprobs, nothing], 1),
        topk_logprobs=torch.stack([logprobs.detach(), nothing], 1),
        selected=torch.zeros(len(ratio), dtype=torch.bool),
    )
    (grad,) = torch.autograd.grad(-loss(tokens).sum(), logprobs)
    return grad / (advantages * ratio)


def label(loss: Loss) -> str:
    """Parameters that are set, as in the tables: `delta=0.15`."""
    values = canonical({name: value for name, value in loss.config.parameters.items() if value is not None})
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
    )
