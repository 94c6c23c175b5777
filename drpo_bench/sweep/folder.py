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
    try:
        found = read_json(owner)
        name, file = found["name"], found["file"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{owner}: not a file that drpo-bench wrote; use --out") from None
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
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / "runner.lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise UserError(f"{directory}: another drpo-bench run is at work in this folder") from None
    except OSError as error:
        raise UserError(f"{directory}: cannot be written: {error.strerror}") from None
    with lock:
        write_json(directory / OWNER, experiment.info.model_dump() | {"file": Path(experiment.source).name})
        for path in directory.glob("runs/*/status.json"):  # what a killed runner left behind
            run_dir = RunDir(path.parent)
            if run_dir.status()["state"] == "running":
                run_dir.set_status("pending", reason="stopped")
        yield directory


def unfinished_runs(experiment: Experiment, out: Path, force: bool) -> list[RunConfig]:
    """The runs without a result: neither in their run directory nor, unless `force`, in summary.csv."""
    directory = out / experiment.info.name
    recorded = set() if force else recorded_runs(directory / "summary.csv")
    return [
        run
        for run in experiment.runs
        if not has_result(RunDir(directory / "runs" / run.run_id)) and run.run_id not in recorded
    ]


def has_result(run_dir: RunDir) -> bool:
    """Whether the run is done, and in this version's numbers."""
    return run_dir.status()["state"] in DONE and read_json(run_dir.config)["numerics_version"] == NUMERICS_VERSION


def recorded_runs(summary: Path) -> set[str]:
    """Run ids with a result of this numerics version in a summary.csv."""
    if not summary.exists():
        return set()
    with summary.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return {
            row["run_id"]
            for row in rows
            if row["state"] in DONE and int(float(row["numerics_version"])) == NUMERICS_VERSION
        }
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{summary}: not a table that drpo-bench wrote") from None
