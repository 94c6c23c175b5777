"""The loss library: every check of `losses verify`, gradient weights by hand, refusals, and the registry's words."""

from __future__ import annotations

import json
from math import exp, inf, log

import pytest
import torch
from pydantic import ValidationError

from drpo_bench.correction_configs import MISSeq, TISSeq, TISToken
from drpo_bench.loss_configs import LOSS_IDS
from drpo_bench.losses import LOSSES, make_loss
from drpo_bench.losses.covariance import token_keys
from drpo_bench.losses.listing import SECTIONS, describe, registry_rows
from drpo_bench.ops import binary_kl
from drpo_bench.types import Tokens
from drpo_bench.verify.checks import PER_LOSS
from drpo_bench.verify.limits import limits
from drpo_bench.verify.shared import shared


def make_tokens(pi, mu, advantages, **fields) -> Tokens:
    """Tokens in float64, one response each unless `rollout_index` says otherwise, whose log pi is a leaf."""
    pi, mu, advantages = (torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in (pi, mu, advantages))
    logprobs = pi.log().requires_grad_()
    index = fields.pop("rollout_index", list(range(len(pi))))
    return Tokens(logprobs, mu.log(), advantages, torch.tensor(index), torch.ones_like(advantages), **fields)


def gradient(loss, tokens: Tokens) -> torch.Tensor:
    """g = d(-L)/dx of every token."""
    values = loss(tokens)
    assert values.shape == tokens.logprobs.shape
    (grad,) = torch.autograd.grad(-values.sum(), tokens.logprobs)
    return grad


