"""The engine that a config asks for; vLLM is imported only where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from drpo_bench.precision_configs import RolloutPrecision
from drpo_bench.rollout.engine import RolloutEngine
from drpo_bench.rollout.handover import LENGTH, check_handover
from drpo_bench.rollout.torch_engine import TorchEngine
from drpo_bench.rollout_configs import RolloutConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_engine(
    model: PreTrainedModel, config: RolloutConfig, precision: RolloutPrecision, device: torch.device
) -> RolloutEngine:
    """An engine with the weights of an fp32 model, which it has shown to follow: see `handover`."""
    engine: RolloutEngine
    longest, by_kind = (LENGTH, config.max_new_tokens), False
    if config.engine == "torch":
        engine = TorchEngine(model, precision, device)
    else:
        from drpo_bench.rollout.vllm_engine import VllmEngine

        engine = VllmEngine(model, precision, config.vllm, config.max_new_tokens, device)
        longest = (config.vllm.max_prompt_tokens, config.max_new_tokens)
        by_kind = not engine.rebuild  # started anew for each hand-over: all kinds arrive, or none
    try:
        check_handover(engine, model, by_kind, longest)
    except BaseException:
        engine.close()
        raise
    return engine
