"""The alarm: at the sampling weights, trainer and engine must agree within their precisions' tolerance."""

from __future__ import annotations

from drpo_bench.precision_configs import PrecisionConfig

# Largest mean |old - mu| in nats that rounding alone explains, per number format of either side.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 5e-2}
FP8_TOLERANCE = 0.4


class MismatchAlarm(RuntimeError):
    """Trainer and engine disagree by more than rounding explains: something is wired wrongly."""


def mismatch_tolerance(precision: PrecisionConfig) -> float:
    """The tolerance of a precision pair: that of its coarser side."""
    if precision.rollout.has_fp8 or precision.trainer == "fp8":
        return FP8_TOLERANCE
    return max(TOLERANCE[precision.trainer], TOLERANCE[precision.rollout.dtype])


def check_mismatch(mean_absdiff: float, precision: PrecisionConfig) -> None:
    """Raise MismatchAlarm if the mean |old - mu| is outside the tolerance, or not a number."""
    tolerance = mismatch_tolerance(precision)
    if not mean_absdiff <= tolerance:
        raise MismatchAlarm(
            f"mean |old - mu| is {mean_absdiff:.3g}, above {tolerance:g} for precision {precision.name}; usual "
            "causes: stale engine weights, another temperature, raw instead of processed logprobs, shifted tokens"
        )
