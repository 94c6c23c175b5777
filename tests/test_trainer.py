"""A run end to end: gradients, queue, records, determinism, resume, collapse."""

from __future__ import annotations

import json

import pytest
import torch

from drpo_bench.losses import LOSSES, make_loss
from drpo_bench.models import Policy
from drpo_bench.optim import LossScaler, NonFinite, Optimizer
from drpo_bench.records import RunDir, read_json, read_records
from drpo_bench.rollout.batch import RolloutBatch, RolloutQueue
from drpo_bench.trainer import Trainer, train
from drpo_bench.update import Updater, flatten
from tests.runs import untimed


def run(config, tmp_path, cache):
    train(config, tmp_path, cache)
    return RunDir(tmp_path / "runs" / config.run_id)


@pytest.mark.parametrize("loss_id", LOSSES)
def test_two_steps_with_every_loss(loss_id, tiny_config, tmp_path, warmstart_cache):
    run_dir = run(tiny_config(loss={"id": loss_id}, rollout={"lag": 1}), tmp_path, warmstart_cache)
    records = list(read_records(run_dir.metrics))
    assert [record["step"] for record in records] == [0, 1, 2]
    assert "eval/arithmetic/accuracy" in records[0]
    for name in ("reward/mean", "mismatch/k3", "staleness/k3", "drift/k3", "offpolicy/ratio_max", "optim/grad_norm"):
        assert name in records[1]
    assert records[1]["mismatch/logprob_absdiff_max"] < 1e-5
    assert records[1]["staleness/k3"] == 0.0  # batch 0 is of version 0
    assert records[2]["staleness/k3"] > 0.0  # batch 1 too, and the policy has moved
    assert run_dir.status()["state"] == "finished"


@pytest.mark.parametrize("preset", ["bf16", "fp16", "fp8_rollout", "fp8_e2e"])
def test_two_steps_in_every_precision(preset, tiny_config, tmp_path, warmstart_cache):
    run_dir = run(tiny_config(precision={"preset": preset}), tmp_path, warmstart_cache)
    records = list(read_records(run_dir.metrics))
    assert max(record["optim/grad_norm"] for record in records[1:]) > 0
    assert records[2].get("optim/skipped_steps") == 0.0
    assert ("optim/loss_scale" in records[2]) == (preset == "fp16")
    emulated = read_json(run_dir.env)["emulated"]
    assert emulated["rollout"] or preset == "bf16"
    assert emulated["trainer"] or preset in ("bf16", "fp8_rollout")


def test_config_json_is_replayable_and_the_checkpoint_loads(tiny_config, tmp_path, warmstart_cache):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from drpo_bench.config import load_run_config

    config = tiny_config()
    run_dir = run(config, tmp_path, warmstart_cache)
    data = read_json(run_dir.config)
    assert load_run_config(data) == config
    assert len(data["warmstart_sha256"]) == 64
    checkpoint = run_dir.checkpoints / "step_2"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert sum(p.numel() for p in model.parameters()) > 200_000
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert tokenizer.decode(tokenizer("3+4=", add_special_tokens=False)["input_ids"]) == "3+4="
    assert not [path for path in run_dir.path.rglob("*") if path.suffix in (".pt", ".bin", ".pkl")]


@pytest.mark.parametrize("lag", [0, 2])
def test_resumed_run_equals_an_undisturbed_one_bit_for_bit(lag, tiny_config, tmp_path, warmstart_cache, monkeypatch):
    config = tiny_config(
        train={"steps": 5}, rollout={"lag": lag}, checkpoint={"every": 2}, precision={"preset": "fp8_rollout"}
    )
    whole = run(config, tmp_path / "whole", warmstart_cache)

    class Killed(BaseException):
        pass

    steps_done = []
    original = Trainer.train_on

    def killed_in_step_four(self, batch):
        steps_done.append(batch.step)
        if batch.step == 3:
            raise Killed
        return original(self, batch)

    monkeypatch.setattr(Trainer, "train_on", killed_in_step_four)
    with pytest.raises(Killed):
        run(config, tmp_path / "cut", warmstart_cache)
    monkeypatch.setattr(Trainer, "train_on", original)
    resumed = run(config, tmp_path / "cut", warmstart_cache)
    assert untimed(resumed) == untimed(whole)
    weights = [(d.checkpoints / "step_5" / "model.safetensors").read_bytes() for d in (whole, resumed)]
    assert weights[0] == weights[1]
    assert sorted(p.name for p in resumed.checkpoints.iterdir()) == ["step_4", "step_5"]


