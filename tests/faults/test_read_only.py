"""A results folder that cannot be written: exit 2, and one line that names it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.tools import changed, cli, command, contents, refused, write_sweep

pytestmark = pytest.mark.slow
RUN = ("run", "small.toml", "--out", "frozen")


@pytest.fixture
def freeze(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Make the folder `frozen` read-only, for root by mounting it so, for others by its permissions."""
    write_sweep(tmp_path, steps=2)
    folder, is_root = tmp_path / "frozen", os.geteuid() == 0
    folder.mkdir()

    def make_read_only() -> None:
        if is_root:
            subprocess.run(["mount", "--bind", folder, folder], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        else:
            for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
                path.chmod(0o555)

    yield make_read_only
    if is_root:
        subprocess.run(["umount", folder], check=False)
    else:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)


def test_a_folder_that_cannot_be_made_is_refused(freeze, tmp_path):
    freeze()
    refused(cli(*RUN, cwd=tmp_path), "frozen", "cannot be written")
    assert not list((tmp_path / "frozen").iterdir())


def test_results_that_became_read_only_are_refused_and_can_still_be_looked_at(freeze, tmp_path):
    done = cli(*RUN, "--no-tracking", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before = contents(tmp_path)
    freeze()
    for tracking in ("--tracking", "--no-tracking"):
        refused(cli(*RUN, tracking, cwd=tmp_path), "frozen", "cannot be written")
    for looking in (("status", "frozen/small", "--json"), ("compare", "frozen/small"), (*RUN, "--dry-run")):
        looked = cli(*looking, cwd=tmp_path)
        assert looked.returncode == 0, looked.stderr
    refused(cli("report", "frozen/small", cwd=tmp_path), "frozen/small")
    assert changed(before, tmp_path) == []


# Root may write anywhere, by a capability: this gives it up (PR_CAPBSET_DROP, CAP_DAC_OVERRIDE) and runs the rest.
DROP = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def test_a_folder_of_another_user_is_refused(tmp_path):
    write_sweep(tmp_path, steps=2)
    (tmp_path / "frozen").mkdir(mode=0o755 if os.geteuid() == 0 else 0o555)
    if os.geteuid() == 0:
        os.chown(tmp_path / "frozen", 65534, 65534)
    prefix = [sys.executable, "-c", DROP] if os.geteuid() == 0 else [sys.executable]
    done = subprocess.run(
        [*prefix, *command(*RUN, "--no-tracking")[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    refused(done, "frozen", "cannot be written")
    assert not list((tmp_path / "frozen").iterdir())
