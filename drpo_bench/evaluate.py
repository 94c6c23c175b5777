"""Accuracy on fixed held-out problems, with random numbers that are the same for every loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from drpo_bench.rollout.engine import Response, RolloutEngine, Sampling, sample_seeds
from drpo_bench.tasks import Problem, Task, Verdict, distinct_problems
from drpo_bench.text import TextCodec

EVAL_SEED = 0  # the held-out problems and their random numbers are the same for every run


def grade(
    task: Task, codec: TextCodec, problems: Sequence[Problem], groups: Sequence[Sequence[Response]]
) -> list[list[Verdict]]:
    """A verdict for every response, in place."""
    texts = codec.decode([response.token_ids for group in groups for response in group])
    verdicts, position = [], 0
    for problem, group in zip(problems, groups, strict=True):
        row = [task.grade(problem, text) for text in texts[position : position + len(group)]]
        verdicts.append(row)
        position += len(group)
    assert position == len(texts)
    return verdicts


def accuracy(
    engine: RolloutEngine, task: Task, codec: TextCodec, problems: Sequence[Problem], sampling: Sampling
) -> dict[str, float]:
    """One response a problem: `accuracy`, mean length in tokens and share of truncated responses."""
    prompts = codec.encode([problem.prompt for problem in problems])
    seeds = sample_seeds(EVAL_SEED, "eval", 0, len(problems), 1)
    groups = engine.generate(prompts, 1, seeds, sampling)
    verdicts = grade(task, codec, problems, groups)
    return {
        "accuracy": sum(row[0].reward for row in verdicts) / len(problems),
        "length_mean": sum(len(group[0].token_ids) for group in groups) / len(problems),
        "truncated_frac": sum(group[0].truncated for group in groups) / len(problems),
        "lowprob_frac": float((torch.cat([g[0].logprobs for g in groups]).exp() <= 0.01).float().mean()),
    }


class Evaluator:
    """The evaluation of a run: sampled accuracy at temperature 1, and greedy accuracy."""

    def __init__(self, task: Task, codec: TextCodec, num_problems: int, max_new_tokens: int, greedy: bool) -> None:
        self.task, self.codec, self.greedy = task, codec, greedy
        self.problems = distinct_problems(task, "eval", EVAL_SEED, num_problems, "eval.problems")
        self.sampled = Sampling(1.0, max_new_tokens, codec.stop_ids)
        self.most_likely = Sampling(0.0, max_new_tokens, codec.stop_ids)

    def __call__(self, engine: RolloutEngine) -> dict[str, float]:
        """`eval/<task>/...` metrics of the engine's current weights."""
        prefix = f"eval/{self.task.name}"
        sampled = accuracy(engine, self.task, self.codec, self.problems, self.sampled)
        result = {f"{prefix}/{name}": value for name, value in sampled.items()}
        if self.greedy:
            greedy = accuracy(engine, self.task, self.codec, self.problems, self.most_likely)
            result[f"{prefix}/greedy_accuracy"] = greedy["accuracy"]
        return result