def test_lag_is_a_queue_of_versions():
    generated = []

    def generate(number):
        generated.append((number, trained))
        return RolloutBatch(number, [], torch.zeros(1, 2))

    queue, versions = RolloutQueue(generate, lag=2, num_batches=6), []
    for trained in range(6):
        versions.append(queue.next(trained).step)
    assert versions == list(range(6))
    assert generated == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (5, 3)]


def prepared(tiny_config, tmp_path, cache, **changes):
    """A trainer with its first batch sampled and graded, one reward of each group turned around."""
    trainer = Trainer(tiny_config(**changes), RunDir(tmp_path / "run"), cache)
    batch = trainer.queue.next(0)
    batch.rewards[:, 0] = 1 - batch.rewards[:, 0]
    batch.rewards[1] = 0.0  # a group without variance, whose tokens are skipped
    return trainer, batch


def gradient_of(trainer, batch, **train_changes):
    """The policy's gradient of the first minibatch, read off before the optimizer takes it."""
    config = trainer.config.model_copy(update={"train": trainer.config.train.model_copy(update=train_changes)})
    taken = []

    class Recorder(Optimizer):
        def step(self):
            taken.append([None if p.grad is None else p.grad.clone() for p in self.parameters])
            self.adamw.zero_grad(set_to_none=True)
            from drpo_bench.optim import StepResult

            return StepResult(1.0, False)

    optimizer = Recorder(trainer.policy, config.train)
    flat = flatten(batch, config.train.advantage, trainer.device)
    Updater(trainer.policy, optimizer, trainer.loss, batch, flat, config).run()
    return taken


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean_token_mean"])
def test_gradient_does_not_depend_on_the_micro_batch_split(aggregation, tiny_config, tmp_path, warmstart_cache):
    trainer, batch = prepared(tiny_config, tmp_path, warmstart_cache)
    whole = gradient_of(trainer, batch, aggregation=aggregation, microbatch_tokens=100_000)
    for budget in (1, 60, 200):
        split = gradient_of(trainer, batch, aggregation=aggregation, microbatch_tokens=budget)
        for left, right in zip(whole, split, strict=True):
            for a, b in zip(left, right, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_skipping_zero_advantages_changes_no_gradient(tiny_config, tmp_path, warmstart_cache, monkeypatch):
    trainer, batch = prepared(tiny_config, tmp_path, warmstart_cache)
    skipping = gradient_of(trainer, batch)
    monkeypatch.setattr(type(trainer.loss), "zero_advantage_zero_gradient", False)
    computing = gradient_of(trainer, batch)
    for left, right in zip(skipping, computing, strict=True):
        for a, b in zip(left, right, strict=True):
            torch.testing.assert_close(torch.zeros_like(b) if a is None else a, b, rtol=1e-4, atol=1e-7)


def test_a_minibatch_with_nothing_left_still_takes_its_step(tiny_config, tmp_path, warmstart_cache):
    trainer, batch = prepared(tiny_config, tmp_path, warmstart_cache)
    batch.rewards[:] = 1.0
    before = [p.detach().clone() for p in trainer.policy.master.parameters()]
    flat = flatten(batch, "mean", trainer.device)
    metrics = Updater(trainer.policy, trainer.optimizer, trainer.loss, batch, flat, trainer.config).run()
    assert metrics["optim/grad_norm"] == 0.0
    assert metrics["update/tokens_used"] == 0
    moved = [not torch.equal(a, b) for a, b in zip(before, trainer.policy.master.parameters(), strict=True)]
    assert all(moved)  # weight decay
    assert trainer.optimizer.adamw.state[trainer.optimizer.parameters[0]]["step"] == 2


def test_non_finite_gradient_is_a_collapse_and_not_an_error(tiny_config, tmp_path, warmstart_cache, monkeypatch):
    def overflow(self):
        raise NonFinite("inf")

    monkeypatch.setattr(Updater, "run", overflow)
    run_dir = run(tiny_config(), tmp_path, warmstart_cache)
    status = run_dir.status()
    assert (status["state"], status["reason"], status["collapse_step"]) == ("collapsed", "non_finite", 1)


def test_fp16_overflow_halves_the_scale_and_skips_the_step(tiny_config, tmp_path, warmstart_cache):
    trainer, batch = prepared(tiny_config, tmp_path, warmstart_cache, precision={"preset": "fp16"})
    trainer.optimizer.scaler.scale = 2.0**60
    before = [p.detach().clone() for p in trainer.policy.master.parameters()]
    flat = flatten(batch, "mean", trainer.device)
    metrics = Updater(trainer.policy, trainer.optimizer, trainer.loss, batch, flat, trainer.config).run()
    assert metrics["optim/skipped_steps"] >= 1
    assert trainer.optimizer.loss_scale < 2.0**60
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.policy.master.parameters(), strict=True))


