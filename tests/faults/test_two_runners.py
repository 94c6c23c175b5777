"""Two runners on one results folder: the second is refused, what a dead one left is taken over, nobody is harmed."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.tools import TWO_RUNS, cli, command, environment, refused, states, write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
RUN = ("run", "small.toml", "--no-tracking")


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start the sweep in the background; it is gone after the test."""
    write_sweep(tmp_path, TWO_RUNS, steps=30)
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / "said.txt").open("ab") as said:
            started.append(subprocess.Popen(command(*RUN), cwd=tmp_path, env=environment(), stdout=said, stderr=said))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_until_a_run_is_under_way(folder: Path, process: subprocess.Popen[bytes]) -> None:
    while "running" not in states(folder).values():
        assert process.poll() is None, (folder.parents[1] / "said.txt").read_text()
        time.sleep(0.01)


def test_the_second_is_refused_with_the_first_named_and_the_first_goes_on(launch, tmp_path):
    first, folder = launch(), tmp_path / "results" / "small"
    wait_until_a_run_is_under_way(folder, first)
    owner = (folder / "runner.json").read_bytes()
    refused(
        cli(*RUN, cwd=tmp_path), "results/small", f"process {first.pid} of", f"on {socket.gethostname()}", "started"
    )
    refused(cli(*RUN, "--take-over", cwd=tmp_path), f"process {first.pid} of")  # a live one is never taken over
    assert first.poll() is None
    assert (folder / "runner.json").read_bytes() == owner
    assert first.wait(timeout=240) == 0, (tmp_path / "said.txt").read_text()
    assert set(states(folder).values()) == {"finished"}
    assert not (folder / "runner.json").exists()


def test_what_a_killed_runner_left_is_taken_over_with_a_note(launch, tmp_path):
    first, folder = launch(), tmp_path / "results" / "small"
    wait_until_a_run_is_under_way(folder, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = cli(*RUN, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    (note,) = second.stderr.strip().splitlines()
    assert "taken over" in note and f"process {first.pid} of" in note
    assert set(states(folder).values()) == {"finished"}


def test_a_runner_on_another_machine_is_taken_over_only_when_told(tmp_path):
    write_sweep(tmp_path, TWO_RUNS, steps=2)
    folder = tmp_path / "results" / "small"
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps({"name": "small", "question": "", "file": "small.toml"}))
    process = {"host": "node7", "pid": 4321, "started": 12.0}
    owner = {"process": process, "user": "alice", "started_at": time.time() - 7200, "command": "drpo-bench run small"}
    (folder / "runner.json").write_text(json.dumps(owner))
    refused(cli(*RUN, cwd=tmp_path), "process 4321 of alice on node7", "2 hours ago", "--take-over")
    assert states(folder) == {}
    taken = cli(*RUN, "--take-over", cwd=tmp_path)
    assert taken.returncode == 0, taken.stderr
    assert set(states(folder).values()) == {"finished"}
