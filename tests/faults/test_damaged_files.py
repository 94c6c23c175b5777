"""Every file of a stopped run, cut short or changed: the run ends as if nothing had happened, or the user is told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from drpo_bench.records import RunDir
from tests.faults.damages import DAMAGES, cut_the_last_line, drop_a_line, flip_a_bit
from tests.faults.interrupted import start, stop_after
from tests.faults.tools import differences, end_state, tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CHECKPOINT = [
    *("state.json", "model.safetensors", "optimizer.safetensors", "queue.safetensors", "random.safetensors"),
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
]
RUN = ["metrics.jsonl", "samples.jsonl", "status.json", "config.json", "env.json"]
WARMSTART = ["model.safetensors", "config.json", "tokenizer.json", "warmstart.json", "warmstart.jsonl"]
STEPS = {"steps": 6}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The end state of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "results" / "small"
    assert start(tiny_run(train=STEPS), folder) == 0
    return end_state(folder)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a run that was killed after its fifth batch, with checkpoints of the second and fourth."""
    results = tmp_path_factory.mktemp("killed") / "results"
    stop_after(tiny_run(train=STEPS), results / "small", 5)
    return results


@pytest.fixture
def stopped(killed: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be damaged."""
    return shutil.copytree(killed, tmp_path / "results")


def check_it_ends_as_undisturbed(results: Path, undisturbed: dict[str, Any]) -> str:
    """Start the run again, compare, and return what it said."""
    run_dir, folder = RunDir(results / "small" / "runs" / tiny_run(train=STEPS).run_id), results / "small"
    assert start(tiny_run(train=STEPS), folder) == 0, run_dir.log.read_text()
    assert differences(undisturbed, folder) == []
    return run_dir.log.read_text()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", CHECKPOINT)
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_it_used(name, damage, stopped, undisturbed):
    (newest,) = stopped.glob("small/runs/*/checkpoints/step_4")
    assert sorted(path.name for path in newest.iterdir()) == sorted(CHECKPOINT)
    damage(newest / name)
    said = check_it_ends_as_undisturbed(stopped, undisturbed)
    assert "step_4" in said and "the run goes on from before it" in said


def test_without_a_whole_checkpoint_the_run_starts_over(stopped, undisturbed):
    for path in stopped.glob("small/runs/*/checkpoints/step_*"):
        flip_a_bit(path / "optimizer.safetensors")
    said = check_it_ends_as_undisturbed(stopped, undisturbed)
    assert said.count("the run goes on from before it") == 2


@pytest.mark.parametrize("damage", [*DAMAGES, cut_the_last_line, drop_a_line])
@pytest.mark.parametrize("name", RUN)
def test_damaged_files_of_a_run_are_written_anew(name, damage, stopped, undisturbed):
    (path,) = stopped.glob(f"small/runs/*/{name}")
    damage(path)
    check_it_ends_as_undisturbed(stopped, undisturbed)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", WARMSTART)
def test_a_damaged_warm_start_is_trained_again(name, damage, stopped, undisturbed):
    (path,) = stopped.glob(f"warmstarts/*/{name}")
    before = path.read_bytes()
    damage(path)
    check_it_ends_as_undisturbed(stopped, undisturbed)
    assert path.read_bytes() == before