def test_loss_scaler_gives_up_when_no_scale_helps():
    scaler = LossScaler(scale=1.0)
    with pytest.raises(NonFinite):
        scaler.update(overflowed=True)


def test_collapse_is_accuracy_below_half_its_peak_twice_in_a_row():
    from drpo_bench.collapse import CollapseDetector

    detector = CollapseDetector(fraction=0.5, patience=2)
    for step, accuracy in enumerate([0.4, 0.6, 0.29, 0.31, 0.2, 0.1, 0.6]):
        detector.observe(step, accuracy)
    assert detector.step == 5
    restored = CollapseDetector(0.5, 2)
    restored.restore(json.loads(json.dumps(detector.state())))
    assert restored == detector


def test_warm_start_is_trained_once_and_the_same_everywhere(tiny_config, tmp_path):
    from drpo_bench.warmstart import ensure_warmstart

    steps = []
    first = ensure_warmstart(tiny_config(), tmp_path / "a", lambda step, accuracy: steps.append(step))
    assert steps
    again = ensure_warmstart(tiny_config(loss={"id": "spo"}), tmp_path / "a", lambda step, accuracy: 1 / 0)
    other = ensure_warmstart(tiny_config(), tmp_path / "b", lambda step, accuracy: None)
    assert first == again
    assert other.sha256 == first.sha256


def test_warm_start_that_misses_its_target_is_an_error_and_leaves_no_cache(tiny_config, tmp_path):
    from drpo_bench.warmstart import ensure_warmstart

    config = tiny_config(warmstart={"target": 1.0, "max_steps": 2, "eval_every": 2})
    with pytest.raises(RuntimeError, match=r"warmstart\.target: sampled accuracy reached"):
        ensure_warmstart(config, tmp_path, lambda step, accuracy: None)
    assert not (tmp_path / config.warmstart_key()).exists()
    with pytest.raises(RuntimeError, match=r"warmstart\.target: sampled accuracy reached"):
        ensure_warmstart(config, tmp_path, lambda step, accuracy: 1 / 0)  # remembered, not trained again


def test_policy_shares_weights_in_fp32_and_not_below(tiny_config, tmp_path, warmstart_cache):
    trainer, _ = prepared(tiny_config, tmp_path, warmstart_cache)
    assert trainer.policy.model is trainer.policy.master
    assert Policy(trainer.policy.master, "bf16", trainer.device).model is not trainer.policy.master
    assert make_loss("drpo").anchor == "mu"


def test_learning_rate_warms_up_linearly_and_a_resumed_run_goes_on(tiny_config, tmp_path, warmstart_cache):
    config = tiny_config(train={"steps": 3, "updates_per_batch": 2, "warmup_updates": 4, "lr": 1e-3})
    records = untimed(run(config, tmp_path, warmstart_cache))
    assert [record["optim/lr"] for record in records[1:]] == pytest.approx([5e-4, 1e-3, 1e-3])


@pytest.mark.parametrize(("lag", "passes"), [(0, 2), (1, 3)])
def test_a_batch_that_is_trained_on_at_once_is_scored_once_before(
    lag, passes, tiny_config, tmp_path, warmstart_cache, monkeypatch
):
    """Mismatch and staleness look at the same weights then; the numbers are those of two passes, bit for bit."""
    config, counted = tiny_config(train={"steps": 3}, rollout={"lag": lag}), []
    plain = Trainer.score

    def count(self, batch, *arguments, **options):
        counted.append(batch.step)
        return plain(self, batch, *arguments, **options)

    monkeypatch.setattr(Trainer, "score", count)
    train(config, tmp_path / "once", warmstart_cache)
    assert counted.count(2) == passes
    monkeypatch.setattr(Trainer, "score_before", lambda self, batch: plain(self, batch, entropy=True))
    train(config, tmp_path / "twice", warmstart_cache)
    once, twice = (untimed(RunDir(tmp_path / name / "runs" / config.run_id)) for name in ("once", "twice"))
    assert once == twice


def test_a_run_of_one_step_with_a_lag_knows_its_entropy(tiny_config, tmp_path, warmstart_cache):
    """Its only batch is sampled by the weights that train on it, whatever the lag."""
    config = tiny_config(train={"steps": 1}, rollout={"lag": 8})
    *_, last = untimed(run(config, tmp_path, warmstart_cache))
    assert last["policy/entropy"] > 0 and last["staleness/k3"] == 0
