"""Live progress of a sweep: a bar for each run under way on a terminal, a line for each that ends elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich import progress as bars
from rich.console import Console
from rich.markup import escape

from drpo_bench.config import RunConfig
from drpo_bench.records import State
from drpo_bench.sweep.runner import run_dir_of

COLOURS = {"finished": "green", "collapsed": "yellow", "failed": "red"}


class Progress:
    """Reads the status files of the runs under way; a context manager around a sweep."""

    def __init__(self, console: Console, done: int, total: int, out: Path) -> None:
        self.console, self.out, self.done, self.total = console, out, done, total
        self.bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=24),
            bars.TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[note]}"),
            bars.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.sweep = self.bars.add_task("[bold]sweep", total=total, completed=done, note="runs")
        self.tasks: dict[str, bars.TaskID] = {}

    def __enter__(self) -> Progress:
        self.bars.start()
        self.console.print(f"{self.total - self.done} of {self.total} runs to go", highlight=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()
        if kind is KeyboardInterrupt:
            self.console.print("Stopped. Run the same command again to resume.")

    def on_end(self, run: RunConfig, state: State) -> None:
        """A run ended, or failed and waits for another attempt."""
        if run.run_id in self.tasks:
            self.bars.remove_task(self.tasks.pop(run.run_id))
        status = run_dir_of(run, self.out).status()
        if state == "pending":
            reason = escape(status.get("reason", ""))
            self.console.print(
                f"{run.run_id} [red]failed[/] ({reason}) and will be tried again", highlight=False, soft_wrap=True
            )
            return
        self.done += 1
        self.bars.update(self.sweep, completed=self.done)
        accuracy = f", last accuracy {status['accuracy']:.3f}" if status.get("accuracy") is not None else ""
        where = f" at step {status['collapse_step']}" if "collapse_step" in status else ""
        seconds = f", {status['seconds']:.0f} s" if "seconds" in status else ""
        colour = COLOURS.get(state, "white")
        self.console.print(
            f"[{self.done}/{self.total}] {run.run_id} [{colour}]{state}[/]{where}{accuracy}{seconds}",
            highlight=False,
            soft_wrap=True,
        )

    def on_poll(self, runs: Sequence[RunConfig]) -> None:
        """Move the bars of the runs under way; one that waits in a queue has none."""
        if self.bars.disable:
            return
        waiting = 0
        for run in runs:
            status = run_dir_of(run, self.out).status()
            if status["state"] != "running":
                waiting += 1
                continue
            if run.run_id not in self.tasks:
                self.tasks[run.run_id] = self.bars.add_task(run.run_id, total=run.train.steps, note="")
            note = status.get("phase") or ""
            if status.get("accuracy") is not None:
                note += f" accuracy {status['accuracy']:.3f}"
            self.bars.update(
                self.tasks[run.run_id],
                completed=status.get("step", 0),
                total=status.get("steps", run.train.steps),
                note=note,
            )
        self.bars.update(self.sweep, note=f"runs, {waiting} queued" if waiting else "runs")
