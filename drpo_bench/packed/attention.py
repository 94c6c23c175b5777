"""Attention of packed tokens, from projections to outputs, with its gradient by hand.

Probabilities are computed again in backward, so that only those of one chunk are held: of a few rows, or of a single
long one, whose scores are its heads times the square of its length. Scores and sums are in float32 or wider.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from drpo_bench.packed.layout import Chunk, Packed
from drpo_bench.packed.pointwise import normalise, normalise_backward, rotate, wide


@dataclass(frozen=True)
class Indexed:
    """A chunk with its places by head, so that one gather of rows [D] pads and sorts by head.

    `queries` and `keys` index [N * (heads + kv_heads)], `values` [N * kv_heads], `outputs` [N * heads]. The two `back`
    are the reverse: where in [R, kv_heads, group * Q] or [R, kv_heads, K] each of the chunk's own tokens is, by head.
    """

    chunk: Chunk
    shape: tuple[int, int, int, int, int]  # R, kv_heads, query heads of each, Q, K
    queries: Tensor
    outputs: Tensor
    keys: Tensor
    values: Tensor
    queries_back: Tensor
    keys_back: Tensor

    @classmethod
    def of(cls, chunk: Chunk, heads: int, kv_heads: int) -> Indexed:
        """For `heads` queries, of which each kv head serves as many."""
        (rows, width), length, device = chunk.queries.shape, chunk.keys.shape[1], chunk.keys.device
        query_head, kv_head = torch.arange(heads, device=device), torch.arange(kv_heads, device=device)
        by_query, by_key = query_head.view(kv_heads, -1, 1), kv_head[:, None]
        queries, keys = chunk.queries[:, None, None], chunk.keys[:, None]
        row, column = (chunk.places // width)[:, None], (chunk.places % width)[:, None]
        return cls(
            chunk,
            (rows, kv_heads, heads // kv_heads, width, length),
            queries=(queries * (heads + kv_heads) + by_query).flatten(),
            outputs=(queries * heads + by_query).flatten(),
            keys=(keys * (heads + kv_heads) + heads + by_key).flatten(),
            values=(keys * kv_heads + by_key).flatten(),
            queries_back=((row * heads + query_head) * width + column).flatten(),
            keys_back=((row * kv_heads + kv_head) * length + chunk.prefix + column).flatten(),
        )


def take(values: Tensor, index: Tensor, *shape: int) -> Tensor:
    """Rows [D] of values [..., D], as [*shape, D]."""
    return values.view(-1, values.shape[-1]).index_select(0, index).view(*shape, values.shape[-1])


def attend(turned: Tensor, values: Tensor, part: Indexed) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries [B, group * Q, D], keys and values [B, K, D], probabilities [B, group * Q, K]; B = R * kv_heads."""
    rows, kv_heads, group, width, length = part.shape
    queries = wide(take(turned, part.queries, rows * kv_heads, group * width))
    keys = wide(take(turned, part.keys, rows * kv_heads, length))
    scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(turned.shape[-1] ** -0.5)
    mask(scores.view(part.shape), part.chunk)
    return queries, keys, wide(take(values, part.values, rows * kv_heads, length)), scores.softmax(-1)


def mask(scores: Tensor, chunk: Chunk) -> None:
    """Make scores [R, kv_heads, group, Q, K] -inf, in place, where a query looks ahead or there is no prompt."""
    later = torch.full((scores.shape[-2],) * 2, -torch.inf, dtype=scores.dtype, device=scores.device).triu_(1)
    scores[..., chunk.prefix :].add_(later)  # padding stands behind all that a sequence has
    if chunk.bias is not None:
        scores[..., : chunk.prefix].add_(chunk.bias)


class Attention(torch.autograd.Function):
    """`attention`."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        weight: Tensor,
        cos: Tensor,
        sin: Tensor,
        eps: float,
        packed: Packed,
        parts: list[Indexed],
    ) -> Tensor:
        turning, dim = weight.shape
        split = qkv.view(len(qkv), -1, dim)
        heads = 2 * turning - split.shape[1]
        normed, inverse = normalise(split[:, :turning], eps)
        turned = rotate(normed.to(qkv.dtype) * weight, cos, sin)
        values = split[:, turning:].contiguous()
        outputs = qkv.new_empty(len(qkv), heads, dim)
        for part in parts:
            _, _, own_values, probabilities = attend(turned, values, part)
            attended = torch.bmm(probabilities, own_values)
            outputs[part.chunk.start : part.chunk.stop] = take(attended, part.queries_back, -1, heads)
        ctx.save_for_backward(normed, inverse, weight, cos, sin, turned, values)
        ctx.packed, ctx.parts = packed, parts
        return outputs.view(len(qkv), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        normed, inverse, weight, cos, sin, turned, values = ctx.saved_tensors
        tokens, kv_heads, dim = values.shape
        heads, packed, grad = turned.shape[1] - kv_heads, ctx.packed, grads[0].reshape(-1, dim)
        d_turned, d_values = torch.empty_like(normed), normed.new_empty(values.shape)
        d_prompts = normed.new_zeros(2, packed.num_prompts, kv_heads, packed.longest_prompt, dim)  # keys, values
        for part in ctx.parts:
            chunk, (rows, _, group, width, length) = part.chunk, part.shape
            queries, keys, own_values, probabilities = attend(turned, values, part)
            d_out = wide(take(grad, part.outputs, rows, kv_heads, group, width))
            if chunk.padding is not None:
                d_out.masked_fill_(chunk.padding[:, None, None, :, None], 0.0)
            d_out = d_out.view(rows * kv_heads, group * width, dim)
            d_own_values = torch.bmm(probabilities.transpose(1, 2), d_out)
            d_probabilities = torch.bmm(d_out, own_values.transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_probabilities, probabilities, -1, probabilities.dtype)
            d_scores.mul_(dim**-0.5)
            d_queries, d_keys = torch.bmm(d_scores, keys), torch.bmm(d_scores.transpose(1, 2), queries)
            here = slice(chunk.start, chunk.stop)
            d_turned[here, :heads] = take(d_queries, part.queries_back, -1, heads)
            d_turned[here, heads:] = take(d_keys, part.keys_back, -1, kv_heads)
            d_values[here] = take(d_own_values, part.keys_back, -1, kv_heads)
            for total, each in zip(d_prompts, (d_keys, d_own_values), strict=True):
                before = each.view(rows, kv_heads, length, dim)[:, :, : chunk.prefix]
                total[:, :, : chunk.prefix].index_add_(0, chunk.prompts, before)
        by_token = d_prompts.transpose(2, 3).flatten(1, 2)[:, packed.prompt_places]
        d_turned[: by_token.shape[1], heads:] += by_token[0]
        d_values[: by_token.shape[1]] += by_token[1]
        d_split, d_weight = normalise_backward(rotate(d_turned, cos, -sin), normed, inverse, wide(weight))
        d_qkv = torch.cat([d_split, d_values], 1).view(tokens, -1)
        return d_qkv.to(turned.dtype), d_weight.to(weight.dtype), None, None, None, None, None


def attention(
    qkv: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, packed: Packed, parts: list[Indexed]
) -> Tensor:
    """Projections qkv [N, (heads + 2 kv_heads) * D] to outputs [N, heads * D].

    `weight` [heads + kv_heads, D] scales the normalised queries and keys; `cos` and `sin` [N, 1, D] rotate them.
    """
    return Attention.apply(qkv, weight, cos, sin, eps, packed, parts)  # type: ignore[no-untyped-call, no-any-return]