@pytest.mark.parametrize("check", PER_LOSS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("loss_id", LOSSES)
def test_checks_of_each_loss(loss_id, check):
    result = check(loss_id)
    assert result.ok, result


def test_limits_and_special_cases():
    failed = [check for check in limits() if not check.ok]
    assert not failed


def test_aggregation_advantages_corrections_and_refusals():
    failed = [check for check in shared() if not check.ok]
    assert not failed


def test_registry_and_config_union_have_the_same_losses():
    assert tuple(LOSSES) == LOSS_IDS
    assert all(spec.config.model_fields["id"].default == loss_id for loss_id, spec in LOSSES.items())
    assert all((spec.config.scope == "minibatch") == (spec.select is not None) for spec in LOSSES.values())
    assert len(LOSSES) >= 24


R, P, U = 1.5, 0.3, 0.2  # pi = 0.3, mu = 0.2: pi / mu = 1.5, pi - mu = 0.1
SIGMOID_HALF = 1 / (1 + exp(-0.5))


@pytest.mark.parametrize(
    ("loss_id", "params", "advantage", "weight"),
    [
        ("reinforce", {}, 1.0, 1 / R),  # g = A
        ("pg_is", {}, 1.0, 1.0),
        ("pg_tis", {"ratio_cap": 1.2}, 1.0, 1.2 / R),
        ("cispo", {"clip_low": 0.1, "clip_high": 0.3}, -1.0, 1.3 / R),  # clipped though it moves back
        ("topr", {}, 1.0, 1 / R),  # no ratio for A > 0
        ("topr", {}, -1.0, 1 / R),  # min(1.5, 1)
        ("vespo", {}, 1.0, R**2 * exp(3 * (1 - R)) / R),
        ("vespo", {}, -1.0, R**3 * exp(2 * (1 - R)) / R),
        ("dro", {"coef": 0.5}, 2.0, (2.0 - 0.5 * log(R)) / (2 * R)),
        ("grpo", {}, 1.0, 0.0),  # 1.5 > 1.28
        ("grpo", {}, -1.0, 1.0),  # moving back: never clipped
        ("grpo", {"dual_clip": 1.4}, -1.0, 0.0),
        ("relaxed_grpo", {}, 1.0, 0.0),
        ("relaxed_grpo", {"alpha_high": 0.25}, 1.0, 1.0),  # mu = 0.2 is rare enough
        ("minirl", {"mask_anchor": None}, 1.0, 0.0),
        ("minirl", {"mask_anchor": None, "ratio_cap": 1.2}, -1.0, 1.2 / R),
        ("decoupled_ppo", {"mask_anchor": "mu"}, 1.0, 0.0),
        ("dis", {"clip_high": 0.4}, -1.0, 0.0),  # whatever the sign
        ("dis", {}, 1.0, 1.0),
        ("sapo", {}, 1.0, 4 * SIGMOID_HALF * (1 - SIGMOID_HALF)),
        ("gspo", {}, 1.0, 0.0),
        ("gspo", {"clip_high": 0.6}, 1.0, 1.0),
        ("gmpo", {}, 1.0, 0.0),  # log 1.5 = 0.405 > 0.4
        ("gmpo", {"clip_high": 0.41}, 1.0, 1.0),
        ("opsm", {}, -1.0, 1.0),
        ("kl_cov", {"select_frac": 1.0, "coef": 0.5}, 2.0, (2 * R - 0.5) / (2 * R)),
        ("spo", {"epsilon": 0.25}, 1.0, -1.0),  # 1 - 0.5 / 0.25
        ("spo", {"epsilon": 0.25}, -1.0, 3.0),
        ("dppo_tv", {}, 1.0, 1.0),  # 0.1 <= 0.15
        ("dppo_tv", {"delta_high": 0.05}, 1.0, 0.0),
        ("dppo_tv", {"delta_low": 0.05}, -1.0, 1.0),  # p rose: not what A < 0 pushes to
        # 0.2 log(2/3) + 0.8 log(8/7) = 0.0257
        ("dppo_kl", {"delta_high": 0.0256}, 1.0, 0.0),
        ("dppo_kl", {"delta_high": 0.0258}, 1.0, 1.0),
        ("cppo", {}, 1.0, 1.0),
        ("cppo", {"delta": 0.09}, 1.0, 0.0),
        ("ipo", {"kl_coef": 0.0, "delta": 0.09}, -1.0, 0.0),  # both directions
        ("ipo", {"kl_coef": 0.5}, 1.0, (R - log(R)) / R),
        ("neg_mask", {"delta": 0.05}, -1.0, 1.0),  # p rose
        ("drpo", {"delta": 0.25}, 1.0, 0.6),  # 1 - 0.1 / 0.25
        ("drpo", {"delta": 0.25}, -1.0, 1.4),
        ("mask_drpo", {"delta": 0.25}, 1.0, 1.0),  # 0.1 <= 0.15
        ("mask_drpo", {"delta": 0.25, "delta_mask": 0.05}, 1.0, 0.6),
        ("mask_drpo", {"delta": 0.25, "delta_mask": 0.05}, -1.0, 1.0),
        ("mask_drpo", {"delta": 0.25, "delta_mask": 0.05, "mask_side": "both"}, -1.0, 1.4),
        ("mask_drpo", {"delta": 0.25, "delta_mask": 0.05, "continuous": True}, 1.0, 0.8),  # 1 - 0.05 / 0.25
        ("drpo_no_abs_advantage", {"delta": 0.25}, 2.0, 0.8),  # 1 - 0.1 / (0.25 * 2)
        ("penalty", {"kind": "kl", "coef": 0.5}, 1.0, (R + 0.5) / R),
        ("penalty", {"kind": "reverse_kl", "coef": 0.5}, 1.0, 1 - 0.5 * (log(R) + 1)),
        ("penalty", {"kind": "k2", "coef": 0.5}, 1.0, (R - 0.5 * log(R)) / R),
        ("penalty", {"kind": "k3", "coef": 0.5}, 1.0, (R - 0.25) / R),
        ("penalty", {"kind": "tv", "coef": 0.5}, 1.0, 0.75),
        ("penalty", {"kind": "binary_kl", "coef": 0.5}, 1.0, (R - 0.5 * 0.1 / 0.7) / R),
        ("penalty", {"kind": "chi2", "coef": 0.5}, 1.0, 1 - 0.5 * 0.5),
        ("penalty", {"kind": "tv", "coef": 0.5, "weight_by_abs_advantage": False}, 2.0, 1 - 0.125),
    ],
)
def test_gradient_weight_by_hand(loss_id, params, advantage, weight):
    tokens = make_tokens(P, U, advantage)
    assert gradient(make_loss(loss_id, **params), tokens).item() == pytest.approx(advantage * R * weight)


def test_top_k_masks_by_hand():
    # Three tokens; mu = (0.5, 0.3, 0.2), pi = (0.2, 0.5, 0.3), the last is sampled: its own shift is 0.1.
    mu, pi = torch.tensor([[0.5, 0.3, 0.2]]).double().log(), torch.tensor([[0.2, 0.5, 0.3]]).double().log()
    for k, tv in ((1, 0.3), (2, 0.3)):  # k = 1: (0.5, 0.2, rest 0.3) against (0.2, 0.3, rest 0.5)
        columns = [*range(k), 2]
        tokens = make_tokens(0.3, 0.2, 1.0, topk_mu_logprobs=mu[:, columns], topk_logprobs=pi[:, columns])
        for delta, weight in ((tv + 0.01, 1.0), (tv - 0.01, 0.0)):
            loss = make_loss("dppo_topk_tv", k=k, delta_high=delta)
            assert gradient(loss, tokens).item() == pytest.approx(R * weight)
    # `replace` with k = 1 keeps the sampled token alone: binary, 0.1
    tokens = make_tokens(0.3, 0.2, 1.0, topk_mu_logprobs=mu[:, [0, 2]], topk_logprobs=pi[:, [0, 2]])
    assert gradient(make_loss("dppo_topk_tv", k=1, replace=True, delta_high=0.11), tokens).item() == pytest.approx(R)
    assert gradient(make_loss("dppo_topk_tv", k=1, replace=True, delta_high=0.09), tokens).item() == 0.0


def test_gspo_by_hand_on_two_tokens():
    tokens = make_tokens([0.4, 0.1], [0.2, 0.2], [1.0, 1.0], rollout_index=[7, 7])  # ratios 2 and 1/2: S = 1
    torch.testing.assert_close(gradient(make_loss("gspo"), tokens), torch.ones(2, dtype=torch.float64))
    tokens = make_tokens([0.4, 0.2], [0.2, 0.2], [1.0, 1.0], rollout_index=[7, 7])  # S = sqrt 2
    expected = torch.full((2,), 2**0.5, dtype=torch.float64)
    torch.testing.assert_close(gradient(make_loss("gspo", clip_high=0.5), tokens), expected)


def test_drpo_at_the_published_delta_warns_and_is_within_eight_percent_of_pg_is():
    config = LOSSES["drpo"].config(delta=12.5)
    assert "the boundary cannot be reached" in config.warnings()[0]
    assert "[0.92, 1.08]" in config.warnings()[0]
    assert not LOSSES["drpo"].config(delta=0.99).warnings()
    grid = torch.linspace(0.001, 0.999, 40, dtype=torch.float64)
    tokens = make_tokens(grid.repeat(40), grid.repeat_interleave(40), torch.tensor([1.0, -1.0]).repeat(800))
    ratio = gradient(make_loss("drpo", delta=12.5), tokens) / gradient(make_loss("pg_is"), tokens)
    assert ratio.min() >= 0.92
    assert ratio.max() <= 1.08


def test_corrections_by_hand():
    # old / mu = 2 and 1/2 in one response, 3 in another
    old = torch.tensor([0.4, 0.1, 0.6], dtype=torch.float64).log()
    fields = {"old_logprobs": old, "rollout_index": [0, 0, 1]}
    tokens = make_tokens([0.4, 0.1, 0.6], [0.2, 0.2, 0.2], [1.0, 1.0, 1.0], **fields)
    token = gradient(make_loss("grpo", "old", TISToken(cap=1.5)), tokens)
    sequence = gradient(make_loss("grpo", "old", TISSeq(cap=1.5)), tokens)
    masked = gradient(make_loss("gspo", "old", MISSeq(cap=2.5)), tokens)
    assert token.tolist() == pytest.approx([1.5, 0.5, 1.5])
    assert sequence.tolist() == pytest.approx([1.0, 1.0, 1.5])
    assert masked.tolist() == pytest.approx([1.0, 1.0, 0.0])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="unknown loss 'drop'"):
        make_loss("drop")
    for params in ({"delta": -1.0}, {"delta": float("nan")}, {"delta": "much"}, {"dleta": 1.0}):
        with pytest.raises(ValidationError, match=next(iter(params))):
            make_loss("drpo", **params)
    with pytest.raises(ValidationError, match="cov_low"):
        make_loss("clip_cov", cov_low=2.0, cov_high=1.0)
    with pytest.raises(ValueError, match=r"correction\.id: the ratio of grpo is over mu already"):
        make_loss("grpo", "mu", TISToken())
    with pytest.raises(ValueError, match=r"correction\.id: tis_token is a token-level correction and gspo"):
        make_loss("gspo", "old", TISToken())
    with pytest.raises(ValueError, match="prox_logprobs are needed"):
        make_loss("drpo", anchor="prox")(make_tokens(P, U, 1.0))
    with pytest.raises(ValueError, match="topk_logprobs"):
        make_loss("dppo_topk_kl")(make_tokens(P, U, 1.0))


