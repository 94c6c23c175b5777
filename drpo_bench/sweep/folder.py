"""The experiment's folder under the results directory: whose it is, who runs in it, what is done."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drpo_bench.analysis.csv_rows import CURVE_KEY, CURVES, SUMMARY, read_rows
from drpo_bench.analysis.runs import KEY
from drpo_bench.config import NUMERICS_VERSION, SCHEMA_VERSION, RunConfig, load_run_config
from drpo_bench.errors import UserError
from drpo_bench.records import (
    DONE,
    EXPERIMENT_FILE,
    DamagedFile,
    RunDir,
    extent,
    read_json,
    remove_leftovers,
    write_json,
)
from drpo_bench.same_run import changed_fields, check_same_run, check_schema
from drpo_bench.sweep.lock import LOCK, owned
from drpo_bench.sweep.plan import AXES, Experiment


def check_folder(experiment: Experiment, out: Path) -> None:
    """Refuse a folder that holds something else. Writes nothing."""
    directory = out / experiment.info.name
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is a file, not a results folder")
    owner = directory / EXPERIMENT_FILE
    if not owner.exists():
        if directory.is_dir() and any(directory.iterdir()):
            raise UserError(
                f"{directory}: holds files that no experiment wrote ({EXPERIMENT_FILE} is missing); use --out"
            )
        return
    check_schema(directory)
    try:
        found = read_json(owner)
        name, file = found["name"], found["file"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{owner}: not a file that drpo-bench wrote; use --out") from None
    if (name, file) != (experiment.info.name, Path(experiment.source).name):
        raise UserError(
            f"{directory}: holds experiment {name!r} of {file}, not of {Path(experiment.source).name}; "
            f"name the file {file} again, use --out, or another experiment.name"
        )
    for table, key in ((SUMMARY, KEY), (CURVES, CURVE_KEY)):
        read_rows(directory / table, key)  # or no run could be added to it
    for run in experiment.runs:
        check_same_run(RunDir(directory / "runs" / run.run_id), run)
    check_unchanged(experiment, directory)


def check_unchanged(experiment: Experiment, directory: Path) -> None:
    """Raise UserError where a run was begun and stopped, and the file now says something else for it.

    That is a run that none of the planned ones continues, and that differs from one of them in no axis of the sweep.
    """
    planned = {run.run_id for run in experiment.runs}
    axes = tuple(AXES.get(axis, axis) for axis in experiment.axes)
    for path in sorted((directory / "runs").glob("*/")):
        run_dir = RunDir(path)
        if path.name in planned or run_dir.status()["state"] not in ("pending", "running"):
            continue
        if not run_dir.config.exists() or not any(run_dir.checkpoints.glob("step_*")):
            continue
        then = load_run_config(read_json(run_dir.config))
        for run in experiment.runs:
            changes = changed_fields(then, run)
            if not any(field == axis or field.startswith(f"{axis}.") for field in changes for axis in axes):
                raise UserError(
                    f"{experiment.source}: {path} was begun with {', '.join(changes.values())}; undo the change to "
                    "resume it, remove that folder, or use --out"
                )


@contextmanager
def owned_folder(experiment: Experiment, out: Path, take_over: bool = False) -> Iterator[Path]:
    """The experiment's folder, owned by this process until the block ends."""
    directory = out / experiment.info.name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / LOCK).touch()
    except OSError as error:
        raise UserError(f"{directory}: cannot be written: {error.strerror}") from None
    with owned(directory, take_over) as stale:
        if stale:
            sys.stderr.write(f"drpo-bench: {stale}\n")
        remove_leftovers(directory)
        about: dict[str, Any] = {"file": Path(experiment.source).name, "schema_version": SCHEMA_VERSION}
        about["planned"] = [run.run_id for run in experiment.runs]  # for `status`, before they have directories
        write_json(directory / EXPERIMENT_FILE, experiment.info.model_dump() | about)
        for path in directory.glob("runs/*/status.json"):  # what a killed runner left behind
            run_dir = RunDir(path.parent)
            if run_dir.status()["state"] == "running":
                run_dir.set_stopped()
        yield directory


def unfinished_runs(experiment: Experiment, out: Path, force: bool) -> list[RunConfig]:
    """The runs without a result in their directory; of those without a directory, the ones that summary.csv has no
    result of either, or all with `force`."""
    directory = out / experiment.info.name
    recorded = set() if force else recorded_runs(directory / SUMMARY)
    run_dirs = {run.run_id: RunDir(directory / "runs" / run.run_id) for run in experiment.runs}
    done = {run_id for run_id, run_dir in run_dirs.items() if has_result(run_dir)}
    done |= {run_id for run_id in recorded & set(run_dirs) if not run_dirs[run_id].path.exists()}
    return [run for run in experiment.runs if run.run_id not in done]


def has_result(run_dir: RunDir) -> bool:
    """Whether the run is done and its files are whole; a run with damaged ones is resumed, which mends them."""
    status = run_dir.status()
    if status["state"] not in DONE:
        return False
    try:
        for path in (run_dir.config, run_dir.env):
            read_json(path)
    except (DamagedFile, FileNotFoundError):
        return False
    return bool({path.name: extent(path) for path in run_dir.records} == status.get("records"))


def recorded_runs(summary: Path) -> set[str]:
    """Run ids with a result of this numerics version in a summary.csv. Raises UserError."""
    return {
        row["run_id"]
        for row in read_rows(summary, KEY)
        if row.get("state") in DONE and int(row["numerics_version"]) == NUMERICS_VERSION
    }
