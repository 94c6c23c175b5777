"""What is measured: models of a size with random weights, prompts, and how responses end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from drpo_bench.config import ModelConfig
from drpo_bench.models import build_model
from drpo_bench.rollout.engine import Response, Sampling, sample_seeds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY = 200
STOPS = tuple(range(5))  # of ragged rollouts: about a 40th of what random weights sample


@dataclass(frozen=True)
class Shape:
    """A rollout batch: problems, samples a problem, tokens of prompt and response."""

    problems: int = 64
    group_size: int = 8
    prompt: int = 12
    response: int = 35

    @property
    def rows(self) -> int:
        return self.problems * self.group_size

    def prompts(self) -> list[list[int]]:
        """Distinct, of equal length, without a stop token."""
        first = len(STOPS)
        return [[first + (7 * i + j) % (VOCABULARY - first) for j in range(self.prompt)] for i in range(self.problems)]

    def seeds(self) -> np.ndarray:
        """[problems, group_size]."""
        return sample_seeds(0, "bench", 0, self.problems, self.group_size)

    def sampling(self, ragged: bool) -> Sampling:
        """Temperature 1; to the full length, or to the first stop token."""
        return Sampling(1.0, self.response, STOPS if ragged else ())

    def __str__(self) -> str:
        return f"{self.problems} x {self.group_size} rollouts, {self.prompt} + {self.response} tokens"


def random_model(size: str, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    """A Qwen3 of the size."""
    return build_model(ModelConfig(name=size), vocabulary, seed=0)


def tokens_of(groups: Sequence[Sequence[Response]]) -> int:
    """Response tokens, stop tokens included."""
    return sum(len(response.token_ids) for group in groups for response in group)
