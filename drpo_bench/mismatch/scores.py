"""What one side says of given sequences: logprobs of their tokens, of the likeliest tokens, and routes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from drpo_bench.mismatch.sides import Side
from drpo_bench.models import Policy
from drpo_bench.rollout.engine import Response, RolloutEngine, Sampling
from drpo_bench.rollout.torch_engine import TorchEngine
from drpo_bench.rollout_configs import VllmConfig
from drpo_bench.scoring import score
from drpo_bench.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MICROBATCH_TOKENS = 16384


@dataclass(frozen=True)
class Sequences:
    """What all sides score: P prompts, the sampler's G responses to each, and how they were sampled."""

    prompts: list[tuple[int, ...]]
    groups: list[list[Response]]
    sampling: Sampling

    @property
    def responses(self) -> list[Response]:
        """All of them, prompt by prompt."""
        return [response for group in self.groups for response in group]

    @property
    def lengths(self) -> list[int]:
        """Response tokens of each response."""
        return [len(response.token_ids) for response in self.responses]

    @property
    def token_ids(self) -> Tensor:
        """All response tokens, [N]."""
        return torch.tensor([token for response in self.responses for token in response.token_ids])

    def rollouts(self) -> list[Rollout]:
        """As the trainer takes them."""
        return [
            Rollout(index, prompt, response.token_ids, response.logprobs, response.truncated, 0)
            for index, (prompt, group) in enumerate(zip(self.prompts, self.groups, strict=True))
            for response in group
        ]


@dataclass(frozen=True)
class SideScores:
    """A side's numbers for the N response tokens, float32 on the CPU.

    `topk_ids` and `topk_logprobs` [N, K]: an engine's likeliest tokens at each position; of the trainer, its logprobs
    of the sampler's likeliest. `routes` [N, layers, experts], where experts are chosen and the side tells which.
    """

    logprobs: Tensor
    topk_ids: Tensor
    topk_logprobs: Tensor
    routes: Tensor | None = None


@contextmanager
def opened(
    side: Side, model: PreTrainedModel, longest: tuple[int, int], device: torch.device
) -> Iterator[RolloutEngine]:
    """The engine of a side with the model's weights; `longest` prompt and response in tokens."""
    engine: RolloutEngine
    if side.engine == "torch":
        engine = TorchEngine(model, side.precision, device)
    else:
        from drpo_bench.rollout.vllm_engine import VllmEngine

        config = VllmConfig(max_prompt_tokens=max(VllmConfig().max_prompt_tokens, longest[0]))
        engine = VllmEngine(model, side.precision, config, longest[1] + 1, device)
    try:
        yield engine
    finally:
        engine.close()


def score_twice(
    side: Side, model: PreTrainedModel, sequences: Sequences, device: torch.device
) -> tuple[SideScores, SideScores]:
    """A side's scores, and once more after the weights were handed over again: the control, which must be equal."""
    if side.engine == "trainer":
        policy = Policy(model, side.format, device)
        rollouts, ids = sequences.rollouts(), gathered([r.topk_ids for r in sequences.responses])
        first = trainer_scores(policy, rollouts, ids)
        policy.publish()
        return first, trainer_scores(policy, rollouts, ids)
    longest = max(map(len, sequences.prompts)), sequences.sampling.max_new_tokens
    with opened(side, model, longest, device) as engine:
        first = engine_scores(engine, sequences)
        engine.load_weights(model)
        return first, engine_scores(engine, sequences)


def trainer_scores(policy: Policy, rollouts: Sequence[Rollout], topk_ids: Tensor) -> SideScores:
    """Teacher forcing, as the trainer computes `old_logprobs`."""
    scores = score(policy, rollouts, 1.0, MICROBATCH_TOKENS, topk_ids)
    assert scores.topk_logprobs is not None
    lengths = [len(rollout.response_ids) for rollout in rollouts]
    return SideScores(scores.logprobs, topk_ids, scores.topk_logprobs, response_routes(scores.routes, lengths))


def engine_scores(engine: RolloutEngine, sequences: Sequences) -> SideScores:
    """The engine's own arithmetic."""
    groups = engine.score_responses(sequences.prompts, sequences.groups, sequences.sampling)
    responses = [response for group in groups for response in group]
    routes = [response.routes for response in responses if response.routes is not None]
    return SideScores(
        torch.cat([response.logprobs for response in responses]),
        gathered([response.topk_ids for response in responses]),
        gathered([response.topk_logprobs for response in responses]),
        response_routes(routes, [len(response.token_ids) for response in responses]),
    )


def response_routes(routes: Sequence[Tensor] | None, lengths: Sequence[int]) -> Tensor | None:
    """Routes [N, layers, experts] at the positions that predict the response tokens, which are the last of each
    sequence; None in a dense model, or where the engine does not tell them."""
    if not routes:
        return None
    return torch.cat([part[-length:].long() for part, length in zip(routes, lengths, strict=True)])


def gathered(parts: Sequence[Tensor | None]) -> Tensor:
    """Parts of all responses one after the other, none of them missing."""
    present = [part for part in parts if part is not None]
    assert len(present) == len(parts)
    return torch.cat(present)
