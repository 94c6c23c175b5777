"""The executor and the number of workers change no result, bit for bit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.faults.sweeps import RAY, SLURM_LOCAL
from tests.faults.tools import cli, differences, end_state, write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
THREE_RUNS = """
loss = [{ id = "pg_is" }, { id = "drpo", delta = 0.15 }]
precision = ["fp32", "fp8_rollout"]
[[sweep.exclude]]
loss = { id = "pg_is" }
precision = "fp8_rollout"
"""


def run(folder: Path, *options: str) -> Path:
    """Run the sweep in a folder of its own, each run held to one core; the experiment's folder."""
    folder.mkdir()
    write_sweep(folder, THREE_RUNS)
    cores = folder / "tmp"
    cores.mkdir()
    done = cli("run", "small.toml", "--no-tracking", *options, cwd=folder, TMPDIR=str(cores), RAY_TMPDIR="/tmp")
    assert done.returncode == 0, done.stderr
    results = folder / "results" / "small"
    logs = [path.read_text() for path in results.glob("runs/*/log.txt")]
    assert len(logs) == 3 and all(re.fullmatch(r"process \d+ on \S+, cores \d+\n", log) for log in logs), logs
    return results


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The end state of the sweep, one run after the other."""
    return end_state(run(tmp_path_factory.mktemp("one") / "sweep", "--workers", "1"))


@pytest.mark.parametrize("executor", [("--executor", "local"), RAY, SLURM_LOCAL], ids=lambda options: options[1])
def test_every_executor_gives_the_results_of_one_worker(executor, one_worker, tmp_path):
    results = run(tmp_path / "sweep", *executor, "--workers", "2")
    assert len([name for name in one_worker if "model.safetensors" in str(name)]) >= 3  # weights are compared
    assert differences(one_worker, results) == []
