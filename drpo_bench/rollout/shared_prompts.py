"""Attention of single queries: the keys and values of a prompt are kept and read once for all its samples."""

from __future__ import annotations

import torch
from torch import Tensor


class SharedPrompts:
    """Prompts' part of the KV cache [layers, 2, P, kv_heads, T, D], and the rows that continue each, one at least.

    `owners` [rows] ascend. `bias` [P, 1, 1, T] is added to the scores; None where all prompts are of one length.
    """

    def __init__(self, cache: Tensor, bias: Tensor | None, owners: Tensor) -> None:
        self.cache, self.bias, self.owners = cache, bias, owners
        self.arrange()

    def arrange(self) -> None:
        """Give every prompt as many slots as the one with most rows has; drop those that have none."""
        present, self.owners, counts = torch.unique_consecutive(self.owners, return_inverse=True, return_counts=True)
        if len(present) < self.cache.shape[2]:
            self.cache = self.cache[:, :, present]
            self.bias = None if self.bias is None else self.bias[present]
        self.slots = int(counts.max())
        rank = torch.arange(len(self.owners), device=counts.device) - (counts.cumsum(0) - counts)[self.owners]
        self.slot = self.owners * self.slots + rank
        self.full = len(self.slot) == len(present) * self.slots  # then row i has slot i

    def select(self, rows: Tensor) -> None:
        """Keep these rows only; indices ascend."""
        self.owners = self.owners[rows]
        self.arrange()

    def scores(self, layer: int, queries: Tensor) -> Tensor:
        """Products of queries [rows, kv_heads, group, D] with their prompts' keys: [rows, kv_heads, group, T]."""
        found = torch.matmul(self._by_prompt(queries), self.cache[layer, 0].transpose(-1, -2))
        return self._by_row(found if self.bias is None else found.add_(self.bias), queries.shape[2])

    def mix(self, layer: int, probabilities: Tensor) -> Tensor:
        """Sums of their prompts' values with weights [rows, kv_heads, group, T]: [rows, kv_heads, group, D]."""
        mixed = torch.matmul(self._by_prompt(probabilities), self.cache[layer, 1])
        return self._by_row(mixed, probabilities.shape[2])

    def _by_prompt(self, values: Tensor) -> Tensor:
        """[rows, kv_heads, group, X] to [P, kv_heads, slots * group, X]; slots without a row hold zeros."""
        if not self.full:
            empty = values.new_zeros(self.cache.shape[2] * self.slots, *values.shape[1:])
            values = empty.index_copy_(0, self.slot, values)
        by_prompt: Tensor = values.unflatten(0, (-1, self.slots))
        return by_prompt.transpose(1, 2).flatten(2, 3)

    def _by_row(self, values: Tensor, group: int) -> Tensor:
        """The reverse."""
        by_prompt: Tensor = values.unflatten(2, (self.slots, group))
        rows = by_prompt.transpose(1, 2).flatten(0, 1)
        return rows if self.full else rows.index_select(0, self.slot)


def attend(queries: Tensor, keys: Tensor, values: Tensor, prompts: SharedPrompts, layer: int) -> Tensor:
    """Softmax attention [rows, kv_heads, group, D] to a prompt and to what a row has added: keys, values [..., L, D].

    By plain products, which a CPU does ten times as fast as its fused kernel where a row asks one query.
    """
    own = torch.matmul(queries, keys.transpose(-1, -2))
    before = prompts.scores(layer, queries)
    probabilities = torch.cat([before, own], -1).mul_(queries.shape[-1] ** -0.5).softmax(-1)
    length = before.shape[-1]
    attended = torch.matmul(probabilities[..., length:], values)
    return attended.add_(prompts.mix(layer, probabilities[..., :length]))
