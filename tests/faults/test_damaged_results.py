"""A finished sweep whose files are damaged: what drpo-bench can make again it mends, what it cannot it leaves alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.faults.damages import Damage, cut_in_half, cut_the_last_line, empty, flip_a_bit, remove
from tests.faults.tools import changed, check_tracked, cli, contents, differences, end_state, refused, write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
DELTAS = (0.02, 0.04, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5)
RUNS = f"""
precision = ["fp32"]
loss = [{", ".join(f'{{ id = "drpo", delta = {delta} }}' for delta in DELTAS)}]
"""
# One run each.
MENDED: list[tuple[str, Damage]] = [
    ("status.json", cut_in_half),
    ("status.json", remove),
    ("metrics.jsonl", flip_a_bit),
    ("metrics.jsonl", cut_the_last_line),
    ("samples.jsonl", flip_a_bit),
    ("config.json", empty),
    ("env.json", cut_in_half),
    ("mlflow.json", cut_in_half),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment file and the results of its sweep."""
    folder = tmp_path_factory.mktemp("finished")
    write_sweep(folder, RUNS, steps=2)
    done = cli("run", "small.toml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(finished, tmp_path, dirs_exist_ok=True)


def test_damaged_files_of_finished_runs_are_mended_by_the_next_start(finished, copied):
    reference: dict[str, Any] = end_state(finished / "results" / "small")
    for (name, damage), path in zip(MENDED, sorted(copied.glob("results/small/runs/*/")), strict=True):
        damage(path / name)
    done = cli("run", "small.toml", cwd=copied)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert differences(reference, copied / "results" / "small") == []
    assert check_tracked(copied / "results" / "mlflow.db", copied / "results" / "small") == []


@pytest.mark.parametrize("damage", [cut_in_half, empty, flip_a_bit])
@pytest.mark.parametrize("name", ["experiment.json", "summary.csv", "curves.csv"])
def test_what_cannot_be_made_again_is_refused_by_name_and_left_alone(name, damage, copied):
    """The tables may hold rows of runs from other machines: no run is started that could not be added to them."""
    shutil.rmtree(min(copied.glob("results/small/runs/*/")))
    path = copied / "results" / "small" / name
    if damage is flip_a_bit:
        path.write_bytes(path.read_bytes().replace(b'"name"', b'"nbme"').replace(b"run_id,", b"rup_id,"))
    else:
        damage(path)
    before = contents(copied)
    refused(cli("run", "small.toml", "--no-tracking", "--force", cwd=copied), str(path.relative_to(copied)))
    assert changed(before, copied) == []
