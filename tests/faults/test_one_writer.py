"""However the processes of a sweep die, no run is ever trained by two of them at once."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from drpo_bench.records import RunDir
from tests.faults.tools import TWO_RUNS, command, ended, environment, states, write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
END_SECONDS = 10.0  # in which a worker without a runner must have ended


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start the sweep in the background; it is gone after the test."""
    write_sweep(tmp_path, TWO_RUNS, steps=60)
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / "said.txt").open("ab") as said:
            started.append(
                subprocess.Popen(
                    command("run", "small.toml", "--no-tracking", "--workers", "2"),
                    cwd=tmp_path,
                    env=environment(),
                    stdout=said,
                    stderr=said,
                )
            )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def writers(folder: Path) -> dict[str, list[psutil.Process]]:
    """Run id -> the processes whose output goes to the run's log: a worker's does, from its start to its end."""
    logs = {str(RunDir(path).log): path.name for path in folder.glob("runs/*/")}
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        if (target := output_of(process)) in logs:
            found.setdefault(logs[target], []).append(process)
    # Looked at again: one that was seen first may have ended before the next began.
    return {run_id: [p for p in seen if output_of(p) in logs] for run_id, seen in found.items()}


def output_of(process: psutil.Process) -> str:
    """Where its standard output goes; nothing where it has ended or is another user's."""
    try:
        return str(Path(f"/proc/{process.pid}/fd/1").readlink())
    except OSError:
        return ""


def wait_for_both(folder: Path, runner: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """Run id -> worker, once both have done a batch."""
    while True:
        assert runner.poll() is None, (folder.parents[1] / "said.txt").read_text()
        found = [RunDir(path).status() for path in folder.glob("runs/*/")]
        if len(found) == 2 and all(status.get("step") and "phase" not in status for status in found):
            return {run_id: process for run_id, (process,) in writers(folder).items()}
        time.sleep(0.01)


def test_workers_end_with_their_runner(sweep, tmp_path):
    folder, runner = tmp_path / "results" / "small", sweep()
    workers = wait_for_both(folder, runner)
    assert len(workers) == 2
    runner.kill()
    until = time.monotonic() + END_SECONDS
    while writers(folder):
        assert time.monotonic() < until, writers(folder)
        time.sleep(0.01)
    assert "finished" not in states(folder).values()


def test_a_forkserver_that_dies_leaves_no_second_writer(sweep, tmp_path):
    """The runner cannot hear of such workers any more; before their runs are tried again they must have ended."""
    folder, runner = tmp_path / "results" / "small", sweep()
    first = wait_for_both(folder, runner)
    forkserver = next(iter(first.values())).parent()
    assert forkserver is not None and forkserver.pid != runner.pid
    forkserver.kill()
    most: Counter[str] = Counter()
    while runner.poll() is None:
        for run_id, processes in writers(folder).items():
            most[run_id] = max(most[run_id], len(processes))
        for run_id, state in states(folder).items():
            assert state != "failed" or ended(first[run_id]), "a run is called failed while it is trained"
        time.sleep(0.005)
    assert set(most.values()) <= {1}, most
    assert runner.returncode == 0 or sweep().wait(timeout=240) == 0
    assert set(states(folder).values()) == {"finished"}
