"""What all losses share: aggregation, advantages, rollout correction and what must be refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from drpo_bench.advantages import STD_EPSILON, group_advantages
from drpo_bench.batching import token_weights
from drpo_bench.correction_configs import (
    K3RS,
    CorrectionBase,
    GeoRS,
    IcePop,
    MISSeq,
    MISToken,
    Outlier,
    TISSeq,
    TISToken,
)
from drpo_bench.losses import LOSSES, make_loss
from drpo_bench.losses.correction import correction_multiplier
from drpo_bench.verify.checks import Check, relative_error
from drpo_bench.verify.samples import gradient, make_sample

MODES = ("token_mean", "seq_mean_token_sum", "seq_mean_token_mean", "seq_mean_token_sum_norm")


def check_aggregation() -> Iterator[Check]:
    """The weighted sum is the nested mean that each mode is named after."""
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(length) for length in (1, 4, 9, 2)]
    sums, lengths = np.array([v.sum() for v in values]), np.array([len(v) for v in values])
    expected = (sums.sum() / lengths.sum(), sums.mean(), (sums / lengths).mean(), sums.mean() / 32)
    for mode, value in zip(MODES, expected, strict=True):
        weights = token_weights(torch.from_numpy(lengths), mode, horizon=32).double().numpy()
        yield Check(f"aggregation {mode}", abs(float((weights * sums).sum()) - value), 1e-7)


def check_advantages() -> Iterator[Check]:
    """Each estimator from its definition, and exactly 0 for a group whose rewards are all equal."""
    rewards = np.array([[1.0, 0.0, 0.0, 0.5], [0.1, 0.1, 0.1, 0.1], [0.0, 1.0, 1.0, 1.0]])
    centred = rewards - rewards.mean(1, keepdims=True)
    others = (rewards.sum(1, keepdims=True) - rewards) / 3
    expected = {
        "mean": centred,
        "group_std": centred / (rewards.std(1, ddof=1, keepdims=True) + STD_EPSILON),
        "batch_std": centred / (rewards.std(ddof=1) + STD_EPSILON),
        "rloo": rewards - others,
        "none": rewards,
    }
    for kind, value in expected.items():
        found = group_advantages(torch.from_numpy(rewards), kind).numpy()
        exact = kind == "none" or not found[1].any()
        yield Check(f"advantage {kind}", relative_error(found, np.where(exact, value, np.inf)), 1e-9)


def expected_multipliers(anchor: np.ndarray, mu: np.ndarray) -> dict[str, tuple[CorrectionBase, np.ndarray]]:
    """The multiplier of one response under each correction, from the definitions."""
    rho = np.exp(anchor - mu)
    product, mean = np.prod(rho), np.prod(rho) ** (1 / len(rho))
    ones = np.ones_like(rho)
    k3 = np.mean(rho - 1 - np.log(rho))
    return {
        "tis_token": (TISToken(cap=1.1), np.minimum(rho, 1.1)),
        "tis_seq": (TISSeq(cap=1.1), np.minimum(product, 1.1) * ones),
        "mis_token": (MISToken(cap=1.1), rho * (rho <= 1.1)),
        "mis_seq": (MISSeq(cap=1.1), product * (product <= 1.1) * ones),
        "icepop": (IcePop(low=0.9, high=1.1), rho * ((rho >= 0.9) & (rho <= 1.1))),
        "geo_rs": (GeoRS(low=0.95, high=1.02), float(0.95 <= mean <= 1.02) * ones),
        "k3_rs": (K3RS(limit=0.01), float(k3 <= 0.01) * ones),
        "outlier": (Outlier(low=0.8, high=1.3), float((rho >= 0.8).all() and (rho <= 1.3).all()) * ones),
    }


def check_corrections() -> Iterator[Check]:
    """Every multiplier against its definition, response by response, and the gradient it gives a loss."""
    sample = make_sample(seed=7, rollouts=200)
    starts = np.unique(sample.rollout, return_index=True)[1][1:]
    old, mu = (np.split(sample.logprobs(policy), starts) for policy in ("old", "mu"))
    responses = [expected_multipliers(o, m) for o, m in zip(old, mu, strict=True)]
    plain = gradient(make_loss("pg_is", "old"), sample.tokens())
    for name, (correction, _) in responses[0].items():
        expected = np.concatenate([response[name][1] for response in responses])
        found = correction_multiplier(replace(sample.tokens(), anchor="old"), correction).numpy()
        yield Check(f"correction {name}", relative_error(found, expected), 1e-9)
        corrected = gradient(make_loss("pg_is", "old", correction), sample.tokens())
        yield Check(f"correction {name}: gradient is multiplied", relative_error(corrected, plain * expected), 1e-9)


def is_refused(make: Callable[[], object], *words: str) -> bool:
    """Whether making it raises a ValueError that contains the words."""
    try:
        make()
    except ValueError as error:
        return all(word in str(error) for word in words)
    return False


def check_refusals() -> Iterator[Check]:
    """Double correction, a token weight on a response's ratio, and missing logprobs or top-k are refused by name."""
    twice = [
        loss_id
        for loss_id, spec in LOSSES.items()
        if is_refused(lambda loss_id=loss_id: make_loss(loss_id, "mu", TISSeq()), "correction.id")  # type: ignore[misc]
        != spec.config.corrects
    ]
    yield Check("a weight on a loss with a ratio over mu is refused", len(twice), 0)
    sequence = [
        loss_id
        for loss_id, spec in LOSSES.items()
        if is_refused(lambda loss_id=loss_id: make_loss(loss_id, "old", TISToken()), "token-level")  # type: ignore[misc]
        != spec.config().sequence_ratio
    ]
    yield Check("a token-level weight on a ratio of whole responses is refused", len(sequence), 0)
    tokens = replace(make_sample().tokens(), old_logprobs=None)
    accepted = 0
    for loss_id, word in (("minirl", "old_logprobs"), ("dppo_topk_tv", "topk_logprobs"), ("dppo_topk_kl", "topk")):
        accepted += not is_refused(lambda loss_id=loss_id: make_loss(loss_id)(tokens), word)  # type: ignore[misc]
    yield Check("missing old_logprobs or top-k are refused by name", accepted, 0)


def shared() -> Iterator[Check]:
    """Every check that belongs to no single loss."""
    yield from check_aggregation()
    yield from check_advantages()
    yield from check_corrections()
    yield from check_refusals()
