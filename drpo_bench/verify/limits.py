"""What losses have in common: limits, special cases and orders between them, checked on gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np
import torch

from drpo_bench.losses import make_loss
from drpo_bench.losses.trust_region import topk_pair
from drpo_bench.ops import binary_kl, topk_kl, topk_tv
from drpo_bench.verify.checks import Check, relative_error
from drpo_bench.verify.samples import VOCABULARY, Sample, gradient, make_sample

Params = dict[str, Any]

# (a loss with its parameters, another one, which has the same gradient)
EQUAL: list[tuple[str, Params, str, Params]] = [
    ("drpo", {"delta": inf}, "pg_is", {}),
    ("spo", {"epsilon": inf}, "pg_is", {}),
    ("pg_tis", {"ratio_cap": inf}, "pg_is", {}),
    ("cispo", {"clip_low": 1.0, "clip_high": inf}, "pg_is", {}),
    ("cispo", {"clip_low": inf, "clip_high": 2.0}, "pg_tis", {"ratio_cap": 3.0}),
    ("grpo", {"clip_low": inf, "clip_high": inf}, "pg_is", {}),
    ("grpo", {"dual_clip": inf}, "grpo", {}),
    ("minirl", {"clip_low": inf, "clip_high": inf, "ratio_cap": 3.0}, "pg_tis", {"ratio_cap": 3.0}),
    ("minirl", {"mask_anchor": None}, "grpo", {}),
    ("decoupled_ppo", {"mask_anchor": "mu", "clip_high": 0.28}, "grpo", {}),
    ("decoupled_ppo", {"mask_anchor": "old", "clip_high": 0.28}, "minirl", {}),
    ("relaxed_grpo", {"alpha_low": 0.0, "alpha_high": 0.0}, "grpo", {}),
    ("relaxed_grpo", {"alpha_low": 1.0, "alpha_high": 1.0}, "pg_is", {}),
    ("dis", {"clip_low": 1.0, "clip_high": inf}, "pg_is", {}),
    ("opsm", {"delta": inf}, "grpo", {}),
    ("clip_cov", {"cov_low": 1e6, "cov_high": 1e7, "clip_high": 0.28}, "grpo", {}),
    ("kl_cov", {"select_frac": 1.0, "coef": 0.0}, "pg_is", {}),
    ("dppo_tv", {"delta_low": 1.0, "delta_high": 1.0, "ratio_cap": 3.0}, "pg_tis", {"ratio_cap": 3.0}),
    ("dppo_kl", {"delta_low": inf, "delta_high": inf, "ratio_cap": 3.0}, "pg_tis", {"ratio_cap": 3.0}),
    ("dppo_topk_tv", {"k": 1, "replace": True}, "dppo_tv", {}),
    ("dppo_topk_kl", {"k": 1, "replace": True}, "dppo_kl", {}),
    ("cppo", {"budget_low": 1e9, "budget_high": 1e10, "last_weight": 1.0}, "dppo_tv", {}),
    ("ipo", {"delta": 1.0, "kl_coef": 0.0}, "pg_is", {}),
    ("neg_mask", {"delta": 1.1}, "pg_is", {}),
    ("mask_drpo", {"delta": inf}, "pg_is", {}),
    ("mask_drpo", {"delta_mask": 0.0, "mask_side": "both"}, "drpo", {}),
    ("mask_drpo", {"delta_mask": 0.0, "mask_side": "both", "continuous": True}, "drpo", {}),
    ("penalty", {"coef": 0.0}, "pg_is", {}),
    ("penalty", {"kind": "chi2", "coef": 5.0}, "spo", {"epsilon": 0.2}),
    ("dro", {"coef": 0.0}, "reinforce", {}),
    ("vespo", {"k_pos": 0.0, "lambda_pos": 0.0, "k_neg": 0.0, "lambda_neg": 0.0}, "reinforce", {}),
]


def check_equal(left: str, left_params: Params, right: str, right_params: Params) -> Check:
    """Two losses whose gradients are the same."""
    sample, losses = make_sample(seed=1), (make_loss(left, **left_params), make_loss(right, **right_params))
    one, other = (gradient(loss, sample.tokens(min(loss.config.topk, VOCABULARY))) for loss in losses)
    settings = ", ".join(f"{key}={value}" for key, value in left_params.items())
    return Check(f"{left}({settings}) = {right}", relative_error(one, other), 1e-12)


def single_token_sample() -> Sample:
    """Responses of one token each."""
    return make_sample(seed=2, rollouts=400, longest=1)


def check_sequences_of_one_token() -> Iterator[Check]:
    """GSPO is PPO, GMPO clips one log-ratio, TOPR's two levels and tokens meet."""
    sample = single_token_sample()
    x, m, a = sample.x, sample.m, sample.advantages
    gspo = gradient(make_loss("gspo", clip_low=0.2, clip_high=0.28), sample.tokens())
    yield Check("gspo on one token = grpo", relative_error(gspo, gradient(make_loss("grpo"), sample.tokens())), 1e-12)
    log_ratio = x - m
    inside = np.where(a > 0, log_ratio <= 0.4, log_ratio >= -0.4)
    gmpo = gradient(make_loss("gmpo"), sample.tokens())
    expected = a * np.exp(log_ratio) * inside
    yield Check("gmpo on one token = PPO clipped in log space", relative_error(gmpo, expected), 1e-12)
    levels = [gradient(make_loss("topr", level=level), sample.tokens()) for level in ("sequence", "token")]
    yield Check("topr on one token: both levels agree", relative_error(*levels), 1e-12)


