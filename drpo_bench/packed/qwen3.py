"""Dense Qwen3 over packed tokens: what its module computes of the padded ones, at the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from drpo_bench.packed.attention import Indexed, attention
from drpo_bench.packed.layout import Packed
from drpo_bench.packed.pointwise import rms_norm, swiglu

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def hidden_states(model: PreTrainedModel, packed: Packed) -> Tensor:
    """What the head reads, [N, H], of a model that `is_plain_qwen3`."""
    config, base = model.config, model.base_model
    heads, kv_heads, eps = config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
    parts = [Indexed.of(chunk, heads, kv_heads) for chunk in packed.chunks]
    hidden = base.embed_tokens(packed.ids)
    cos, sin = rotation(packed.positions, base.rotary_emb.inv_freq, hidden.dtype)
    for block in base.layers:
        own, mlp = block.self_attn, block.mlp
        qkv = torch.cat([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight])
        q_norm, k_norm = own.q_norm.weight, own.k_norm.weight
        head_norm = torch.cat([q_norm.expand(heads, -1), k_norm.expand(kv_heads, -1)])
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        normed = rms_norm(hidden, block.input_layernorm.weight, eps)
        attended = attention(F.linear(normed, qkv), head_norm, cos, sin, eps, packed, parts)
        hidden = hidden + F.linear(attended, own.o_proj.weight)
        normed = rms_norm(hidden, block.post_attention_layernorm.weight, eps)
        hidden = hidden + F.linear(swiglu(F.linear(normed, gate_up)), mlp.down_proj.weight)
    return rms_norm(hidden, base.norm.weight, eps)


def rotation(positions: Tensor, inv_freq: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [N, 1, D] as `rotate` reads them."""
    angles = positions[:, None] * inv_freq.float()
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]
