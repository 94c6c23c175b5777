"""Routing replay in whole runs: what is replayed, what is measured, and that a resumed run has not lost its routes."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from drpo_bench.records import RunDir
from drpo_bench.rollout.batch import RolloutBatch
from drpo_bench.trainer import train
from drpo_bench.types import Rollout
from tests.runs import stop_at_the_first_checkpoint, untimed

MOE = {
    "model": {"architecture": "qwen3_moe"},
    "precision": {"trainer": "fp32", "rollout": {"dtype": "bf16", "fp8_weights": True}},
    "rollout": {"lag": 1},
}


def run(config, folder, cache):
    train(config, folder, cache)
    return untimed(RunDir(folder / "runs" / config.run_id))


@pytest.mark.slow
def test_r3_takes_the_engines_routes_and_lowers_the_mismatch(tiny_config, tmp_path, warmstart_cache):
    results = {
        mode: run(tiny_config(**MOE, train={"routing_replay": mode}), tmp_path / mode, warmstart_cache)
        for mode in ("off", "R2", "R3")
    }
    flips = {mode: records[1]["mismatch/router_flip_frac"] for mode, records in results.items()}
    assert 0 < flips["off"] == flips["R2"]  # both measure a free pass of the first batch
    k3 = {mode: records[1]["mismatch/k3"] for mode, records in results.items()}
    assert k3["R3"] < k3["off"] == k3["R2"]
    assert results["off"] != results["R2"] != results["R3"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["R2", "R3"])
def test_a_resumed_run_still_has_the_routes_of_what_waits_in_the_queue(mode, tiny_config, tmp_path, warmstart_cache):
    config = tiny_config(**MOE, train={"steps": 4, "routing_replay": mode}, checkpoint={"every": 2})
    undisturbed = run(config, tmp_path / "first", warmstart_cache)
    stop_at_the_first_checkpoint(config, tmp_path / "second", warmstart_cache)
    assert run(config, tmp_path / "second", warmstart_cache) == undisturbed


def test_replay_without_experts_is_refused(tiny_config):
    with pytest.raises(
        ValidationError, match=r"train\.routing_replay is 'R3', but model\.architecture 'qwen3' has no experts"
    ):
        tiny_config(train={"routing_replay": "R3"})


def test_replay_in_a_checkpoint_without_such_routers_is_an_error_at_the_start(tiny_config, tmp_path, warmstart_cache):
    finished = tiny_config(train={"steps": 1})
    train(finished, tmp_path, warmstart_cache)
    checkpoint = tmp_path / "runs" / finished.run_id / "checkpoints" / "step_1"
    config = tiny_config(model={"name": str(checkpoint)}, train={"routing_replay": "R3"})
    with pytest.raises(ValueError, match=r"train\.routing_replay: Qwen3ForCausalLM has no router"):
        train(config, tmp_path, warmstart_cache)


def test_replay_without_routes_is_an_error_and_no_silent_own_choice():
    rollouts = [Rollout(0, (1, 2), (3,), torch.zeros(1), True, 0)]
    batch = RolloutBatch(0, rollouts, torch.zeros(1, 1))
    with pytest.raises(ValueError, match="'R3', but the rollout engine tells no routes"):
        batch.replayed("R3")
    with pytest.raises(ValueError, match="'R2', but the trainer's model tells no routes"):
        batch.replayed("R2")
    assert batch.replayed("off") is None


def test_switching_replay_off_leaves_run_ids_as_they_were(tiny_config):
    plain = tiny_config(model={"architecture": "qwen3_moe"})
    assert "routing_replay" not in plain.identity()["train"]
    replayed = tiny_config(model={"architecture": "qwen3_moe"}, train={"routing_replay": "R2"})
    assert replayed.run_id != plain.run_id
