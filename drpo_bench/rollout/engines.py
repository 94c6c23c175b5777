"""The engine that a config asks for; vLLM is imported only where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from drpo_bench.precision_configs import RolloutPrecision
from drpo_bench.rollout.engine import RolloutEngine
from drpo_bench.rollout.torch_engine import TorchEngine
from drpo_bench.rollout_configs import RolloutConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_engine(
    model: PreTrainedModel, config: RolloutConfig, precision: RolloutPrecision, device: torch.device
) -> RolloutEngine:
    """An engine with the weights of an fp32 model. A vLLM engine has shown that it follows them: see `handover`."""
    if config.engine == "torch":
        return TorchEngine(model, precision, device)
    from drpo_bench.rollout.handover import check_handover
    from drpo_bench.rollout.vllm_engine import VllmEngine

    engine = VllmEngine(model, precision, config.vllm, config.max_new_tokens, device)
    try:
        check_handover(engine, model)
    except BaseException:
        engine.close()
        raise
    return engine
