"""The experiment's folder under the results directory: whose it is, who runs in it, what is done."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drpo_bench.config import NUMERICS_VERSION, RunConfig
from drpo_bench.errors import UserError
from drpo_bench.records import DONE, RunDir, read_json, write_json
from drpo_bench.sweep.plan import Experiment

OWNER = "experiment.json"


def check_folder(experiment: Experiment, out: Path) -> None:
    """Refuse a folder that holds something else. Writes nothing."""
    directory = out / experiment.info.name
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is a file, not a results folder")
    owner = directory / OWNER
    if not owner.exists():
        if directory.is_dir() and any(directory.iterdir()):
            raise UserError(f"{directory}: holds files that no experiment wrote ({OWNER} is missing); use --out")
        return
    name, file = (read_json(owner).get(key) for key in ("name", "file"))
    if (name, file) != (experiment.info.name, Path(experiment.source).name):
        raise UserError(
            f"{directory}: holds experiment {name!r} of {file}, not of {Path(experiment.source).name}; "
            "use --out or another experiment.name"
        )


@contextmanager
def owned_folder(experiment: Experiment, out: Path) -> Iterator[Path]:
    """The experiment's folder, owned by this process until the block ends."""
    from filelock import FileLock, Timeout

    directory = out / experiment.info.name
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / OWNER, experiment.info.model_dump() | {"file": Path(experiment.source).name})
    lock = FileLock(directory / "runner.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{directory}: another drpo-bench run is at work in this folder") from None
    with lock:
        yield directory


def unfinished_runs(experiment: Experiment, out: Path, force: bool) -> list[RunConfig]:
    """The runs without a result: neither in their run directory nor, unless `force`, in summary.csv."""
    directory = out / experiment.info.name
    recorded = set() if force else recorded_runs(directory / "summary.csv")
    return [
        run
        for run in experiment.runs
        if RunDir(directory / "runs" / run.run_id).status()["state"] not in DONE and run.run_id not in recorded
    ]


def recorded_runs(summary: Path) -> set[str]:
    """Run ids with a result of this numerics version in a summary.csv."""
    if not summary.exists():
        return set()
    with summary.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        row["run_id"]
        for row in rows
        if row["state"] in DONE and int(float(row["numerics_version"])) == NUMERICS_VERSION
    }
