"""A sweep as an array job of a real Slurm, of one node."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from drpo_bench.records import RunDir
from tests.faults.sweeps import Sweep, gone, started_sweeps
from tests.faults.tools import (
    ONE_RUN,
    TWO_RUNS,
    changed,
    cli,
    contents,
    differences,
    end_state,
    refused,
    states,
    write_sweep,
)
from tests.services.conftest import absent
from tests.services.slurm import SlurmCluster

pytestmark = pytest.mark.timeout(300)
STEPS = 30


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    if not (shutil.which("slurmctld") and shutil.which("slurmd") and shutil.which("srun")):
        absent("Slurm")
    folder = Path(tempfile.mkdtemp(prefix="drpo-slurm-"))
    cluster = SlurmCluster(folder)
    cluster.start()
    yield cluster
    cluster.stop()
    shutil.rmtree(folder)


@pytest.fixture
def launch(tmp_path: Path, slurm: SlurmCluster) -> Iterator[Callable[..., Sweep]]:
    """Start `small.toml` of the test's folder as jobs."""
    with started_sweeps(tmp_path) as start:
        yield partial(start, "--executor", "slurm", **slurm.environment)


def quiet(folder: Path, axes: str) -> dict[str, Any]:
    """The end state of the same sweep on this machine alone."""
    folder.mkdir()
    write_sweep(folder, axes, STEPS)
    assert cli("run", "small.toml", "--no-tracking", cwd=folder).returncode == 0
    return end_state(folder / "results" / "small")


def jobs(slurm: SlurmCluster) -> list[str]:
    """Those that wait or run."""
    return slurm.ask("squeue", "--noheader", "--array", "--format=%i").split()


def test_an_array_job_gives_the_results_of_this_machine(slurm, launch, tmp_path):
    write_sweep(tmp_path, TWO_RUNS, STEPS)
    sweep = launch("--slurm", "time=10", "--workers", str(len(os.sched_getaffinity(0))))
    sweep.wait_for(lambda: {job.split("_")[-1] for job in jobs(slurm)} == {"0", "1"})
    assert len({job.split("_")[0] for job in jobs(slurm)}) == 1  # one array
    assert sweep.process.wait(timeout=200) == 0, sweep.said.read_text()
    assert differences(quiet(tmp_path / "here", TWO_RUNS), sweep.results) == []
    assert jobs(slurm) == []


def test_what_sbatch_refuses_is_told_before_anything_is_written(slurm, tmp_path):
    write_sweep(tmp_path, ONE_RUN, STEPS)
    before = contents(tmp_path)
    done = cli("run", "small.toml", "--executor", "slurm", "--slurm", "partition=no", cwd=tmp_path, **slurm.environment)
    refused(done, "--executor slurm", "partition")
    assert changed(before, tmp_path) == []


def test_jobs_of_a_killed_runner_are_taken_back_by_the_next_one(slurm, launch, tmp_path):
    write_sweep(tmp_path, TWO_RUNS, STEPS)
    sweep = launch()
    sweep.wait_for(lambda: "running" in states(sweep.results).values())
    sweep.process.kill()
    sweep.process.wait()
    (array,) = {job.split("_")[0] for job in jobs(slurm)}
    again = launch()
    again.wait_for(lambda: not any(job.startswith(f"{array}_") for job in jobs(slurm)))
    assert again.process.wait(timeout=200) == 0, again.said.read_text()
    assert differences(quiet(tmp_path / "here", TWO_RUNS), sweep.results) == []
    assert jobs(slurm) == []


def test_a_cancelled_job_is_tried_again_and_ctrl_c_takes_all_jobs_back(slurm, launch, tmp_path):
    write_sweep(tmp_path, ONE_RUN, STEPS)
    sweep = launch()
    sweep.wait_for_a_checkpoint()
    (first,) = jobs(slurm)
    slurm.ask("scancel", first)
    sweep.wait_for(lambda: any(job != first for job in jobs(slurm)))
    assert "ended as CANCELLED" in sweep.said.read_text()
    assert sweep.ctrl_c() != 0
    until = time.monotonic() + 20
    while jobs(slurm):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert gone(sweep, 10)
    (run_dir,) = map(RunDir, sweep.results.glob("runs/*/"))
    assert (run_dir.status()["state"], run_dir.status()["reason"]) == ("pending", "stopped")
    assert launch().process.wait(timeout=200) == 0
    assert differences(quiet(tmp_path / "here", ONE_RUN), sweep.results) == []
