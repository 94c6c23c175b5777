"""From a rollout batch to minibatches and micro-batches, and the weights of their tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from drpo_bench.packed.layout import Packed, pack
from drpo_bench.types import Rollout

PAD_ID = 0  # any id will do: padding is on the right and causal attention never looks there


@dataclass(frozen=True)
class MicroBatch:
    """Rollouts of one forward pass, packed or padded as the model takes them.

    `targets` [N] are their response tokens, row by row; `rollout_index` [N] says whose they are among all rollouts of
    the batch, `flat` [N] where they stand among all its response tokens, in its order; `order` names the rows.
    """

    rollouts: tuple[Rollout, ...]
    targets: Tensor
    rollout_index: Tensor
    flat: Tensor
    order: tuple[int, ...]

    @cached_property
    def packed(self) -> Packed:
        """The tokens one after the other, each prompt once."""
        return pack(self.rollouts, self.targets.device)

    @property
    def input_ids(self) -> Tensor:
        """[B, T], padded on the right: prompt and response without the last token, which predicts nothing."""
        return self._padded[0]

    @property
    def gather(self) -> Tensor:
        """[N], the flattened [B * T] positions that predict the targets."""
        return self._padded[1]

    @cached_property
    def _padded(self) -> tuple[Tensor, Tensor]:
        width = max(len(rollout.prompt_ids) + len(rollout.response_ids) for rollout in self.rollouts) - 1
        input_ids = np.full((len(self.rollouts), width), PAD_ID, dtype=np.int64)
        gather = []
        for row, rollout in enumerate(self.rollouts):
            ids = rollout.prompt_ids + rollout.response_ids
            input_ids[row, : len(ids) - 1] = ids[:-1]
            first = row * width + len(rollout.prompt_ids) - 1
            gather.append(np.arange(first, first + len(rollout.response_ids)))
        device = self.targets.device
        return torch.from_numpy(input_ids).to(device), torch.from_numpy(np.concatenate(gather)).to(device)


def micro_batch(rollouts: Sequence[Rollout], order: Sequence[int], device: torch.device) -> MicroBatch:
    """The rollouts named by `order`, in that order."""
    starts = np.concatenate([[0], np.cumsum([len(r.response_ids) for r in rollouts])])
    rows = tuple(rollouts[index] for index in order)
    lengths = [len(rollout.response_ids) for rollout in rows]

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    return MicroBatch(
        rows,
        tensor(np.concatenate([np.asarray(rollout.response_ids) for rollout in rows])),
        tensor(np.repeat(np.asarray(order), lengths)),
        tensor(np.concatenate([np.arange(starts[index], starts[index + 1]) for index in order])),
        tuple(order),
    )


def micro_batches(
    rollouts: Sequence[Rollout], indices: Sequence[int], max_tokens: int, device: torch.device
) -> Iterator[MicroBatch]:
    """Split `indices` into micro-batches of at most `max_tokens` positions, similar lengths together.

    Rollouts stay whole; a single one that is longer than the budget travels alone. The split never
    changes the gradient, since the weights of the tokens are fixed beforehand.
    """
    length = {i: len(rollouts[i].prompt_ids) + len(rollouts[i].response_ids) - 1 for i in indices}
    pending: list[int] = []
    for index in sorted(indices, key=lambda i: (length[i], i)):
        if pending and (len(pending) + 1) * length[index] > max_tokens:
            yield micro_batch(rollouts, pending, device)
            pending = []
        pending.append(index)
    if pending:
        yield micro_batch(rollouts, pending, device)


def minibatch_groups(num_groups: int, num_minibatches: int, seed: int, step: int) -> list[list[int]]:
    """Disjoint minibatches of whole groups, in an order that is a pure function of (seed, step)."""
    digest = hashlib.sha256(f"minibatches/{seed}/{step}".encode()).digest()
    order = np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(num_groups)
    return [sorted(part.tolist()) for part in np.split(order, num_minibatches)]


def token_weights(lengths: Tensor, aggregation: str, horizon: int) -> Tensor:
    """Weight of every token of each rollout in a minibatch, `[B]` for response lengths `[B]`.

    The reduction is `sum over rollouts and tokens of weight * loss`, so that
    - `token_mean`: the mean over all response tokens of the minibatch;
    - `seq_mean_token_sum`: the mean over rollouts of the token sum;
    - `seq_mean_token_mean`: the mean over rollouts of the token mean;
    - `seq_mean_token_sum_norm`: `seq_mean_token_sum` divided by the fixed `horizon`.

    Skipped tokens (A = 0) stay in every denominator.
    """
    num_rollouts = len(lengths)
    lengths = lengths.to(torch.float32)
    if aggregation == "token_mean":
        return torch.full_like(lengths, 1.0 / float(lengths.sum()))
    if aggregation == "seq_mean_token_sum":
        return torch.full_like(lengths, 1.0 / num_rollouts)
    if aggregation == "seq_mean_token_mean":
        return 1.0 / (num_rollouts * lengths)
    if aggregation == "seq_mean_token_sum_norm":
        return torch.full_like(lengths, 1.0 / (num_rollouts * horizon))
    raise ValueError(f"train.aggregation: unknown mode {aggregation!r}")
