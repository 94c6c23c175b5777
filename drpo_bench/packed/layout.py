"""Where the tokens of a micro-batch stand, every prompt once and then the responses, and what they attend to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drpo_bench.types import Rollout

CHUNK_SCORES = 2**18  # attention scores of a head that are held at a time: a few MB with all heads, which caches hold


@dataclass(frozen=True)
class Chunk:
    """R sequences whose tokens stand one after the other, from `start` to `stop`, padded to the longest, Q tokens.

    Each attends to itself, causally, and to all of its prompt, if it is a response: K = prefix + Q places.
    """

    start: int
    stop: int
    queries: Tensor  # [R, Q], the token at each place; in padding any
    keys: Tensor  # [R, K]
    places: Tensor  # [stop - start], where in R * Q each token is
    bias: Tensor | None  # float32 [R, 1, 1, 1, prefix], added to these scores: -inf where a prompt is shorter
    padding: Tensor | None  # bool [R, Q]; None where there is none
    prompts: Tensor  # [R], which prompt each response has
    prefix: int  # tokens of the longest of these prompts; 0 for prompts themselves


@dataclass(frozen=True)
class Packed:
    """N tokens: those of the distinct prompts, then those of the responses, but for the last of each."""

    ids: Tensor  # [N]
    positions: Tensor  # [N]
    gather: Tensor  # [M], whose hidden states predict the response tokens, rollout by rollout
    chunks: tuple[Chunk, ...]
    prompt_places: Tensor  # [tokens of prompts], where in [prompts, longest prompt] each is
    num_prompts: int
    longest_prompt: int


@dataclass(frozen=True)
class Sequences:
    """Sequences of tokens, one after the other."""

    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, lengths: Sequence[int], first: int = 0) -> Sequences:
        """Of these lengths, beginning at token `first`."""
        counts = np.array(lengths, dtype=np.int64)
        return cls(first + np.cumsum(counts) - counts, counts)

    def __getitem__(self, which: slice | np.ndarray) -> Sequences:
        return Sequences(self.starts[which], self.lengths[which])

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [R, longest], and whether there is one; where there is none stands any."""
        column = np.arange(self.lengths.max())
        there = column < self.lengths[:, None]
        return np.where(there, self.starts[:, None] + column, 0), there


def pack(rollouts: Sequence[Rollout], device: torch.device) -> Packed:
    """Lay out these rollouts; the last token of each predicts nothing and is left out."""
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(rollout.prompt_ids for rollout in rollouts))}
    prompt_of = np.array([numbers[rollout.prompt_ids] for rollout in rollouts])
    prompts = Sequences.of([len(prompt) for prompt in numbers])
    total = int(prompts.lengths.sum())
    responses = Sequences.of([len(rollout.response_ids) - 1 for rollout in rollouts], first=total)
    ids = [token for prompt in numbers for token in prompt]
    ids += [token for rollout in rollouts for token in rollout.response_ids[:-1]]
    owners, there = prompts[prompt_of], prompts.padded()[1]
    within = np.arange(total, len(ids)) - np.repeat(responses.starts - owners.lengths, responses.lengths)
    last = owners.starts + owners.lengths - 1  # predicts the first response token
    chunks = list(chunks_of(prompts, prompts[:0], np.zeros(len(numbers), np.int64), device))
    chunks += chunks_of(responses, owners, prompt_of, device)
    return Packed(
        ids=torch.tensor(ids, device=device),
        positions=torch.from_numpy(np.concatenate([np.nonzero(there)[1], within])).to(device),
        gather=torch.from_numpy(np.insert(np.arange(total, len(ids)), responses.starts - total, last)).to(device),
        chunks=tuple(chunks),
        prompt_places=torch.from_numpy(np.flatnonzero(there)).to(device),
        num_prompts=len(numbers),
        longest_prompt=there.shape[1],
    )


def spans(lengths: np.ndarray, prefixes: np.ndarray) -> Iterator[slice]:
    """Neighbours that are padded together: as many as keep their R * Q * K scores within the limit, at least one."""
    first = 0
    while first < len(lengths):
        queries = np.maximum.accumulate(lengths[first:])
        keys = queries + np.maximum.accumulate(prefixes[first:])
        scores = np.arange(1, len(queries) + 1) * queries * keys
        count = max(1, int(np.searchsorted(scores, CHUNK_SCORES, side="right")))
        yield slice(first, first + count)
        first += count


def chunks_of(sequences: Sequences, prompts: Sequences, numbers: np.ndarray, device: torch.device) -> Iterator[Chunk]:
    """Chunks of sequences, each after its own of `prompts`; these are none where the sequences are prompts."""
    prefixes = prompts.lengths if len(prompts.lengths) else np.zeros_like(sequences.lengths)
    for rows in spans(sequences.lengths, prefixes):
        if sequences.lengths[rows].any():  # else responses of one token, which are left out
            yield make_chunk(sequences[rows], prompts[rows] if prefixes.any() else None, numbers[rows], device)


def make_chunk(own: Sequences, prompts: Sequences | None, numbers: np.ndarray, device: torch.device) -> Chunk:
    """A chunk of sequences that follow their prompts, if they have any."""
    queries, there = own.padded()
    keys, prefix, bias = queries, 0, None
    if prompts is not None:
        before, seen = prompts.padded()
        keys, prefix = np.concatenate([before, queries], 1), before.shape[1]
        bias = None if seen.all() else np.where(seen, np.float32(0), np.float32(-np.inf))

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    return Chunk(
        start=int(own.starts[0]),
        stop=int(own.starts[-1] + own.lengths[-1]),
        queries=tensor(queries),
        keys=tensor(keys),
        places=tensor(np.flatnonzero(there)),
        bias=None if bias is None else tensor(bias)[:, None, None, None],
        padding=None if there.all() else tensor(~there),
        prompts=tensor(numbers),
        prefix=prefix,
    )
