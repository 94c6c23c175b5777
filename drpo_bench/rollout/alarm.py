"""The alarm: at the sampling weights, trainer and engine may differ by what rounding explains, and by no more."""

from __future__ import annotations

import math

from torch import Tensor

from drpo_bench.precision_configs import PrecisionConfig

# Largest mean |old - mu| in nats that rounding alone explains, per number format of either side.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 5e-2, "fp8": 0.4}
BIAS_FLOOR = 1e-6  # of the mean of mu - old: float32's own
SLOPE = 0.15  # of mu - old against old: rounding shows at most 0.07 in fp8, raw logprobs at 0.6 at least 0.26
SHIFT = 0.75  # of the variance: half of it is what rounding makes (0.46 to 0.53 in fp8), all of it a temperature of 0.6
STANDARD_ERRORS = 4.0
TOKENS_NEEDED = 64  # below that standard errors are not to be trusted

CAUSES = (
    "stale engine weights or prefix cache, another temperature, raw instead of processed logprobs, shifted tokens, "
    "top-p or top-k left on"
)


class MismatchAlarm(RuntimeError):
    """Trainer and engine disagree by more than rounding explains: something is wired wrongly."""


def mismatch_tolerance(precision: PrecisionConfig) -> float:
    """The tolerance of a precision pair: that of its coarser side."""
    rollout = precision.rollout
    return max(TOLERANCE[precision.trainer], TOLERANCE["fp8" if rollout.has_fp8 else rollout.dtype])


def too_large(old: Tensor, mu: Tensor, precision: PrecisionConfig) -> str | None:
    """The first question alone: whether the mean |old - mu| [N] is beyond the tolerance, or not a number."""
    size, tolerance = float((mu - old).double().abs().mean()), mismatch_tolerance(precision)
    return None if size <= tolerance else f"mean |old - mu| is {size:.3g}, above {tolerance:g}"


def find_mismatch(old: Tensor, mu: Tensor, precision: PrecisionConfig) -> str | None:
    """What is wrong with the engine's logprobs `mu` [N], given the trainer's `old` [N] at the same weights; or None.

    Three questions about d = mu - old. Is the mean |d| within the tolerance of the precision pair? Is the mean of d
    what rounding makes it? On tokens sampled from mu it estimates KL(mu || old), which for small differences of spread
    s is s^2 / 2: more than three quarters of s^2 and four standard errors are a shift that tokens share, as top-p and
    other temperatures make. And does d grow with old, as where raw logprobs are told of a temperature below 1?
    Rounding does not know which tokens are likely.
    """
    difference, logprobs = (mu - old).double(), old.double()
    if problem := too_large(old, mu, precision):
        return problem
    if len(difference) < TOKENS_NEEDED:
        return None
    mean, spread = float(difference.mean()), float(difference.std(correction=0))
    error = STANDARD_ERRORS * spread / math.sqrt(len(difference))
    bound = SHIFT * spread**2 + error + BIAS_FLOOR
    if not abs(mean) <= bound:
        return f"mu - old is {mean:.3g} on average, more than the {bound:.3g} that its spread {spread:.3g} explains"
    centred = logprobs - logprobs.mean()
    variance = float(centred.square().mean())
    if variance == 0:
        return None
    slope, bound = float((centred * difference).mean()) / variance, SLOPE + error / math.sqrt(variance)
    if not abs(slope) <= bound:
        return f"mu - old grows by {slope:.3g} a nat of old, more than {bound:.3g}, as under another temperature"
    return None
