"""A wall clock that jumps by ten years, back and forth, while runs are under way: nothing depends on it."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults.tools import (
    TWO_RUNS,
    cli,
    command,
    differences,
    environment,
    recorded,
    refused,
    states,
    write_sweep,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
# Python imports it in every process, workers as well, before anything else.
SITECUSTOMIZE = """
import time
real, ten_years = time.time, 10 * 365 * 86400.0
def jumping():
    return real() + (ten_years if int(time.monotonic() * 2) % 2 else -ten_years)
time.time = jumping
"""


@pytest.fixture
def jumping(tmp_path: Path) -> str:
    """PYTHONPATH of processes whose time.time jumps twice a second."""
    folder = tmp_path / "clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return f"{folder}:{environment().get('PYTHONPATH', '')}"


def test_a_clock_that_jumps_changes_no_result_and_no_duration(jumping, undisturbed_sweep, tmp_path):
    write_sweep(tmp_path, TWO_RUNS, steps=20)
    begin = time.monotonic()
    done = cli("run", "small.toml", "--out", "jumped", cwd=tmp_path, PYTHONPATH=jumping)
    elapsed = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    folder = tmp_path / "jumped" / "small"
    assert differences(undisturbed_sweep, folder) == []
    durations = [value for (_, name, _), value in recorded(folder).items() if name.startswith(("time/", "perf/"))]
    assert durations and min(durations) >= 0
    written = [json.loads(path.read_text())["updated_at"] for path in folder.glob("runs/*/status.json")]
    assert all(abs(when - time.time()) > 9 * 365 * 86400 for when in written)  # the workers' clocks did jump
    for path in folder.glob("runs/*/metrics.jsonl"):
        times = [json.loads(line)["time_s"] for line in path.read_text().splitlines()]
        assert times == sorted(times)
        assert times[0] >= 0 and times[-1] < elapsed
    status = cli("status", "jumped/small", "--json", cwd=tmp_path, PYTHONPATH=jumping)
    assert status.returncode == 0, status.stderr
    assert all(0 <= row["seconds"] < elapsed for row in json.loads(status.stdout))


def test_a_clock_that_jumps_steals_no_folder(jumping, tmp_path):
    write_sweep(tmp_path, TWO_RUNS, steps=30)
    run, folder = ("run", "small.toml", "--no-tracking"), tmp_path / "results" / "small"
    first = subprocess.Popen(command(*run), cwd=tmp_path, env=environment(PYTHONPATH=jumping))
    try:
        while "running" not in states(folder).values():
            assert first.poll() is None
            time.sleep(0.01)
        for attempt in range(2):  # half a second later the clock stands twenty years from there
            refused(cli(*run, cwd=tmp_path, PYTHONPATH=jumping), f"process {first.pid} of")
            time.sleep(0.5 * (attempt == 0))
        assert first.wait(timeout=240) == 0
        assert set(states(folder).values()) == {"finished"}
    finally:
        first.kill()
        first.wait()
