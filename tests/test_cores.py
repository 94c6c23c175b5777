"""Workers of this machine hold different cores, whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drpo_bench.sweep.cores import available_cores

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no processes")
CORES = available_cores()
HOLD = """
import os, sys
from drpo_bench.sweep.cores import own_cores
with own_cores(int(sys.argv[1])) as cores:
    print(*cores, "of", *sorted(os.sched_getaffinity(0)), flush=True)
    sys.stdin.read()
"""
Holder = Callable[[int], tuple[subprocess.Popen[str], str]]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Holder]:
    """Start a process that wants so many cores, and hear what it got."""
    started: list[subprocess.Popen[str]] = []

    def start(count: int) -> tuple[subprocess.Popen[str], str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(count)], env=environment, **pipes)
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_no_two_processes_hold_one_core_and_a_killed_one_frees_its_own(hold):
    holders = [hold(1) for _ in CORES]
    assert sorted(said for _, said in holders) == sorted(f"{core} of {core}" for core in CORES)
    everywhere = f"of {' '.join(map(str, CORES))}"
    assert hold(1)[1] == everywhere  # none is left: not pinned
    first, said = holders[0]
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert hold(1)[1] == said


@pytest.mark.skipif(len(CORES) < 2, reason="takes two cores")
def test_who_needs_more_than_is_free_holds_nothing(hold):
    taken = hold(1)[1].split(" of ")[0]
    assert hold(len(CORES))[1] == f"of {' '.join(map(str, CORES))}"
    assert {*hold(len(CORES) - 1)[1].split(" of ")[0].split()} == {*map(str, CORES)} - {taken}
