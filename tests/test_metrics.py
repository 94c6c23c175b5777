"""Metrics by hand."""

from __future__ import annotations

import math

import pytest
import torch

from drpo_bench.losses import make_loss
from drpo_bench.metrics import (
    correction_metrics,
    divergence_metrics,
    offpolicy_metrics,
    rollout_metrics,
    topk_metrics,
    weight_metrics,
)
from drpo_bench.types import Rollout, Tokens

X = torch.tensor([0.6, 0.2, 0.5, 0.005]).log()
M = torch.tensor([0.3, 0.4, 0.5, 0.01]).log()  # ratios 2, 1/2, 1, 1/2


def test_divergences_by_hand():
    values = divergence_metrics("g", X, M, [2, 2])
    log2 = math.log(2)
    assert values["g/k1"] == pytest.approx((-log2 + log2 + 0 + log2) / 4)
    assert values["g/k3"] == pytest.approx(((1 - log2) + 2 * (-0.5 + log2)) / 4)
    assert values["g/tv_mean"] == pytest.approx((0.3 + 0.2 + 0 + 0.005) / 4)
    assert values["g/tv_max"] == pytest.approx(0.3)
    assert (values["g/ratio_max"], values["g/ratio_min"]) == pytest.approx((2.0, 0.5))
    assert values["g/logprob_absdiff_mean"] == pytest.approx(3 * log2 / 4)
    assert values["g/mult_prob_error"] == pytest.approx((2 + 2 + 1 + 2) / 4)
    assert values["g/chi2_token"] == pytest.approx((4 + 0.25 + 1 + 0.25) / 4 - 1)
    assert values["g/ess_token"] == pytest.approx(4**2 / (4 * 5.5))
    assert values["g/ess_seq"] == pytest.approx(1.5**2 / (2 * 1.25))  # sequence ratios 1 and 1/2
    assert values["g/seq_logratio_p50"] == pytest.approx(-log2 / 2)


def test_top_k_total_variation_by_hand():
    # The sampled token is among the two of the first row, and not among those of the second.
    mu = torch.tensor([[0.5, 0.3, 0.0], [0.5, 0.3, 0.1]]).log()
    pi = torch.tensor([[0.2, 0.5, 0.2], [0.2, 0.5, 0.3]]).log()  # rests 0.3 and 0.0, of mu 0.2 and 0.1
    expected = ((0.3 + 0.2 + 0.1) / 2 + (0.3 + 0.2 + 0.2 + 0.1) / 2) / 2
    assert topk_metrics("g", pi, (torch.zeros(2, 3), mu)) == {"g/topk_tv": pytest.approx(expected)}
    assert topk_metrics("g", None, None) == {}


def test_equal_policies_have_no_divergence_at_all():
    values = divergence_metrics("g", M, M, [4])
    zeros = ("k1", "k3", "tv_mean", "tv_max", "logprob_absdiff_max", "chi2_token")
    assert {name: values[f"g/{name}"] for name in zeros} == dict.fromkeys(zeros, 0.0)
    assert values["g/ess_token"] == values["g/ratio_max"] == values["g/ppl_ratio"] == 1.0


def test_buckets_and_signs_hold_their_own_tokens():
    values = offpolicy_metrics(X, M, torch.tensor([1.0, -1.0, 0.0, 1.0]), [4])
    assert values["offpolicy/lowprob_frac"] == 0.25
    assert values["offpolicy/tv_large_frac"] == 0.5  # 0.3 and 0.2 of 0.3, 0.2, 0, 0.005
    assert values["offpolicy/tokens/u_le_0.01"] == 1
    assert values["offpolicy/tokens/u_0.1_0.5"] == 3
    assert values["offpolicy/tv_mean/u_le_0.01"] == pytest.approx(0.005)
    assert (values["offpolicy/tokens_pos"], values["offpolicy/tokens_neg"]) == (2, 1)
    assert values["offpolicy/tv_mean_neg"] == pytest.approx(0.2)
    assert "offpolicy/tv_mean/u_gt_0.9" not in values


def test_overflowing_ratios_are_clamped_and_counted():
    values = offpolicy_metrics(torch.tensor([-0.1, -1.0]), torch.tensor([-60.0, -1.0]), torch.ones(2), [2])
    assert values["offpolicy/clamped_frac"] == 0.5
    assert all(math.isfinite(value) for value in values.values())


def test_weights_are_those_of_the_loss():
    x, m = X.double().requires_grad_(), M.double()
    advantages = torch.tensor([1.0, -1.0, 0.0, -2.0], dtype=torch.float64)
    tokens = Tokens(x, m, advantages, torch.zeros(4, dtype=torch.long), torch.ones(4))
    (grad,) = torch.autograd.grad(-make_loss("drpo", delta=0.25)(tokens).sum(), x)
    values = weight_metrics(grad, x.detach(), m, m, advantages)
    # 1 - sign(A) (p - u) / delta of the three tokens with A != 0
    weights = [1 - 0.3 / 0.25, 1 + (0.2 - 0.4) / 0.25, 1 + (0.005 - 0.01) / 0.25]
    assert values["update/w_min"] == pytest.approx(min(weights))
    assert values["update/w_max"] == pytest.approx(max(weights))
    assert values["update/w_mean"] == pytest.approx(sum(weights) / 3)
    assert values["update/w_neg_frac"] == pytest.approx(1 / 3)
    # |w - 1| = 1.2, 0.8, 0.02: between the largest two, 98% of the way
    assert values["update/w_absdev_p99"] == pytest.approx(0.8 + 0.98 * 0.4)
    assert (values["update/tokens"], values["update/tokens_used"]) == (4, 3)
    assert values["update/clip_frac_pos"] == 0.0
    assert values["update/w_mean_pos"] == pytest.approx(weights[0])
    assert values["update/w_mean/u_le_0.01"] == pytest.approx(weights[2])
    assert values["update/tokens/u_0.1_0.5"] == 2


def test_what_a_correction_keeps_by_hand():
    values = correction_metrics([torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])])
    assert values == {
        "correction/kept_frac": 0.75,
        "correction/mean": 1.0,
        "correction/ess": pytest.approx(4**2 / (4 * 6)),  # sum 4, squares 6
    }
    assert correction_metrics([]) == {}
    assert correction_metrics([torch.zeros(2)]) == {"correction/kept_frac": 0.0, "correction/mean": 0.0}


def test_no_tokens_give_no_weights_rather_than_zeros():
    values = weight_metrics(torch.zeros(2), X[:2], M[:2], M[:2], torch.zeros(2))
    assert values == {"update/tokens": 2.0, "update/tokens_used": 0.0}


def test_rollout_metrics_by_hand():
    rollouts = [Rollout(i // 2, (1,), (5,) * (i + 1), torch.zeros(i + 1), i == 3, 0) for i in range(4)]
    values = rollout_metrics(rollouts, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    assert values["reward/mean"] == 0.75
    assert values["reward/zero_variance_frac"] == 0.5
    assert values["response/length_mean"] == 2.5
    assert values["response/truncated_frac"] == 0.25
