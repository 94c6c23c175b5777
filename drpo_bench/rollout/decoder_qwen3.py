"""Dense Qwen3 by hand: fused projections, a preallocated KV cache, and the roundings that module hooks emulate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drpo_bench.packed.pointwise import rotate
from drpo_bench.packed.weights import read_layer, rotation
from drpo_bench.precision import quantise_e4m3, round_to
from drpo_bench.precision_fp8 import Fp8Linear, quantise_slices
from drpo_bench.qwen3 import is_hooked, is_plain_qwen3
from drpo_bench.rollout.decoder import prompt_positions
from drpo_bench.rollout.shared_prompts import SharedPrompts, attend

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Rounding:
    """What a model's hooks, its cache and its `Fp8Linear` layers emulate."""

    dtype: str = "fp32"  # activations are rounded onto this grid; fp32 where the hardware does it or nothing does
    fp8: bool = False  # inputs of the decoder's linear layers are quantised to e4m3
    fp8_kv: bool = False  # keys and values are quantised to e4m3 as they enter the cache
    fp8_training: bool = False  # the decoder's linear layers are `Fp8Linear`

    @property
    def needs_hooks(self) -> bool:
        return self.fp8 or self.dtype != "fp32"

    def store(self, values: Tensor) -> Tensor:
        """An output of a layer, or an input that no layer put out."""
        return round_to(values, self.dtype)

    def linear_input(self, values: Tensor) -> Tensor:
        """The input of a decoder linear that already lies on the grid."""
        if self.fp8_training:
            return quantise_slices(values, -1)
        return quantise_e4m3(values.float()).to(values.dtype) if self.fp8 else values

    def cached(self, values: Tensor) -> Tensor:
        """Keys or values [..., head_dim] as the cache holds them."""
        return quantise_e4m3(values.float()).to(values.dtype) if self.fp8_kv else values

    def weight(self, linear: Any) -> Tensor:
        """The weight of a decoder linear as its product reads it."""
        return quantise_slices(linear.weight, -1) if self.fp8_training else linear.weight


def supports(model: PreTrainedModel, rounding: Rounding) -> bool:
    """Whether `Qwen3Decoder` computes what the module would: a plain dense Qwen3, no hook or layer but `rounding`'s."""
    linear = Fp8Linear if rounding.fp8_training else nn.Linear
    return is_plain_qwen3(model, linear) and is_hooked(model) == rounding.needs_hooks


