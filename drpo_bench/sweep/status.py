"""`drpo-bench status`: the runs of a folder, from the files alone; no process is asked."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live

from drpo_bench.analysis.csv_rows import SUMMARY
from drpo_bench.console import output
from drpo_bench.errors import UserError
from drpo_bench.process import is_alive
from drpo_bench.records import EXPERIMENT_FILE, read_json
from drpo_bench.sweep.folder import recorded_runs
from drpo_bench.sweep.lock import OWNER, read_owner
from drpo_bench.sweep.run_row import Row, read_row
from drpo_bench.sweep.status_table import fitting, line, view

REFRESH_SECONDS = 2.0
HEARTBEAT_LOST = 60.0  # seconds after which a runner on another machine counts as gone


@dataclass(frozen=True)
class Sweep:
    """The runs of one experiment folder."""

    directory: Path
    rows: list[Row]

    @property
    def eta_s(self) -> float | None:
        """Seconds until everything has run, if as many workers stay at it; None where none is at work or speeds are
        not known. A run whose speed is not known takes as long as the others of its experiment do on average."""
        running = [row for row in self.rows if row.state == "running"]
        whole = [row.seconds_per_step * row.steps for row in self.rows if is_timed(row)]  # type: ignore[operator]
        if not running or not whole:
            return None
        typical = sum(whole) / len(whole)
        left = [row.eta_s if row.eta_s is not None else typical for row in running]
        waiting = sum(typical * (1 - done(row)) for row in self.rows if row.state == "pending")
        return max(*left, (sum(left) + waiting) / len(running))

    @property
    def is_over(self) -> bool:
        """Whether nothing runs, and nobody is there to start what is pending."""
        states = {row.state for row in self.rows}
        return "running" not in states and ("pending" not in states or not has_runner(self.directory))


def is_timed(row: Row) -> bool:
    """Whether the length of the whole run is known."""
    return row.phase is None and row.seconds_per_step is not None and row.steps is not None


def done(row: Row) -> float:
    """The share of its batches that a run has done."""
    return min(1.0, (row.step or 0) / row.steps) if row.steps and row.phase is None else 0.0


def has_runner(directory: Path) -> bool:
    """Whether a `drpo-bench run` is at work in the folder, as far as its owner's file tells."""
    owner = read_owner(directory)
    if owner is None:
        return False
    alive = is_alive(owner["process"])
    return alive or (alive is None and time.time() - (directory / OWNER).stat().st_mtime < HEARTBEAT_LOST)


def read_sweeps(directory: Path) -> list[Sweep]:
    """The experiments of a results folder, one experiment folder, or one run. Raises UserError if there is none."""
    if not (directory / "runs").is_dir() and (directory / "status.json").exists():
        return [Sweep(directory.absolute().parent.parent, [read_row(directory)])]
    folders = [directory] if (directory / "runs").is_dir() else sorted(p.parent for p in directory.glob("*/runs"))
    sweeps = [Sweep(folder, rows) for folder in folders if (rows := list(experiment_rows(folder)))]
    if not sweeps:
        raise UserError(f"{directory}: no runs here")
    return sweeps


def experiment_rows(folder: Path) -> Iterator[Row]:
    """The runs on disk, then those that `drpo-bench run` planned and has not begun."""
    paths = sorted((folder / "runs").glob("*/"))
    yield from map(read_row, paths)
    for run_id in planned(folder, {path.name for path in paths}):
        yield Row(folder.absolute().name, run_id, "pending")


def planned(folder: Path, begun: set[str]) -> list[str]:
    """The runs of the last `drpo-bench run` without a directory, and without a result in summary.csv."""
    try:
        missing = [run_id for run_id in read_json(folder / EXPERIMENT_FILE).get("planned", []) if run_id not in begun]
        recorded = recorded_runs(folder / SUMMARY) if missing else set()
    except (UserError, OSError):  # damaged, or not there
        return []
    return [run_id for run_id in missing if run_id not in recorded]


def print_status(directory: Path, as_json: bool, watch: bool) -> None:
    """Print once, or until everything is over; Ctrl-C ends it quietly."""
    console = output()
    try:
        if watch and as_json:
            watch_as_json(directory, console)
        elif watch and not console.is_terminal:
            watch_as_lines(directory, console)
        elif watch:
            watch_as_table(directory, console)
        elif as_json:
            rows = [asdict(row) for sweep in read_sweeps(directory) for row in sweep.rows]
            console.print_json(json.dumps(rows))
        else:
            console.print(view(read_sweeps(directory), console.width))
    except KeyboardInterrupt:
        return


def refreshed(directory: Path) -> Iterator[list[Sweep]]:
    """The sweeps every two seconds, until all are over; the last look is at the end."""
    while True:
        sweeps = read_sweeps(directory)
        yield sweeps
        if all(sweep.is_over for sweep in sweeps):
            return
        time.sleep(REFRESH_SECONDS)


def watch_as_table(directory: Path, console: Console) -> None:
    """A table that is drawn anew, as tall as the terminal; the whole of it stays at the end."""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for sweeps in refreshed(directory):
            live.update(fitting(sweeps, console), refresh=True)
    console.print(view(sweeps, console.width))


def watch_as_json(directory: Path, console: Console) -> None:
    """One object a line and refresh."""
    for sweeps in refreshed(directory):
        experiments = [{"experiment": sweep.directory.absolute().name, "eta_s": sweep.eta_s} for sweep in sweeps]
        runs = [asdict(row) for sweep in sweeps for row in sweep.rows]
        data = {"at": time.time(), "experiments": experiments, "runs": runs}
        console.out(json.dumps(data), highlight=False)


def watch_as_lines(directory: Path, console: Console) -> None:
    """A line for every run that is not where it was at the last look."""
    seen: dict[tuple[str, str], tuple[object, ...]] = {}
    for sweeps in refreshed(directory):
        for row in (row for sweep in sweeps for row in sweep.rows):
            key, now = (row.experiment, row.run_id), (row.state, row.phase, row.step, row.accuracy, row.reason)
            if seen.get(key) != now:
                seen[key] = now
                console.out(f"{time.strftime('%H:%M:%S')} {line(row)}", highlight=False)
