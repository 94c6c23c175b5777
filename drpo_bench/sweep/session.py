"""What `drpo-bench run` does: plan, checks, runs with live progress, tracking, figures and report."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drpo_bench.analysis.csv_rows import SUMMARY
from drpo_bench.config import RunConfig
from drpo_bench.records import DONE
from drpo_bench.sweep.cost import estimate
from drpo_bench.sweep.executors import ExecutorOptions
from drpo_bench.sweep.folder import check_folder, owned_folder, unfinished_runs
from drpo_bench.sweep.plan import Experiment, field_of
from drpo_bench.sweep.preflight import preflight
from drpo_bench.sweep.runner import run_all, run_dir_of


def print_plan(experiment: Experiment, out: Path, options: ExecutorOptions, force: bool) -> None:
    """Every run with its state and estimated cost; writes nothing."""
    options.check(experiment.runs)
    check_folder(experiment, out)
    preflight(experiment, options.elsewhere)
    varied = [axis for axis in experiment.axes if axis not in ("seed", "precision", "loss", "model")]
    table = Table(title=experiment.info.name)
    table.add_column("run", no_wrap=True)
    table.add_column("loss parameters")
    for axis in varied:
        table.add_column(axis)
    table.add_column("state", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("minutes", justify="right", no_wrap=True)
    minutes, unknown = 0.0, False
    unfinished = unfinished_runs(experiment, out, force)
    todo = {run.run_id for run in unfinished}
    for run in experiment.runs:
        cost, state = estimate(run), run_dir_of(run, out).status()["state"]
        if run.run_id not in todo:
            state = state if state in DONE else "recorded"  # in summary.csv, from another machine or day
        else:
            minutes += cost.minutes or 0.0
            unknown |= cost.minutes is None
        params = " ".join(f"{key}={value}" for key, value in run.loss.settings.items())
        axes = [axis_text(field_of(run, axis, experiment.source)) for axis in varied]
        estimated = "?" if cost.minutes is None else f"{cost.minutes:.1f}"
        table.add_row(run.run_id, params, *axes, state, f"{cost.tokens / 1e6:.2f} M", estimated)
    # A plan that is piped into a file is not cut to a terminal that is not there.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)
    count = options.simultaneous(unfinished or experiment.runs)
    console.print(
        f"{len(experiment.runs)} runs, {count} at a time: {'at least ' if unknown else ''}about "
        f"{minutes / count:.1f} minutes to go after the warm starts (a rough estimate), at most "
        f"{megabytes(unfinished):.0f} MB of checkpoints and records",
        highlight=False,
        soft_wrap=True,
    )
    print_warnings(experiment, options, unfinished, out)


def megabytes(runs: Sequence[RunConfig]) -> float:
    """What runs leave on the disk at most, where that is known."""
    return sum(estimate(run).megabytes or 0.0 for run in runs)


def disk_warnings(runs: Sequence[RunConfig], out: Path) -> list[str]:
    """That the disk has not as much free as the runs may leave on it."""
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    needed, free = megabytes(runs), shutil.disk_usage(folder).free / 1e6
    if needed < free:
        return []
    return [f"the runs leave up to {needed:.0f} MB of checkpoints and records; {folder} has only {free:.0f} MB free"]


def axis_text(value: object) -> str:
    """An axis value in the plan: a table as its entries, without the braces."""
    return " ".join(f"{key}={item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def print_warnings(experiment: Experiment, options: ExecutorOptions, todo: Sequence[RunConfig], out: Path) -> None:
    """What a user should know before the runs start, each once, on standard error."""
    console = Console(stderr=True, highlight=False)
    warnings = [warning for run in experiment.runs for warning in run.warnings()]
    for warning in dict.fromkeys(warnings + options.warnings(experiment.runs) + disk_warnings(todo, out)):
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def run_experiment(
    experiment: Experiment,
    out: Path,
    options: ExecutorOptions,
    force: bool,
    tracking_uri: str | None,
    take_over: bool = False,
) -> bool:
    """Run what is missing, then draw figures and report. True if every run has a result."""
    from drpo_bench.sweep.progress import Progress
    from drpo_bench.tracking import Tracker
    from drpo_bench.tracking.store import check_store, shown

    options.check(experiment.runs)
    check_folder(experiment, out)
    preflight(experiment, options.elsewhere)
    if tracking_uri:
        check_store(tracking_uri)
    console, todo = Console(), unfinished_runs(experiment, out, force)
    print_warnings(experiment, options, todo, out)
    reached = closing(options.make(todo)) if todo else nullcontext()  # a cluster, before anything is written
    with reached as executor, owned_folder(experiment, out, take_over) as directory:
        tracker = Tracker(directory, tracking_uri) if tracking_uri else None
        if tracker and todo:
            tracker.start()
        if executor:
            todo = unfinished_runs(experiment, out, force)  # again, now that nobody else runs them
            with Progress(console, len(experiment.runs) - len(todo), len(experiment.runs), out) as progress:
                run_all(todo, out, executor, options.retries, progress.on_end, progress.on_poll)
        has_results = any(run_dir_of(run, out).config.exists() for run in experiment.runs)
        if has_results or (directory / SUMMARY).exists():
            report = summarise(directory, console)
            console.print(f"Report: {report}\nFigures: {directory / 'figures'}", highlight=False, soft_wrap=True)
        if tracker and tracker.finish():
            console.print(f"MLflow: {shown(tracker.uri)}", highlight=False, soft_wrap=True)
    states = {run.run_id: run_dir_of(run, out).status() for run in experiment.runs}
    failed = {run_id: status for run_id, status in states.items() if status["state"] == "failed"}
    for run_id, status in failed.items():
        log = directory / "runs" / run_id / "log.txt"
        reason = escape(f"{run_id} failed at step {status['step']}: {status['reason']} (log: {log})")
        console.print(f"[red]{reason}[/]", highlight=False, soft_wrap=True)
    return not failed


def summarise(directory: Path, console: Console) -> Path:
    """Write figures and report, and print the table of results."""
    from drpo_bench.analysis.report import comparison_table, write_report

    with console.status("Drawing figures"):
        report = write_report(directory)
    console.print(comparison_table([directory]))
    return report