def check_drpo_is_spo_by_token() -> Check:
    """DRPO is SPO with epsilon = delta / mu for each token."""
    sample = single_token_sample()
    drpo = gradient(make_loss("drpo", delta=0.15), sample.tokens())
    spo = np.empty_like(drpo)
    for i, mu in enumerate(np.exp(sample.m)):
        spo[i] = gradient(make_loss("spo", epsilon=0.15 / mu), sample.at(np.array([i])).tokens())[0]
    return Check("drpo(delta) = spo(epsilon = delta / mu) token by token", relative_error(drpo, spo), 1e-9)


def check_drpo_bounds() -> Iterator[Check]:
    """w lies in [1 - 1/delta, 1 + 1/delta], has its zero at pi* = mu + sign(A) delta, and reaches both signs."""
    sample = make_sample(seed=4, rollouts=2000)
    used = sample.advantages != 0
    pg_is = gradient(make_loss("pg_is"), sample.tokens())[used]
    for delta in (0.15, 12.5):
        weight = gradient(make_loss("drpo", delta=delta), sample.tokens())[used] / pg_is
        excess = max(0.0, float((np.abs(weight - 1) - 1 / delta).max()))
        yield Check(f"drpo({delta}): |w - 1| <= 1 / delta", excess, 1e-9)
    for advantage in (1.0, -1.0):
        u = np.array([0.3, 0.5, 0.7])
        p = u + np.sign(advantage) * 0.15
        tokens = replace(
            single_token_sample().at(np.arange(3)).tokens(),
            logprobs=torch.from_numpy(np.log(p)).requires_grad_(),
            mu_logprobs=torch.from_numpy(np.log(u)),
            advantages=torch.full((3,), advantage, dtype=torch.float64),
        )
        g = gradient(make_loss("drpo", delta=0.15), tokens)
        sign = "+" if advantage > 0 else "-"
        yield Check(f"drpo: no gradient at pi = mu {sign} delta", float(np.abs(g).max()), 1e-12)


def check_no_abs_advantage() -> Check:
    """Without |A| DRPO is the same where |A| = 1."""
    sample = make_sample(seed=5)
    sample = replace(sample, advantages=np.where(sample.advantages >= 0, 1.0, -1.0))
    one, other = (gradient(make_loss(loss_id), sample.tokens()) for loss_id in ("drpo", "drpo_no_abs_advantage"))
    return Check("drpo_no_abs_advantage = drpo where |A| = 1", relative_error(one, other), 1e-12)


def check_topk() -> Iterator[Check]:
    """K = V is the full divergence, K = 1 the binary one, and more tokens never make it smaller."""
    sample = make_sample(seed=6, rollouts=300)
    x, m = (torch.from_numpy(values.copy()) for values in (sample.x, sample.m))
    pi, mu = np.exp(sample.full_pi), np.exp(sample.full_mu)
    tv, kl = 0.5 * np.abs(pi - mu).sum(1), (mu * (sample.full_mu - sample.full_pi)).sum(1)
    pair = topk_pair(sample.tokens(VOCABULARY), replace=False)
    yield Check("top-k total variation at K = V is the full one", relative_error(topk_tv(*pair).numpy(), tv), 1e-9)
    yield Check("top-k KL at K = V is the full one", relative_error(topk_kl(*pair).numpy(), kl), 1e-9)
    likeliest = sample.chosen == sample.full_mu.argmax(1)
    pair = topk_pair(sample.at(np.flatnonzero(likeliest)).tokens(1), replace=False)
    binary = binary_kl(x, m).numpy()[likeliest]
    error = relative_error(topk_kl(*pair).numpy(), binary)
    yield Check("top-k KL at K = 1 is the binary one (sampled token is mu's likeliest)", error, 1e-9)
    shift = np.abs(np.exp(sample.x) - np.exp(sample.m))
    sizes = [topk_pair(sample.tokens(k), replace=False) for k in (1, 3, 8)]
    ladders = {
        "TV": [shift, *(topk_tv(*s).numpy() for s in sizes), tv],
        "KL": [binary_kl(x, m).numpy(), *(topk_kl(*s).numpy() for s in sizes), kl],
    }
    for name, ladder in ladders.items():
        decrease = max(float((lower - upper).max()) for lower, upper in pairwise(ladder))
        yield Check(f"binary {name} <= top-k <= full", max(0.0, decrease), 1e-9)


def limits() -> Iterator[Check]:
    """Every relation between losses."""
    for row in EQUAL:
        yield check_equal(*row)
    yield from check_sequences_of_one_token()
    yield check_drpo_is_spo_by_token()
    yield from check_drpo_bounds()
    yield check_no_abs_advantage()
    yield from check_topk()
