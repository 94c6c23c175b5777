"""Rollout batches: dynamic sampling, the deduction for length, top-k, and engines that return NaN."""

from __future__ import annotations

import contextlib

import pytest
import torch

from drpo_bench.collect import Collector
from drpo_bench.records import RunDir, read_records
from drpo_bench.rollout.engine import Response
from drpo_bench.tasks import Problem, Verdict
from drpo_bench.trainer import Trainer, train


class Codec:
    """Prompts and responses are numbers."""

    stop_ids = (0,)

    def encode(self, texts):
        return [(int(text),) for text in texts]

    def decode(self, ids):
        return [" ".join(map(str, row)) for row in ids]


class Task:
    """Problem i is answered right by all (i % 3 = 0), by none (1) or by every other sample (2)."""

    name = "arithmetic"

    def problem(self, split, seed, index):
        return Problem(str(index), "", "")

    def grade(self, problem, response):
        kind, sample = int(problem.prompt) % 3, int(response.split()[0])
        right = {0: True, 1: False, 2: sample % 2 == 0}[kind]
        return Verdict("correct" if right else "wrong")


class Engine:
    """Sample j answers with the token j, repeated j + 1 times."""

    def __init__(self, logprob=-1.0):
        self.logprob, self.calls = logprob, []

    def load_weights(self, model, version=0):
        self.version = version

    def generate(self, prompts, group_size, seeds, sampling):
        self.calls.append(seeds)
        return [
            [Response((j,) * (j + 1), torch.full((j + 1,), self.logprob), False) for j in range(group_size)]
            for _ in prompts
        ]


class Master:
    master = None


def collect(tiny_config, number=0, engine=None, **changes):
    engine = engine or Engine()
    config = tiny_config(**changes)
    collector = Collector(config, Task(), Codec(), engine, lambda phase: contextlib.nullcontext())
    return collector.collect(number, Master, 0), engine


def prompts_of(batch):
    return [rollout.prompt_ids[0] for rollout in batch.rollouts[::4]]


def test_without_dynamic_sampling_every_group_stays(tiny_config):
    batch, engine = collect(tiny_config, number=2)
    assert prompts_of(batch) == [8, 9, 10, 11]
    assert len(engine.calls) == 1
    assert batch.metrics["reward/zero_variance_frac"] == 0.5


def test_dynamic_sampling_fills_the_batch_with_mixed_groups(tiny_config):
    rollout = {"dynamic_sampling": True, "max_sampling_rounds": 4}
    batch, engine = collect(tiny_config, rollout=rollout)
    # Mixed are 2, 5, 8, 11, ...: four of them within three rounds of four problems.
    assert prompts_of(batch) == [2, 5, 8, 11]
    assert len(engine.calls) == 3
    assert batch.metrics["sampling/rounds"] == 3
    assert batch.metrics["sampling/filled_frac"] == 0.0
    assert batch.metrics["reward/mean"] == pytest.approx((4 + 4 * 0.5) / 12)  # of all that was sampled
    assert batch.metrics["grading/correct_frac"] == pytest.approx(0.5)
    assert (batch.rewards.std(1) > 0).all()
    assert [rollout.group for rollout in batch.rollouts] == [i // 4 for i in range(16)]
    assert len({str(seeds) for seeds in engine.calls}) == 3
    again, _ = collect(tiny_config, rollout=rollout)
    assert prompts_of(again) == prompts_of(batch)
    following, _ = collect(tiny_config, number=1, rollout=rollout)
    assert min(prompts_of(following)) >= 16  # problems of its own, whatever batch 0 needed


def test_what_is_missing_after_the_last_round_is_filled_and_counted(tiny_config):
    batch, engine = collect(tiny_config, rollout={"dynamic_sampling": True, "max_sampling_rounds": 2})
    assert len(engine.calls) == 2
    assert prompts_of(batch) == [2, 5, 0, 1]
    assert batch.metrics["sampling/filled_frac"] == 0.5


def test_long_answers_are_deducted_over_the_buffer(tiny_config):
    task = {"overlong_penalty": 0.5, "overlong_buffer": 2}
    batch, _ = collect(tiny_config, task=task, rollout={"max_new_tokens": 4})
    # Lengths 1, 2, 3, 4: nothing up to 2, then half and all of 0.5. Group 0 is right.
    assert batch.rewards[0].tolist() == pytest.approx([1.0, 1.0, 0.75, 0.5])
    assert batch.rewards[1].tolist() == pytest.approx([0.0, 0.0, -0.25, -0.5])
    assert batch.metrics["grading/correct_frac"] == pytest.approx(10 / 16)  # verdicts are not shaped
    assert batch.metrics["reward/zero_variance_frac"] == 0.0


def test_nan_of_the_policy_is_a_collapse_that_names_the_count(tiny_config, tmp_path, warmstart_cache, monkeypatch):
    from drpo_bench import update

    real = update.score_tokens

    def broken(*args, **kwargs):
        scores = real(*args, **kwargs)
        scores.logprobs.data[:3] = float("nan")
        return scores

    monkeypatch.setattr(update, "score_tokens", broken)
    config = tiny_config(loss={"id": "drpo_no_abs_advantage"})
    train(config, tmp_path, warmstart_cache)
    status = RunDir(tmp_path / "runs" / config.run_id).status()
    assert (status["state"], status["reason"]) == ("collapsed", "non_finite")
    assert status["detail"].startswith("the loss of 3 of ")


def test_a_run_with_everything_on_resumes_bit_for_bit(tiny_config, tmp_path, warmstart_cache, monkeypatch):
    config = tiny_config(
        loss={"id": "dppo_topk_tv", "k": 3},
        train={"steps": 4, "kl_coef": 0.05, "entropy_coef": 0.01, "anchor": "prox"},
        rollout={"lag": 1, "dynamic_sampling": True, "max_sampling_rounds": 2},
        task={"overlong_penalty": 0.5},
        checkpoint={"every": 2},
        precision={"preset": "bf16"},
    )

    def records(path):
        rows = list(read_records(RunDir(path / "runs" / config.run_id).metrics))
        return [{k: v for k, v in r.items() if k != "time_s" and k[:5] not in ("time/", "perf/")} for r in rows]

    train(config, tmp_path / "whole", warmstart_cache)
    original = Trainer.train_on

    def killed(self, batch):
        if batch.step == 3:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(Trainer, "train_on", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", warmstart_cache)
    monkeypatch.setattr(Trainer, "train_on", original)
    train(config, tmp_path / "cut", warmstart_cache)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    last = records(tmp_path / "whole")[-1]
    assert last["reference/k3"] > 0
    assert "sampling/rounds" in last
