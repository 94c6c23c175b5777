"""Statistics against hand-worked numbers and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from drpo_bench.analysis.stats import bootstrap_interval, clopper_pearson, estimate, iqm, mean


def test_iqm_leaves_out_a_quarter_at_each_end():
    assert iqm(np.array([9.0, 1.0, 2.0, 3.0, 5.0])) == pytest.approx((2 + 3 + 5) / 3)  # floor(5 / 4) = 1
    assert iqm(np.array([9.0, 1.0, 2.0])) == pytest.approx(4.0)  # floor(3 / 4) = 0: the mean


@pytest.mark.parametrize("n", [3, 4, 5, 10, 11])
def test_iqm_is_scipys_trimmed_mean(n):
    values = np.random.default_rng(n).normal(size=n)
    assert iqm(values) == pytest.approx(scipy_stats.trim_mean(values, 0.25))


def test_bootstrap_of_two_seeds_is_worked_by_hand():
    # Resamples of {0, 1}: means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4; so the 95% interval is [0, 1],
    # and the 40% interval, from the 30th to the 70th percentile, is [1/2, 1/2].
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5)


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(0).normal(0.5, 0.1, size=10)
    low, high = bootstrap_interval(values, resamples=20_000)
    theirs = scipy_stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=2e-3)


def test_bootstrap_is_deterministic_and_gives_curves_one_resample():
    curves = np.random.default_rng(1).normal(size=(5, 7))
    first, second = bootstrap_interval(curves), bootstrap_interval(curves)
    assert np.array_equal(first, second) and first[0].shape == (7,)
    assert np.allclose(first[0][2], bootstrap_interval(curves[:, 2])[0])


def test_strata_are_resampled_apart():
    # Each stratum has no spread of its own, so the pooled mean has none, however far the strata are apart.
    assert bootstrap_interval([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]) == (0.5, 0.5)


def test_one_seed_has_no_interval():
    single = estimate([0.7])
    assert (single.value, single.n) == (0.7, 1)
    assert np.isnan([single.low, single.high]).all()
    assert np.isnan(estimate([]).value)


def test_a_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        bootstrap_interval([0.1, float("nan")])


@pytest.mark.parametrize(("count", "total"), [(0, 5), (1, 5), (3, 10), (5, 5), (1, 1)])
def test_clopper_pearson_is_scipys_exact_interval(count, total):
    theirs = scipy_stats.binomtest(count, total).proportion_ci(method="exact")
    assert clopper_pearson(count, total) == pytest.approx((theirs.low, theirs.high))


def test_clopper_pearson_by_hand():
    # 0 of 5: the upper bound solves (1 - p)^5 = 0.025.
    assert clopper_pearson(0, 5) == pytest.approx((0.0, 1 - 0.025**0.2))
    with pytest.raises(ValueError, match="count 3"):
        clopper_pearson(3, 2)


def test_mean_reduces_the_first_axis():
    assert mean(np.array([[0.0, 2.0], [1.0, 4.0]])).tolist() == [0.5, 3.0]
