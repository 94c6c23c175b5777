"""A rollout batch from problems to rewards: sample, grade, shape, and sample again where a group teaches nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from drpo_bench.config import RunConfig
from drpo_bench.evaluate import grade
from drpo_bench.metrics import rollout_metrics
from drpo_bench.models import Policy
from drpo_bench.rollout.batch import RolloutBatch
from drpo_bench.rollout.engine import Response, RolloutEngine, Sampling, sample_seeds
from drpo_bench.tasks import Task, Verdict
from drpo_bench.text import TextCodec
from drpo_bench.types import Rollout

OVERLONG_SHARE = 5  # the buffer is a fifth of the longest response unless it is set, as in DAPO's recipe


@dataclass(frozen=True)
class Group:
    """The responses to one problem, graded."""

    prompt_ids: tuple[int, ...]
    responses: list[Response]
    verdicts: list[Verdict]
    rewards: list[float]

    @property
    def is_mixed(self) -> bool:
        """Whether some of its answers are right and some are not: otherwise correctness gives it no advantage."""
        return len({verdict.status == "correct" for verdict in self.verdicts}) > 1


class Collector:
    """Samples and grades the rollout batches of a run; a pure function of (config, number, weights)."""

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        codec: TextCodec,
        engine: RolloutEngine,
        timed: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self.config, self.task, self.codec, self.engine, self.timed = config, task, codec, engine, timed
        rollout = config.rollout
        self.sampling = Sampling(rollout.temperature, rollout.max_new_tokens, codec.stop_ids, config.loss.topk)
        self.sampled_tokens = 0  # of everything sampled, also of what dynamic sampling drops; the caller resets it
        self.rounds = rollout.max_sampling_rounds if rollout.dynamic_sampling else 1

    def collect(self, number: int, policy: Policy, version: int) -> RolloutBatch:
        """Rollout batch `number` from the policy's current weights.

        With `rollout.dynamic_sampling`, groups that are all right or all wrong make room for further problems, each
        batch with problems of its own; what is still missing after the last round is filled with such groups.
        """
        with self.timed("handover"):
            self.engine.load_weights(policy.master, version)
        count = self.config.rollout.problems_per_batch
        sampled: list[Group] = []
        rounds = 0
        while rounds < self.rounds and sum(group.is_mixed for group in sampled) < count:
            sampled += self._round(number, rounds)
            rounds += 1
        # Stable: in one round nothing is reordered, since nothing is dropped.
        ranked = sampled if self.rounds == 1 else sorted(sampled, key=lambda group: not group.is_mixed)
        chosen = ranked[:count]
        rollouts = [
            Rollout(
                index,
                group.prompt_ids,
                r.token_ids,
                r.logprobs,
                r.truncated,
                self.engine.version,
                r.topk_ids,
                r.topk_logprobs,
                r.routes,
            )
            for index, group in enumerate(chosen)
            for r in group.responses
        ]
        metrics = rollout_metrics(rollouts, torch.tensor([group.rewards for group in sampled]))
        statuses = [verdict.status for group in sampled for verdict in group.verdicts]
        for status in ("correct", "wrong", "unparsable"):
            metrics[f"grading/{status}_frac"] = statuses.count(status) / len(statuses)
        if self.config.rollout.dynamic_sampling:
            metrics["sampling/rounds"] = float(rounds)
            metrics["sampling/filled_frac"] = sum(not group.is_mixed for group in chosen) / count
        return RolloutBatch(number, rollouts, torch.tensor([group.rewards for group in chosen]), metrics)

    def _round(self, number: int, round_: int) -> list[Group]:
        """One problem a group: sampled, graded, rewards shaped."""
        config, count = self.config, self.config.rollout.problems_per_batch
        first = (number * self.rounds + round_) * count
        problems = [self.task.problem("train", config.seed, first + i) for i in range(count)]
        prompts = self.codec.encode([problem.prompt for problem in problems])
        purpose = "train" if round_ == 0 else f"train/{round_}"
        group_size = config.rollout.group_size
        seeds = sample_seeds(config.seed, purpose, number, count, group_size)
        with self.timed("rollout"):
            responses = self.engine.generate(prompts, group_size, seeds, self.sampling)
        self.sampled_tokens += sum(len(response.token_ids) for row in responses for response in row)
        with self.timed("grading"):
            verdicts = grade(self.task, self.codec, problems, responses)
        return [
            Group(tuple(prompt), row, marks, [self._reward(r, v) for r, v in zip(row, marks, strict=True)])
            for prompt, row, marks in zip(prompts, responses, verdicts, strict=True)
        ]

    def _reward(self, response: Response, verdict: Verdict) -> float:
        """The verdict's reward less the deduction for length (DAPO, arXiv 2503.14476 eq. 13)."""
        task, longest = self.config.task, self.config.rollout.max_new_tokens
        if task.overlong_penalty == 0:
            return verdict.reward
        buffer = task.overlong_buffer or max(1, longest // OVERLONG_SHARE)
        excess = max(0, len(response.token_ids) - (longest - buffer))
        return verdict.reward - task.overlong_penalty * excess / buffer
