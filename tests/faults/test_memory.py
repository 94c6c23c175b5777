"""A worker that runs out of memory takes nothing with it but its own run, which is tried again."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from drpo_bench.records import RunDir
from tests.faults.tools import TWO_RUNS, command, differences, environment, states, write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
VICTIM = "pg_is"
CGROUPS = Path("/sys/fs/cgroup/memory")  # of version 1, where a group needs nothing but permission
Group = Path | None


def limit(worker: psutil.Process, group: Group) -> None:
    """Not a page more than it has: its next request fails."""
    worker.rlimit(psutil.RLIMIT_AS, (worker.memory_info().vms, resource.RLIM_INFINITY))


def overcommit(worker: psutil.Process, group: Group) -> None:
    """Alone in a group of processes with less memory than it will use: the kernel kills it."""
    if group is None:
        kill(worker, group)
    else:
        (group / "memory.limit_in_bytes").write_text(str(2**20))
        (group / "cgroup.procs").write_text(str(worker.pid))


def kill(worker: psutil.Process, group: Group) -> None:
    """What the kernel does, done by hand."""
    worker.send_signal(signal.SIGKILL)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    """A group of processes with a memory of its own, where this machine lets one make it."""
    if not os.access(CGROUPS, os.W_OK):
        yield None
        return
    group = CGROUPS / f"drpo-bench-{tmp_path.name}"
    group.mkdir()
    yield group
    group.rmdir()


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the sweep in the background; it is gone after the test."""
    write_sweep(tmp_path, TWO_RUNS, steps=20)
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> subprocess.Popen[bytes]:
        arguments = command("run", "small.toml", "--no-tracking", "--workers", "2", *options)
        with (tmp_path / "said.txt").open("ab") as said:
            started.append(subprocess.Popen(arguments, cwd=tmp_path, env=environment(), stdout=said, stderr=said))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def worker_of(folder: Path, runner: subprocess.Popen[bytes], step: int) -> psutil.Process:
    """The process that trains the victim's run, once it has done so many batches."""
    while runner.poll() is None:
        for path in folder.glob(f"runs/*-{VICTIM}-*"):
            status = RunDir(path).status()
            done = -1 if "phase" in status else status.get("step", -1)
            if "process" in status and status["process"]["pid"] != runner.pid and (done >= step or not step):
                return psutil.Process(status["process"]["pid"])
        time.sleep(0.002)
    raise AssertionError("the sweep ended before")


# At its start a worker needs memory for the model.
@pytest.mark.parametrize("starve", [limit, overcommit])
def test_a_worker_out_of_memory_is_tried_again(starve, group, sweep, undisturbed_sweep, tmp_path):
    folder, runner = tmp_path / "results" / "small", sweep("--retries", "1")
    starve(worker_of(folder, runner, step=0), group)
    assert runner.wait(timeout=240) == 0, (tmp_path / "said.txt").read_text()
    assert differences(undisturbed_sweep, folder) == []
    assert "Traceback" not in (tmp_path / "said.txt").read_text()
    if group and starve is overcommit:
        assert "oom_kill 1" in (group / "memory.oom_control").read_text()


@pytest.mark.parametrize(("starve", "step", "reason"), [(limit, 0, "memory"), (kill, 3, "killed by signal 9")])
def test_without_retries_only_its_run_fails(starve, step, reason, group, sweep, undisturbed_sweep, tmp_path):
    folder, runner = tmp_path / "results" / "small", sweep("--retries", "0")
    starve(worker_of(folder, runner, step), group)
    assert runner.wait(timeout=240) == 1
    assert sorted(states(folder).values()) == ["failed", "finished"]
    (failed,) = (RunDir(path).status() for path in folder.glob(f"runs/*-{VICTIM}-*"))
    assert reason in failed["reason"].lower()
    assert failed["step"] >= step
    assert "Traceback" not in (tmp_path / "said.txt").read_text()
    assert sweep("--retries", "0").wait(timeout=240) == 0, (tmp_path / "said.txt").read_text()
    assert differences(undisturbed_sweep, folder) == []
