"""Statistics over seeds: mean and interquartile mean with bootstrap intervals, shares with exact ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]

LEVEL = 0.95
RESAMPLES = 5000


@dataclass(frozen=True)
class Estimate:
    """A statistic over n seeds and its interval; the interval of a single seed is not a number."""

    value: float
    low: float
    high: float
    n: int


def mean(values: Array) -> Array:
    """Mean over the first axis."""
    result: Array = values.mean(axis=0)
    return result


def iqm(values: Array) -> Array:
    """Interquartile mean over the first axis: without the floor(n/4) lowest and as many of the highest."""
    cut = len(values) // 4
    result: Array = np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0)
    return result


def bootstrap_interval(
    *strata: ArrayLike,
    statistic: Statistic = mean,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Percentile interval of `statistic` over seeds; each stratum [n, ...] (a task, say) is resampled by itself.

    One resample of the seeds serves every further axis, so a curve's band is that of whole curves.
    Not a number where no stratum has two seeds: one run says nothing about the spread.
    """
    arrays: list[Array] = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    if any(np.isnan(array).any() for array in arrays):
        raise ValueError("bootstrap_interval: the values hold a NaN; leave such runs out by name, not in a mean")
    if max(len(array) for array in arrays) < 2:
        nothing = np.full(arrays[0].shape[1:], nan)
        return nothing, nothing
    rng = np.random.default_rng(seed)
    draws = [array[rng.integers(0, len(array), (len(array), resamples))] for array in arrays]  # [n, resamples, ...]
    tail = (1 - level) / 2
    low, high = np.quantile(statistic(np.concatenate(draws)), [tail, 1 - tail], axis=0)
    return low, high


def estimate(values: ArrayLike, statistic: Statistic = mean) -> Estimate:
    """A statistic of one number a seed, with its bootstrap interval; nothing but NaN of no seeds."""
    array: Array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return Estimate(nan, nan, nan, 0)
    low, high = bootstrap_interval(array, statistic=statistic)
    return Estimate(float(statistic(array)), float(low), float(high), len(array))


def clopper_pearson(count: int, total: int, level: float = LEVEL) -> tuple[float, float]:
    """Exact interval of a share: never shorter than it may be, also at 0 of n and n of n."""
    if not 0 <= count <= total:
        raise ValueError(f"clopper_pearson: count {count} is not within 0..{total}")
    if total == 0:
        return nan, nan
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else float(betaincinv(count, total - count + 1, tail))
    high = 1.0 if count == total else float(betaincinv(count + 1, total - count, 1 - tail))
    return low, high
