"""Dense Qwen3 over packed tokens: what its module computes of the padded ones, at the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from drpo_bench.packed.attention import Indexed, attention
from drpo_bench.packed.layout import Packed
from drpo_bench.packed.pointwise import rms_norm, swiglu
from drpo_bench.packed.weights import read_layer, rotation

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def hidden_states(model: PreTrainedModel, packed: Packed) -> Tensor:
    """What the head reads, [N, H], of a model that `is_plain_qwen3`."""
    config, base = model.config, model.base_model
    heads, kv_heads, eps = config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
    parts = [Indexed.of(chunk, heads, kv_heads) for chunk in packed.chunks]
    hidden = base.embed_tokens(packed.ids)
    cos, sin = rotation(packed.positions, base.rotary_emb.inv_freq, lambda values: values.to(hidden.dtype))
    for block in base.layers:
        layer = read_layer(block, heads, kv_heads)
        normed = rms_norm(hidden, layer.input_norm, eps)
        attended = attention(F.linear(normed, layer.qkv), layer.head_norm, cos, sin, eps, packed, parts)
        hidden = hidden + F.linear(attended, layer.output)
        normed = rms_norm(hidden, layer.mlp_norm, eps)
        hidden = hidden + F.linear(swiglu(F.linear(normed, layer.gate_up)), layer.down)
    return rms_norm(hidden, base.norm.weight, eps)
