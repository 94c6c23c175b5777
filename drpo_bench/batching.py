"""From a rollout batch to minibatches and padded micro-batches, and the weights of their tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drpo_bench.types import Rollout

PAD_ID = 0  # any id will do: padding is on the right and causal attention never looks there


@dataclass(frozen=True)
class PaddedBatch:
    """Rollouts padded on the right for one forward pass.

    `input_ids` [B, T] are prompt and response without the last token, which predicts nothing;
    `gather` [N] indexes the flattened [B * T] positions that predict the response tokens;
    `targets` [N] are those tokens; `rollout_index` [N] says whose they are; `flat` [N] are their
    places among all response tokens of the rollout batch, in its order; `order` the rollouts of the rows.
    """

    input_ids: Tensor
    gather: Tensor
    targets: Tensor
    rollout_index: Tensor
    flat: Tensor
    order: tuple[int, ...]


def pad_rollouts(rollouts: Sequence[Rollout], order: Sequence[int], device: torch.device) -> PaddedBatch:
    """Pad the rollouts named by `order`, keeping that order."""
    starts = np.concatenate([[0], np.cumsum([len(r.response_ids) for r in rollouts])])
    width = max(len(rollouts[i].prompt_ids) + len(rollouts[i].response_ids) for i in order) - 1
    input_ids = np.full((len(order), width), PAD_ID, dtype=np.int64)
    gather, targets, owners, flat = [], [], [], []
    for row, index in enumerate(order):
        rollout = rollouts[index]
        ids, length = rollout.prompt_ids + rollout.response_ids, len(rollout.response_ids)
        input_ids[row, : len(ids) - 1] = ids[:-1]
        first = row * width + len(rollout.prompt_ids) - 1
        gather.append(np.arange(first, first + length))
        targets.append(np.asarray(rollout.response_ids))
        owners.append(np.full(length, index))
        flat.append(np.arange(starts[index], starts[index] + length))

    def tensor(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device)

    return PaddedBatch(
        torch.from_numpy(input_ids).to(device),
        tensor(gather),
        tensor(targets),
        tensor(owners),
        tensor(flat),
        tuple(order),
    )


def micro_batches(
    rollouts: Sequence[Rollout], indices: Sequence[int], max_tokens: int, device: torch.device
) -> Iterator[PaddedBatch]:
    """Split `indices` into padded micro-batches of at most `max_tokens` positions, similar lengths together.

    Rollouts stay whole; a single one that is longer than the budget travels alone. The split never
    changes the gradient, since the weights of the tokens are fixed beforehand.
    """
    length = {i: len(rollouts[i].prompt_ids) + len(rollouts[i].response_ids) - 1 for i in indices}
    pending: list[int] = []
    for index in sorted(indices, key=lambda i: (length[i], i)):
        if pending and (len(pending) + 1) * length[index] > max_tokens:
            yield pad_rollouts(rollouts, pending, device)
            pending = []
        pending.append(index)
    if pending:
        yield pad_rollouts(rollouts, pending, device)


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
