"""Which models the hand-written decoder and trainer's forward pass stand for: dense Qwen3 as transformers has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from drpo_bench.precision import decoder_linears

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_plain_qwen3(model: PreTrainedModel, linear: type[nn.Linear] = nn.Linear) -> bool:
    """Whether it is a dense Qwen3 with the usual choices, and all linear layers of its decoder are just `linear`."""
    from transformers import Qwen3ForCausalLM

    config = model.config
    return (
        type(model) is Qwen3ForCausalLM
        and all(type(layer) is linear for layer in decoder_linears(model))
        and set(config.layer_types) == {"full_attention"}
        and not config.attention_bias
        and config.attention_dropout == 0
        and config.rope_parameters["rope_type"] == "default"
        and config.hidden_act == "silu"
    )


def is_hooked(model: nn.Module) -> bool:
    """Whether some module of it computes more than its class does."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for module in model.modules() for kind in kinds)
