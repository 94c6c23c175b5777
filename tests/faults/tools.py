"""What the tests of faults share: a small sweep, the real command line, and the end state that no fault may change."""

from __future__ import annotations

import csv
import json
import os
import re
import sqlite3
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from drpo_bench.config import RunConfig
from drpo_bench.records import RunDir
from drpo_bench.sweep.plan import expand
from tests.runs import untimed

# Rewards fall with the length of an answer, so that a policy that solves nothing yet is trained all the same.
SWEEP = """
[experiment]
name = "small"
[task]
name = "arithmetic"
min_terms = 2
max_terms = 2
max_operand = 9
overlong_penalty = 1.0
overlong_buffer = 24
[warmstart]
target = 0.0
max_steps = 10
eval_every = 10
eval_problems = 16
lr = 6e-3
warmup_steps = 5
[rollout]
problems_per_batch = 4
group_size = 4
max_new_tokens = 24
lag = 2
[train]
steps = {steps}
updates_per_batch = 2
[eval]
every = 2
problems = 8
[checkpoint]
every = 2
keep = 2
[sweep]
{axes}
"""
ONE_RUN = 'loss = [{ id = "drpo", delta = 0.15 }]\nprecision = ["fp32"]'
TWO_RUNS = 'loss = [{ id = "pg_is" }, { id = "drpo", delta = 0.15 }]\nprecision = ["fp32"]'
TIMED = {"seconds"}  # columns of summary.csv that the clock decides
# Fields of status.json; `records` hashes the times too, attempts are what faults cost.
NOT_COMPARED = {"updated_at", "seconds", "process", "records", "attempt"}
CLOCKED = ("time/", "perf/")  # metrics
TEMPORARY = re.compile(r"unfinished_\d+|\..+\.\d+|.+\.unfinished")


def write_sweep(folder: Path, axes: str = ONE_RUN, steps: int = 4) -> Path:
    """The experiment file `small.toml` in a folder."""
    path = folder / "small.toml"
    path.write_text(SWEEP.format(steps=steps, axes=axes))
    return path


def command(*arguments: str) -> list[str]:
    """The command line as users call it."""
    return [sys.executable, "-m", "drpo_bench.cli", *arguments]


def environment(**changes: str) -> dict[str, str]:
    """The environment of a run: one thread a process, as on a machine that is shared."""
    return os.environ | {"OMP_NUM_THREADS": "1"} | changes


def cli(*arguments: str, cwd: Path, timeout: float = 240, **changes: str) -> subprocess.CompletedProcess[str]:
    """A command run to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def refused(done: subprocess.CompletedProcess[str], *names: str) -> None:
    """Assert that a command told the user of a mistake: exit 2, a line or two that say the names, no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    for name in names:
        assert name in done.stderr


def end_state(folder: Path) -> dict[str, Any]:
    """Everything in an experiment's folder that the clock does not decide, by name."""
    state: dict[str, Any] = {}
    for path in sorted(folder.glob("runs/*/")):
        run_dir = RunDir(path)
        state[f"{path.name}/status.json"] = without(run_dir.status(), NOT_COMPARED)
        state[f"{path.name}/config.json"] = json.loads(run_dir.config.read_text()) if run_dir.config.exists() else None
        state[f"{path.name}/metrics.jsonl"] = untimed(run_dir)
        state[f"{path.name}/samples.jsonl"] = run_dir.samples.read_bytes() if run_dir.samples.exists() else None
        for file in sorted(run_dir.checkpoints.glob("step_*/*.safetensors")):
            state[f"{path.name}/{file.parent.name}/{file.name}"] = file.read_bytes()
    for name in ("summary.csv", "curves.csv"):
        if (folder / name).exists():
            with (folder / name).open(newline="") as file:
                state[name] = [without(row, TIMED) for row in csv.DictReader(file)]
    return state


def ended(process: psutil.Process) -> bool:
    """Whether a process has ended; its parent may not have asked for its exit code yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed(before: dict[Path, bytes], folder: Path) -> list[Path]:
    """The files below a folder that are not as they were."""
    after = contents(folder)
    return [path for path in sorted({*before, *after}) if before.get(path) != after.get(path)]


def without(table: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """A table without some of its entries."""
    return {key: value for key, value in table.items() if key not in names}


def differences(reference: dict[str, Any], folder: Path) -> list[str]:
    """What of a folder's end state is not as in the reference, by name; and temporary files that were left."""
    found = end_state(folder)
    names = [name for name in sorted({*reference, *found}) if reference.get(name) != found.get(name)]
    return names + [str(path.relative_to(folder.parent)) for path in leftovers(folder.parent)]


def leftovers(results: Path) -> list[Path]:
    """Temporary files and folders below a results folder, which nobody would ever remove."""
    return sorted(path for path in results.rglob("*") if TEMPORARY.fullmatch(path.name))


def states(folder: Path) -> dict[str, str]:
    """Run id -> state, of the runs that have begun."""
    return {path.name: RunDir(path).status()["state"] for path in sorted(folder.glob("runs/*/"))}


def recorded(folder: Path) -> dict[tuple[str, str, int], float]:
    """(run, metric, step) -> value, of every metric of every run, as the files have it."""
    return {
        (path.name, key, line["step"]): line[key]
        for path in sorted(folder.glob("runs/*/"))
        for line in map(json.loads, RunDir(path).metrics.read_text().splitlines())
        for key in line.keys() - {"step", "time_s"}
    }


def tracked(database: Path, experiment: str = "small") -> Iterator[tuple[tuple[str, str, int], float]]:
    """((run, metric, step), value), of every metric that an MLflow database has of an experiment's runs."""
    query = """
        select params.value, metrics.key, metrics.step, metrics.value from metrics
        join runs using (run_uuid) join experiments using (experiment_id)
        join params on params.run_uuid = metrics.run_uuid and params.key = 'run_id'
        where experiments.name = ? and runs.lifecycle_stage = 'active' and metrics.key != 'time_s'
    """
    with sqlite3.connect(database) as connection:
        for run, key, step, value in connection.execute(query, (experiment,)):
            yield (run, key, step), value
    connection.close()


def check_tracked(database: Path, folder: Path) -> list[str]:
    """What MLflow has twice, not at all, or otherwise than the files.

    The seconds of a batch that was trained again after a kill are those of its first time, if they had been sent.
    """
    sent, expected = list(tracked(database)), recorded(folder)
    counts = Counter(name for name, _ in sent)
    twice = {name for name, count in counts.items() if count > 1}
    wrong = {name for name, value in sent if value != expected.get(name) and not name[1].startswith(CLOCKED)}
    problems = {"twice": twice, "missing": expected.keys() - counts.keys(), "not as in the files": wrong}
    return [f"{len(which)} {problem}, such as {min(which)}" for problem, which in problems.items() if which]


def tiny_run(**tables: Any) -> RunConfig:
    """The one run of ONE_RUN, with changed tables."""
    data = tomllib.loads(SWEEP.format(steps=4, axes=ONE_RUN))
    for name, changes in tables.items():
        data[name] = data.get(name, {}) | changes
    (run,) = expand(data, "small.toml", {}).runs
    return run