class Qwen3Decoder:
    """Reads the weights when it is made, so a decoder serves one `generate` call: weights change in between."""

    routes: Tensor | None = None
    prompts: SharedPrompts | None  # while the prompts themselves are read, None

    def __init__(self, model: PreTrainedModel, rounding: Rounding) -> None:
        config, base = model.config, model.base_model
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.eps, self.rounding = config.head_dim, config.rms_norm_eps, rounding
        self.embedding, self.norm = base.embed_tokens.weight, base.norm.weight
        self.layers = [read_layer(block, self.heads, self.kv_heads, rounding.weight) for block in base.layers]
        self.inv_freq = base.rotary_emb.inv_freq

    @torch.inference_mode()
    def prefill(self, ids: Tensor, mask: Tensor, max_new_tokens: int) -> Tensor:
        num_prompts, width = ids.shape
        dtype = self.embedding.dtype
        self.length, self.max_new_tokens = 0, max_new_tokens
        every = torch.arange(width + max_new_tokens, device=ids.device)
        self.cos, self.sin = rotation(every, self.inv_freq, lambda values: self.rounding.store(values).to(dtype))
        self.cache, self.prompts = self._allocate(num_prompts, width), None
        # Added to the scores. A padding query sees itself, lest its softmax be of nothing.
        bias = self.cache.new_zeros(num_prompts, 1, 1, width).masked_fill_(mask[:, None, None] == 0, -torch.inf)
        self.bias = None if mask.all() else bias
        later = torch.ones(width, width, device=ids.device, dtype=torch.bool).triu(1)
        causal = bias.masked_fill(later, -torch.inf)  # [P, 1, T, T]
        causal.diagonal(dim1=-2, dim2=-1).zero_()
        group = self.heads // self.kv_heads
        hidden = self._forward(ids, prompt_positions(mask), causal.repeat(1, 1, group, 1))
        return hidden.view(num_prompts, width, -1)[:, -1]

    @torch.inference_mode()
    def expand(self, repeat: Tensor) -> None:
        self.prompts = SharedPrompts(self.cache, self.bias, repeat)
        self.cache, self.length = self._allocate(len(repeat), self.max_new_tokens), 0

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        assert self.prompts is not None
        self.prompts.select(rows)
        for layer in self.cache:
            layer[:, : len(rows), :, : self.length] = layer[:, rows, :, : self.length]
        self.cache = self.cache[:, :, : len(rows)]

    @torch.inference_mode()
    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self._forward(tokens[:, None], positions[:, None], None)

    def _allocate(self, rows: int, length: int) -> Tensor:
        """An empty cache: keys and values of every layer. Scores and their sums are in float32 in every format."""
        shape = (len(self.layers), 2, rows, self.kv_heads, length, self.head_dim)
        return torch.empty(shape, dtype=torch.float32, device=self.embedding.device)

    def _forward(self, ids: Tensor, positions: Tensor, bias: Tensor | None) -> Tensor:
        """Append tokens [rows, T] to the cache; hidden states [rows * T, H]."""
        store, linear_input = self.rounding.store, self.rounding.linear_input
        positions = positions.flatten()
        cos, sin = self.cos[positions], self.sin[positions]
        hidden = store(F.embedding(ids.flatten(), self.embedding))
        for number, layer in enumerate(self.layers):
            normed = linear_input(self._normed(hidden, layer.input_norm))
            heads = store(F.linear(normed, layer.qkv)).view(len(hidden), -1, self.head_dim)
            attended = self._attention(heads, number, cos, sin, bias)
            hidden = hidden + store(F.linear(linear_input(store(attended)), layer.output))
            normed = linear_input(self._normed(store(hidden), layer.mlp_norm))
            gate, up = store(F.linear(normed, layer.gate_up)).chunk(2, -1)
            product = store(store(F.silu(gate)) * up)
            hidden = store(hidden + store(F.linear(linear_input(product), layer.down)))
        self.length += ids.shape[1]
        return self._normed(hidden, self.norm)

    def _attention(self, heads: Tensor, number: int, cos: Tensor, sin: Tensor, bias: Tensor | None) -> Tensor:
        """Queries, keys and values [rows * T, heads + 2 kv_heads, D] to outputs [rows * T, heads * D] of a layer.

        The queries that share a key head stand in for a longer sequence, so keys are never repeated.
        """
        cache, kv_heads, dim = self.cache[number], self.kv_heads, self.head_dim
        rows = cache.shape[1]
        width = len(heads) // rows
        start, end = self.length, self.length + width
        turned = rotate(self._normed(heads[:, :-kv_heads], self.layers[number].head_norm), cos, sin)
        new_keys, new_values = self.rounding.cached(turned[:, self.heads :]), self.rounding.cached(heads[:, -kv_heads:])
        cache[0, :, :, start:end] = new_keys.view(rows, width, kv_heads, dim).transpose(1, 2)
        cache[1, :, :, start:end] = new_values.view(rows, width, kv_heads, dim).transpose(1, 2)
        queries = turned[:, : self.heads].view(rows, width, kv_heads, -1, dim).permute(0, 2, 3, 1, 4)
        queries = queries.reshape(rows, kv_heads, -1, dim).to(cache.dtype)
        keys, values = cache[0, :, :, :end], cache[1, :, :, :end]
        if self.prompts is None:
            attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        else:
            attended = attend(queries, keys, values, self.prompts, number)
        attended = attended.view(rows, kv_heads, -1, width, dim).permute(0, 3, 1, 2, 4)
        return attended.reshape(rows * width, -1).to(heads.dtype)

    def _normed(self, values: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm over the last dimension in fp32, scaled in the model's format."""
        normed = F.rms_norm(values.float(), values.shape[-1:], eps=self.eps)
        return self.rounding.store(normed.to(values.dtype) * weight)
