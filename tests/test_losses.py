"""Every loss against its closed-form gradient in float64, and against its limits."""

from __future__ import annotations

from math import inf

import pytest
import torch

from drpo_bench.losses import LOSSES, make_loss
from drpo_bench.types import Tokens


def make_tokens(pi, mu, advantages, **fields) -> Tokens:
    """Tokens in float64 whose pi is a leaf with gradient."""
    pi, mu, advantages = (torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in (pi, mu, advantages))
    logprobs = pi.log().requires_grad_()
    ones = torch.ones_like(advantages)
    return Tokens(logprobs, mu.log(), advantages, torch.zeros(len(ones), dtype=torch.long), ones, **fields)


def gradient(loss, tokens: Tokens) -> torch.Tensor:
    """g = d(-L)/dx of every token."""
    values = loss(tokens)
    assert values.shape == tokens.logprobs.shape
    (grad,) = torch.autograd.grad(-values.sum(), tokens.logprobs)
    return grad


def random_tokens(count: int = 20_000, **fields) -> Tokens:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(3, count, generator=generator, dtype=torch.float64)
    pi, mu = uniform[:2].pow(2).clamp(1e-4, 1 - 1e-6)
    return make_tokens(pi, mu, 4 * uniform[2] - 2, **fields)


def closed_forms(tokens: Tokens) -> dict[str, tuple[dict, torch.Tensor]]:
    """Parameters and g of each loss, written from the catalogue and not from the code."""
    x, m, a = tokens.logprobs.detach(), tokens.mu_logprobs, tokens.advantages
    p, u, r, s = x.exp(), m.exp(), (x - m).exp(), a.sign()
    clipped = ((a > 0) & (r > 1.28)) | ((a < 0) & (r < 0.8))
    masked = ((a > 0) & (p - u > 0.2)) | ((a < 0) & (u - p > 0.1))
    return {
        "pg_is": ({}, a * r),
        "grpo": ({"clip_low": 0.2, "clip_high": 0.28}, torch.where(clipped, 0.0, a * r)),
        "spo": ({"epsilon": 0.3}, a * r * (1 - s * (r - 1) / 0.3)),
        "dppo_tv": (
            {"delta_low": 0.1, "delta_high": 0.2, "ratio_cap": 5.0},
            torch.where(masked, 0.0, a * r.clamp(max=5.0)),
        ),
        "drpo": ({"delta": 0.15}, a * r * (1 - s * (p - u) / 0.15)),
    }


@pytest.mark.parametrize("loss_id", LOSSES)
def test_autograd_equals_the_closed_form(loss_id):
    tokens = random_tokens()
    params, expected = closed_forms(tokens)[loss_id]
    torch.testing.assert_close(gradient(make_loss(loss_id, **params), tokens), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("loss_id", "params", "advantage", "weight"),
    [
        # pi = 0.3, mu = 0.2: r = 1.5, r - 1 = 0.5, pi - mu = 0.1
        ("pg_is", {}, 1.0, 1.0),
        ("grpo", {}, 1.0, 0.0),  # 1.5 > 1.28
        ("grpo", {}, -1.0, 1.0),  # moving back: never clipped
        ("spo", {"epsilon": 0.25}, 1.0, -1.0),  # 1 - 0.5 / 0.25
        ("spo", {"epsilon": 0.25}, -1.0, 3.0),
        ("dppo_tv", {}, 1.0, 1.0),  # 0.1 <= 0.15
        ("dppo_tv", {"delta_high": 0.05}, 1.0, 0.0),
        ("drpo", {"delta": 0.25}, 1.0, 0.6),  # 1 - 0.1 / 0.25
        ("drpo", {"delta": 0.25}, -1.0, 1.4),
    ],
)
def test_gradient_weight_by_hand(loss_id, params, advantage, weight):
    tokens = make_tokens(0.30, 0.20, advantage)
    assert gradient(make_loss(loss_id, **params), tokens).item() == pytest.approx(advantage * 1.5 * weight)


def test_limits_are_the_unregularised_surrogate():
    tokens = random_tokens()
    reference = gradient(make_loss("pg_is"), tokens)
    unlimited = {
        "drpo": {"delta": inf},
        "spo": {"epsilon": inf},
        "dppo_tv": {"delta_low": 1.0, "delta_high": 1.0},
        "grpo": {"clip_low": inf, "clip_high": inf},
    }
    for loss_id, params in unlimited.items():
        torch.testing.assert_close(gradient(make_loss(loss_id, **params), tokens), reference, rtol=1e-12, atol=0)


def test_drpo_is_spo_with_epsilon_delta_over_mu():
    tokens = random_tokens(count=50)
    drpo = gradient(make_loss("drpo", delta=0.15), tokens)
    for i in range(50):
        one = make_tokens(tokens.logprobs[i].detach().exp(), tokens.mu_logprobs[i].exp(), tokens.advantages[i])
        spo = make_loss("spo", epsilon=0.15 / tokens.mu_logprobs[i].exp().item())
        assert gradient(spo, one).item() == pytest.approx(drpo[i].item(), rel=1e-9)


def test_drpo_at_the_published_delta_is_within_eight_percent_of_pg_is():
    tokens = random_tokens()
    ratio = gradient(make_loss("drpo", delta=12.5), tokens) / gradient(make_loss("pg_is"), tokens)
    assert ratio.min() >= 0.92
    assert ratio.max() <= 1.08


@pytest.mark.parametrize("loss_id", LOSSES)
def test_on_policy_every_gradient_is_the_advantage(loss_id):
    tokens = make_tokens([0.1, 0.5, 0.9], [0.1, 0.5, 0.9], [1.0, -0.5, 2.0])
    torch.testing.assert_close(gradient(make_loss(loss_id), tokens), tokens.advantages)


@pytest.mark.parametrize("loss_id", LOSSES)
def test_zero_advantage_has_exactly_the_gradient_that_the_registry_declares(loss_id):
    tokens = make_tokens([0.9, 0.01], [0.1, 0.9], [0.0, 0.0])
    is_zero = bool((gradient(make_loss(loss_id), tokens) == 0).all())
    assert is_zero == LOSSES[loss_id].zero_advantage_zero_gradient


@pytest.mark.parametrize("loss_id", LOSSES)
def test_extreme_inputs_stay_finite(loss_id):
    tokens = make_tokens([1 - 1e-7, 1e-30, 1e-30, 1.0], [1e-30, 1 - 1e-7, 1e-30, 1.0], [1.0, -1.0, 0.0, -1.0])
    values = make_loss(loss_id)(tokens)
    assert torch.isfinite(values).all()
    assert torch.isfinite(gradient(make_loss(loss_id), tokens)).all()


@pytest.mark.parametrize("loss_id", LOSSES)
def test_the_anchor_replaces_mu_everywhere(loss_id):
    tokens = random_tokens(100)
    anchored = make_tokens(
        tokens.logprobs.detach().exp(), torch.full((100,), 0.37), tokens.advantages, old_logprobs=tokens.mu_logprobs
    )
    expected = gradient(make_loss(loss_id), tokens)
    torch.testing.assert_close(gradient(make_loss(loss_id, anchor="old"), anchored), expected)
    with pytest.raises(ValueError, match="needs prox_logprobs"):
        make_loss(loss_id, anchor="prox")(tokens)


def test_unknown_loss_and_bad_parameter():
    with pytest.raises(ValueError, match="unknown loss 'drop'"):
        make_loss("drop")
    with pytest.raises(ValueError, match="delta"):
        make_loss("drpo", delta=-1.0)
