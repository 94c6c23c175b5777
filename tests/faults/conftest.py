"""End states that nothing happened to, made once for all of pytest's processes; sweeps in the background."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.faults.sweeps import Sweep, started_sweeps
from tests.faults.tools import TWO_RUNS, cli, end_state, write_sweep


@pytest.fixture(scope="session")
def undisturbed_sweep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The end state of TWO_RUNS over 20 steps, by the command line."""
    base = tmp_path_factory.getbasetemp()
    folder: Path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            write_sweep(folder, TWO_RUNS, steps=20)
            done = cli("run", "small.toml", "--no-tracking", cwd=folder)
            assert done.returncode == 0, done.stderr
    return end_state(folder / "results" / "small")


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Sweep]]:
    """Start `small.toml` of the test's folder."""
    with started_sweeps(tmp_path) as start:
        yield start
