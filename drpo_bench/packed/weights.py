"""The weights of a Qwen3 block as the hand-written passes read them, and its rotary embedding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """The weights of one block; those applied to one input stand one above the other."""

    input_norm: Tensor
    qkv: Tensor
    head_norm: Tensor  # [heads + kv_heads, head_dim]
    output: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


def plain_weight(linear: Any) -> Tensor:
    """The parameter itself."""
    weight: Tensor = linear.weight
    return weight


def read_layer(block: Any, heads: int, kv_heads: int, weight: Callable[[Any], Tensor] = plain_weight) -> Layer:
    """A block's weights, those of its linear layers by `weight`; gradients reach the parameters."""
    attention, mlp = block.self_attn, block.mlp
    q_norm, k_norm = attention.q_norm.weight, attention.k_norm.weight
    return Layer(
        input_norm=block.input_layernorm.weight,
        qkv=torch.cat([weight(attention.q_proj), weight(attention.k_proj), weight(attention.v_proj)]),
        head_norm=torch.cat([q_norm.expand(heads, -1), k_norm.expand(kv_heads, -1)]),
        output=weight(attention.o_proj),
        mlp_norm=block.post_attention_layernorm.weight,
        gate_up=torch.cat([weight(mlp.gate_proj), weight(mlp.up_proj)]),
        down=weight(mlp.down_proj),
    )


def rotation(positions: Tensor, inv_freq: Tensor, store: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """cos and sin [N, 1, D] of positions [N], in the format that `store` gives them, as `rotate` reads them."""
    angles = positions[:, None] * inv_freq.float()
    cos, sin = store(angles.cos()), store(angles.sin())
    return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]
