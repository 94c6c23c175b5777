"""A run is killed, cut off from power, or out of disk space at each of its operations on files in turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.interrupted import FULL, start
from tests.faults.tools import differences, end_state, tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
FEWEST = {"kill": 60, "power": 60, "full": 40}  # operations of a run: fewer would mean that some are not seen
EXIT_CODES = {"kill": -9, "power": -9, "full": 1}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "results" / "small"
    assert start(tiny_run(), folder) == 0
    return folder


@pytest.mark.parametrize("kind", ["kill", "power", "full"])
def test_a_fault_at_every_operation_on_files_changes_nothing(kind, undisturbed, tmp_path):
    """The n-th start of the run meets the fault at its n-th operation, until a start is through before that."""
    config, folder = tiny_run(), tmp_path / "results" / "small"
    operation, code = 0, None
    while code != 0:
        operation += 1
        code = start(config, folder, at=operation, kind=kind)
        assert code in (0, EXIT_CODES[kind]), f"operation {operation}: {log_of(folder)}"
        if kind == "full" and code and operation > 10:  # its log is open by then
            assert FULL in log_of(folder).splitlines()[-1]
    assert operation > FEWEST[kind]
    assert differences(end_state(undisturbed), folder) == []


def log_of(folder: Path) -> str:
    return (folder / "runs" / tiny_run().run_id / "log.txt").read_text()
