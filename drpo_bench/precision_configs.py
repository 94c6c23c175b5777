"""The `[precision]` table: number formats of trainer and rollout engine, apart, with named presets."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from drpo_bench.errors import did_you_mean
from drpo_bench.task_configs import Frozen

Dtype = Literal["fp32", "bf16", "fp16"]
TrainerDtype = Literal["fp32", "bf16", "fp16", "fp8"]

PRESETS: dict[str, dict[str, Any]] = {
    "fp32": {"trainer": "fp32", "rollout": {"dtype": "fp32"}},
    "bf16": {"trainer": "bf16", "rollout": {"dtype": "bf16"}},
    "fp16": {"trainer": "fp16", "rollout": {"dtype": "fp16"}},
    "fp8_rollout": {
        "trainer": "bf16",
        "rollout": {"dtype": "bf16", "fp8_weights": True, "fp8_activations": True},
    },
    "fp8_e2e": {
        "trainer": "fp8",
        "rollout": {"dtype": "bf16", "fp8_weights": True, "fp8_activations": True},
    },
}
ALIASES = {"fp8": "fp8_rollout"}


class RolloutPrecision(Frozen):
    """Number formats of the rollout engine; fp8 covers the decoder's linear layers and, apart, the cache."""

    dtype: Dtype = Field(default="bf16", description="Format of weights and activations.")
    fp8_weights: bool = Field(default=False, description="e4m3 weights, one scale an output channel.")
    fp8_activations: bool = Field(default=False, description="e4m3 inputs, one dynamic scale a token.")
    fp8_kv: bool = Field(
        default=False,
        description="e4m3 keys and values in the cache; a scale a token and head in the torch engine, none in vLLM.",
    )

    @property
    def has_fp8(self) -> bool:
        """Whether anything is e4m3."""
        return self.fp8_weights or self.fp8_activations or self.fp8_kv


class PrecisionConfig(Frozen):
    """Number formats of a run. In a file: `preset = "bf16"`, or `trainer` and `rollout` in full."""

    trainer: TrainerDtype = Field(
        default="bf16",
        description="Compute format; master weights are always fp32. fp8: e4m3 linear layers, bf16 elsewhere.",
    )
    rollout: RolloutPrecision = RolloutPrecision()

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"preset": data}
        if not isinstance(data, dict) or "preset" not in data:
            return data
        if len(data) > 1:
            explicit = ", ".join(sorted(set(data) - {"preset"}))
            raise ValueError(f"preset and explicit fields ({explicit}) exclude each other")
        if not isinstance(data["preset"], str):
            raise ValueError(f"preset is {data['preset']!r}, must be a name; to vary it, use a sweep axis")
        preset = ALIASES.get(data["preset"], data["preset"])
        if preset not in PRESETS:
            hint = did_you_mean(str(preset), [*PRESETS, *ALIASES]) or f"; known: {', '.join(PRESETS)}"
            raise ValueError(f"unknown preset {preset!r}{hint}")
        return PRESETS[preset]

    @property
    def name(self) -> str:
        """The preset's name where the fields equal one, else the fields spelled out."""
        for name, fields in PRESETS.items():
            if self == PrecisionConfig.model_validate(fields):
                return name
        rollout = self.rollout
        parts: list[str] = [rollout.dtype]
        parts += ["w8"] * rollout.fp8_weights + ["a8"] * rollout.fp8_activations + ["kv8"] * rollout.fp8_kv
        return f"{self.trainer}_{''.join(parts)}"
