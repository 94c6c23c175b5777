"""What a run under way in this process is doing, from its status file; on standard error."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress as bars
from rich.console import Console

from drpo_bench.records import RunDir

POLL_SECONDS = 0.2
SILENCE = 10.0  # seconds after which a pipe gets a line


@contextmanager
def following(run_dir: RunDir, steps: int) -> Iterator[None]:
    """A bar on a terminal, a line every ten seconds in a pipe, until the block ends."""
    console, stopping = Console(stderr=True, highlight=False), threading.Event()
    bar = bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=24),
        bars.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        bars.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with bar:
        thread = threading.Thread(target=follow, args=(run_dir, steps, bar, stopping), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()


def follow(run_dir: RunDir, steps: int, bar: bars.Progress, stopping: threading.Event) -> None:
    """Show the status until told to stop."""
    task, spoke = bar.add_task("replay", total=steps), time.monotonic()
    while not stopping.wait(POLL_SECONDS):
        status = run_dir.status()
        in_warmstart = status.get("phase") == "warm start"
        what, total = ("warm start", status["steps"]) if in_warmstart else ("replay", steps)
        done = min(status.get("step", 0), total)
        bar.update(task, description=what, completed=done, total=total)
        if bar.disable and time.monotonic() - spoke > SILENCE:
            spoke = time.monotonic()
            bar.console.print(f"{what}: step {done}/{total}", soft_wrap=True)
