"""Sweeps of the real command line in the background, and what they leave."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from drpo_bench.records import RunDir
from tests.faults.tools import command, environment, states

MARK = "DRPO_BENCH_TEST"  # in the environment of a sweep and of every process that it starts
RAY, SLURM_LOCAL = ("--executor", "ray"), ("--executor", "slurm", "--slurm", "cluster=local")


class Sweep:
    """A `drpo-bench run` in a terminal's group of its own."""

    def __init__(self, folder: Path, *options: str, **changes: str) -> None:
        self.folder, self.said, self.mark = folder, folder / "said.txt", uuid.uuid4().hex
        arguments = command("run", "small.toml", "--no-tracking", *options)
        self.environment = environment(**changes, **{MARK: self.mark})
        with self.said.open("ab") as said:
            self.process = subprocess.Popen(
                arguments, cwd=folder, env=self.environment, stdout=said, stderr=said, start_new_session=True
            )

    @property
    def results(self) -> Path:
        return self.folder / "results" / "small"

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Until something has happened, while the sweep runs."""
        while not happened():
            assert self.process.poll() is None, self.said.read_text()
            time.sleep(0.01)

    def wait_for_a_checkpoint(self) -> None:
        """Until every run has one, and none has ended."""
        runs = len(list(self.results.glob("runs/*/"))) or 1
        self.wait_for(lambda: len({p.parents[1] for p in self.results.glob("runs/*/checkpoints/*/state.json")}) >= runs)
        assert set(states(self.results).values()) <= {"running", "pending"}, "the sweep is too short for this test"

    def ctrl_c(self) -> int:
        """What a terminal does: SIGINT to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(timeout=60)

    def processes(self) -> list[psutil.Process]:
        """Every process that the sweep has started, wherever it hangs by now; without the runner."""
        found = []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get(MARK) == self.mark
                if marked and process.pid != self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:  # it ended, or is another user's
                continue
        return found

    def worker(self) -> psutil.Process:
        """The process that trains the first run that is under way."""
        for path in sorted(self.results.glob("runs/*/")):
            status = RunDir(path).status()
            if status["state"] == "running":
                return psutil.Process(status["process"]["pid"])
        raise AssertionError("no run is under way")

    def end(self) -> None:
        """After a test, however it went: nothing is left."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for process in self.processes():
            process.kill()


@contextmanager
def started_sweeps(folder: Path) -> Iterator[Callable[..., Sweep]]:
    """A function that starts `small.toml` of a folder; what it started is gone after the block."""
    sweeps: list[Sweep] = []

    def start(*options: str, **changes: str) -> Sweep:
        sweeps.append(Sweep(folder, *options, **changes))
        return sweeps[-1]

    yield start
    for sweep in sweeps:
        sweep.end()


def gone(sweep: Sweep, seconds: float) -> bool:
    """Whether all of a sweep's processes have ended within some seconds."""
    until = time.monotonic() + seconds
    while sweep.processes():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True
