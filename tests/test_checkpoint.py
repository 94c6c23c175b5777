"""Checkpoints: whole or not at all, damage is noticed in any file, every random state comes back."""

from __future__ import annotations

import math
import random
import shutil

import numpy as np
import pytest
import torch

from drpo_bench import random_state
from drpo_bench.checkpoint import checkpoint_steps, newest_checkpoint
from drpo_bench.records import RunDir, read_json
from drpo_bench.rollout.batch import RolloutBatch
from drpo_bench.rollout.packing import pack_queue, unpack_queue
from drpo_bench.trainer import train
from drpo_bench.types import Rollout
from tests.conftest import TINY, merge

FILES = ["config.json", "generation_config.json", "model.safetensors", "optimizer.safetensors", "queue.safetensors"]
FILES += ["random.safetensors", "state.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, warmstart_cache):
    """A run of four steps with checkpoints of the last two."""
    from drpo_bench.config import RunConfig

    changes = {"train": {"steps": 4}, "rollout": {"lag": 1}, "checkpoint": {"every": 1}}
    config = RunConfig.model_validate(merge(TINY, changes))
    folder = tmp_path_factory.mktemp("finished")
    train(config, folder, warmstart_cache)
    return RunDir(folder / "runs" / config.run_id)


@pytest.fixture
def run_dir(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "run")
    return RunDir(tmp_path / "run")


def newest(run_dir):
    return newest_checkpoint(run_dir.checkpoints, (run_dir.metrics, run_dir.samples))


def test_the_last_checkpoint_is_whole_and_names_all_its_files(run_dir):
    path, state = newest(run_dir)
    assert (path.name, state["step"], checkpoint_steps(run_dir.checkpoints)) == ("step_4", 4, [3, 4])
    assert sorted([*state["files"], "state.json"]) == sorted(file.name for file in path.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fault", ["half", "empty", "flipped", "absent"])
def test_damage_to_any_file_of_the_last_checkpoint_leads_to_the_one_before(name, fault, run_dir):
    path = run_dir.checkpoints / "step_4" / name
    data = path.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    if fault == "absent":
        path.unlink()
    else:
        path.write_bytes({"half": data[:middle], "empty": b"", "flipped": flipped}[fault])
    with pytest.warns(UserWarning, match=name):
        found, _ = newest(run_dir)
    assert found.name == "step_3"
    assert checkpoint_steps(run_dir.checkpoints) == [3]


def test_records_that_changed_lead_to_the_checkpoint_before_them(run_dir):
    lines = run_dir.metrics.read_text().splitlines(keepends=True)
    run_dir.metrics.write_text("".join([*lines[:4], lines[4].replace("1", "2", 1)]))
    with pytest.warns(UserWarning, match=r"step_4: metrics\.jsonl is not what it was then"):
        assert newest(run_dir)[0].name == "step_3"
    run_dir.metrics.write_text("".join(lines[1:]))
    with pytest.warns(UserWarning, match=r"step_3: metrics\.jsonl"):
        assert newest(run_dir) is None


def test_records_after_the_checkpoint_do_not_matter(run_dir):
    run_dir.metrics.write_text(run_dir.metrics.read_text() + '{"step": 5, "x')
    assert newest(run_dir)[0].name == "step_4"


def test_what_a_kill_left_of_a_checkpoint_is_removed(run_dir):
    (run_dir.checkpoints / "unfinished_5").mkdir()
    assert newest(run_dir)[0].name == "step_4"
    assert sorted(path.name for path in run_dir.checkpoints.iterdir()) == ["step_3", "step_4"]


def test_a_finished_run_whose_status_is_lost_is_finished_again_with_the_same_bits(run_dir, warmstart_cache):
    from drpo_bench.config import load_run_config

    config = load_run_config(read_json(run_dir.config))
    folder = run_dir.path.parent
    (folder / "runs").mkdir()
    run_dir.path.rename(folder / "runs" / config.run_id)
    run_dir = RunDir(folder / "runs" / config.run_id)
    before, records = run_dir.status(), run_dir.metrics.read_bytes()
    (run_dir.path / "status.json").write_text('{"state": "fin')
    train(config, folder, warmstart_cache)
    after = run_dir.status()
    assert run_dir.metrics.read_bytes() == records
    for clock in ("seconds", "updated_at"):
        before.pop(clock), after.pop(clock)
    assert after == before


def test_every_random_state_comes_back():
    random_state.seed_everything(7)
    tensors, state = random_state.capture()

    def draw():
        return random.random(), random.gauss(), np.random.rand(), np.random.randn(), torch.rand(1).item()

    first = draw()
    assert draw() != first
    random_state.restore(tensors, state)
    assert draw() == first
    random_state.seed_everything(7)
    assert draw() == first


def test_metrics_of_queued_batches_that_are_not_finite_come_back():
    rollout = Rollout(0, (1,), (2, 3), torch.tensor([-1.0, -2.0]), False, 0)
    batch = RolloutBatch(3, [rollout], torch.ones(1, 1), {"a": math.inf, "b": math.nan, "c": 0.1})
    (back,) = unpack_queue(*pack_queue([batch]))
    assert (back.metrics["a"], back.metrics["c"]) == (math.inf, 0.1)
    assert math.isnan(back.metrics["b"])