def test_binary_kl_of_a_saturated_token_pushes_nothing():
    tokens = make_tokens([1.0, 0.3], [1.0, 0.3], [1.0, 1.0])
    for dtype in (torch.float32, torch.float64):
        x = tokens.logprobs.detach().to(dtype).requires_grad_()
        own = Tokens(x, x.detach(), tokens.advantages.to(dtype), tokens.rollout_index, tokens.weights.to(dtype))
        assert gradient(make_loss("penalty", kind="binary_kl"), own).tolist() == pytest.approx([1.0, 1.0], rel=1e-6)


def test_binary_kl_forgives_a_logprob_that_rounding_left_above_zero():
    x, m = torch.tensor([2e-7, -1e-3, 2e-7]), torch.tensor([-1e-3, 2e-7, 2e-7])
    assert torch.isfinite(binary_kl(x, m)).all()
    assert binary_kl(x, m)[2] == 0.0


def test_choices_of_neighbouring_seeds_and_steps_have_nothing_in_common():
    count = 1000
    tokens = make_tokens(torch.linspace(0.1, 0.9, count), torch.linspace(0.9, 0.1, count), torch.ones(count))
    one, other = token_keys(tokens, 5), token_keys(tokens, 6)
    assert len(set(one.tolist())) == count
    assert not set(one.tolist()) & set(other.tolist())
    assert token_keys(tokens, 10**40).shape == (count,)
    first = set(one.argsort()[:100].tolist())
    for shift in (-1, 0, 1):
        again = {place + shift for place in other.argsort()[:100].tolist()}
        assert len(first & again) < 25  # 10 by chance


def test_minibatch_losses_choose_by_seed():
    tokens = make_tokens(torch.linspace(0.1, 0.9, 50), 0.5 * torch.ones(50), torch.linspace(-2, 2, 50))
    loss = make_loss("clip_cov", select_frac=0.1, cov_low=-10.0, cov_high=10.0, clip_low=inf, clip_high=inf)
    choices = {tuple(loss.select(tokens, seed).nonzero().flatten().tolist()) for seed in range(5)}
    assert len(choices) == 5
    assert all(len(choice) == 5 for choice in choices)
    assert loss.select(tokens, 3).equal(loss.select(tokens, 3))


@pytest.mark.parametrize("loss_id", LOSSES)
def test_every_loss_explains_itself(loss_id):
    doc = describe(loss_id)
    assert set(doc.sections) == set(SECTIONS)
    assert all(doc.sections.values())
    assert all(doc.descriptions.values())
    json.dumps(registry_rows(), allow_nan=False)
