"""A transformers cache that holds keys and values in e4m3, emulated."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache

from drpo_bench.precision import quantise_e4m3


class Fp8Cache(DynamicCache):  # type: ignore[misc]
    """Rounds keys and values [B, heads, T, head_dim] as they enter, one scale a token and head.

    The states of convolutions and recurrences, which linear attention keeps instead, are left alone.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = (quantise_e4m3(states.float()).to(states.dtype) for states in (key_states, value_states))
        result: tuple[Tensor, Tensor] = super().update(keys, values, layer_idx, *args, **kwargs)
        return result
