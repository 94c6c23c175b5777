"""The protocol of a rollout engine, and the random numbers that make sampling a pure function."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Response:
    """One sampled continuation: ids with the stop token if one was sampled, and their logprobs [n].

    `topk_ids` and `topk_logprobs` [n, K] are the likeliest tokens at each position, where they were asked for.
    """

    token_ids: tuple[int, ...]
    logprobs: Tensor
    truncated: bool
    topk_ids: Tensor | None = None
    topk_logprobs: Tensor | None = None
    routes: Tensor | None = None  # [prompt + n - 1, layers, experts] int16: the experts chosen at each position


@dataclass(frozen=True)
class Sampling:
    """How to sample: `temperature` 0 is greedy, whose logprobs are those at temperature 1.

    `topk`: how many of the likeliest tokens are returned at each position, at most the vocabulary.
    """

    temperature: float
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    topk: int = 0


class RolloutEngine(Protocol):
    """Samples from its own copy of the weights, in its own precision."""

    emulated: bool
    description: str  # name and version, for env.json
    version: int  # of the weights that it holds: batches they had been trained on

    def load_weights(self, model: PreTrainedModel, version: int = 0) -> None:
        """Take over the weights of an fp32 model, in memory."""

    def generate(
        self, prompts: Sequence[Sequence[int]], group_size: int, seeds: np.ndarray, sampling: Sampling
    ) -> list[list[Response]]:
        """`group_size` responses for each prompt; `seeds` [P, G] uint64, one a response."""

    def score_responses(
        self, prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Response]], sampling: Sampling
    ) -> list[list[Response]]:
        """The given responses [P, G] with this engine's logprobs (and top-k) of their tokens, in its own arithmetic."""

    def close(self) -> None:
        """Give memory back; the engine is gone."""


def sample_seeds(run_seed: int, purpose: str, step: int, num_problems: int, group_size: int) -> np.ndarray:
    """Seeds `[P, G]` uint64: a pure function of (run seed, purpose, step, problem, sample)."""
    digest = hashlib.sha256(f"{purpose}/{run_seed}/{step}".encode()).digest()
    base = np.random.SeedSequence(int.from_bytes(digest[:16], "big"))
    return base.generate_state(num_problems * group_size, np.uint64).reshape(num_problems, group_size)


def uniforms(seeds: np.ndarray, count: int) -> np.ndarray:
    """Random numbers `[N, count]` of N responses, uniform in [0, 1), float64; row i is a function of `seeds[i]` alone.

    One Philox generator (Salmon et al. 2011) whose key is the seed: making one a response would cost more.
    """
    philox = np.random.Philox(key=0)
    generator, start = np.random.Generator(philox), philox.state
    rows = np.empty((len(seeds), count))
    for row, seed in zip(rows, seeds.tolist(), strict=True):
        start["state"]["key"][0] = seed
        philox.state = start
        generator.random(out=row)
    return rows
