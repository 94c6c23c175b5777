"""The disk under the results folder is full: the runs fail with the reason, and finish when there is space again."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drpo_bench.records import RunDir
from tests.faults import interrupted
from tests.faults.tools import TWO_RUNS, cli, differences, end_state, states, tiny_run, write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
KIB = 1024
# Of the disk: too small for a folder, the warm start (1 MB), the first, second and third checkpoint (3 MB each).
SIZES = [16, 400, 900, 1300, 2000, 3300, 4100, 5000, 7100, 9000, 10100]
REASON = "No space left on device"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed") / "results" / "small"
    assert interrupted.start(tiny_run(train={"steps": 6}), folder) == 0
    return end_state(folder)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own for the results folder."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk; the other tests inject its errors")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def resize(disk: Path, kib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kib}k", disk], check=True)


def test_a_run_on_a_disk_that_grows_ends_as_undisturbed(disk, undisturbed):
    """The disk fills at another place each time; the run goes on from the last checkpoint that fitted."""
    config, folder, outcomes, kept = tiny_run(train={"steps": 6}), disk / "results" / "small", [], []
    log = RunDir(folder / "runs" / config.run_id).log
    for size in SIZES:
        resize(disk, size)
        outcomes.append(interrupted.start(config, folder))
        kept.append(sorted(path.parent.name for path in folder.glob("runs/*/checkpoints/step_*/state.json")))
        if log.exists() and log.stat().st_size:
            assert outcomes[-1] == 0 or REASON in log.read_text()
    assert outcomes == [1] * (len(SIZES) - 1) + [0]
    assert [] in kept and ["step_2"] in kept and ["step_2", "step_4"] in kept
    assert differences(undisturbed, folder) == []


def limited(config: dict[str, Any], experiment_dir: Path, size: int) -> None:
    """A run whose files may not be larger than `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    interrupted.run(config, experiment_dir, 0, "kill")


def test_a_file_that_may_not_grow_fails_the_run_and_leaves_no_checkpoint(undisturbed, tmp_path):
    config, folder = tiny_run(train={"steps": 6}), tmp_path / "results" / "small"
    for size in (500 * KIB, 1500 * KIB):  # not enough for the model, for the optimizer
        assert interrupted.finish(limited, config, folder, size) == 1
        assert "File too large" in RunDir(folder / "runs" / config.run_id).log.read_text()
        assert not list(folder.glob("runs/*/checkpoints/step_*"))
    assert interrupted.start(config, folder) == 0
    assert differences(undisturbed, folder) == []


@pytest.mark.parametrize("kib", [32, 9000])
def test_a_sweep_on_a_full_disk_fails_with_the_reason_and_finishes_later(kib, disk, undisturbed_sweep, tmp_path):
    write_sweep(tmp_path, TWO_RUNS, steps=20)
    resize(disk, kib)
    command = ("run", "small.toml", "--out", "disk/results", "--workers", "2")
    full = cli(*command, cwd=tmp_path)
    assert full.returncode == 1, full.stdout + full.stderr
    assert REASON in full.stdout + full.stderr
    assert "Traceback" not in full.stderr
    resize(disk, 64 * KIB)
    later = cli(*command, cwd=tmp_path)
    assert later.returncode == 0, later.stdout + later.stderr
    folder = disk / "results" / "small"
    assert set(states(folder).values()) == {"finished"}
    assert differences(undisturbed_sweep, folder) == []
