"""The runs of a folder as a table, and a run as a line."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from drpo_bench.sweep.run_row import Row

if TYPE_CHECKING:
    from drpo_bench.sweep.status import Sweep

COLOURS = {"running": "cyan", "finished": "green", "collapsed": "yellow", "failed": "red", "pending": "dim"}
URGENCY = ("running", "failed", "pending", "collapsed", "finished")  # what a short terminal shows first
NARROW = 90  # columns of a terminal below which reward and speed are left out
RUN_WIDTH = 20  # columns that a run's name has at least, folded


def view(sweeps: Sequence[Sweep], width: int, most: int | None = None) -> Group:
    """A table an experiment, at most so many rows in all, the most urgent ones; and what is to be said of runs."""
    parts: list[Table | Text] = []
    left = most
    for sweep in sweeps:
        rows = sweep.rows if left is None else sorted(sweep.rows, key=urgency)[:left]
        left = None if left is None else left - len(rows)
        parts.append(Text.assemble((headline(sweep), "bold")))
        if rows:
            parts.append(table(rows, width))
        if hidden := len(sweep.rows) - len(rows):
            parts.append(Text(f"and {hidden} more: {counted([row for row in sweep.rows if row not in rows])}"))
        parts += notes(rows)
    return Group(*parts)


def fitting(sweeps: Sequence[Sweep], console: Console) -> Group:
    """As many rows as the terminal has room for."""
    most = sum(len(sweep.rows) for sweep in sweeps)
    while True:
        shown = view(sweeps, console.width, most)
        excess = len(console.render_lines(shown)) - (console.height - 1)
        if excess <= 0 or most == 0:
            return shown
        most -= min(most, max(1, excess // 3))


def urgency(row: Row) -> int:
    """The place of a row among those of a short terminal."""
    return URGENCY.index(row.state) if row.state in URGENCY else 0


def headline(sweep: Sweep) -> str:
    """`quickstart: 10 runs: 7 finished, 2 running, 1 pending; about 12 min to go`."""
    count = len(sweep.rows)
    words = f"{sweep.directory.absolute().name}: {count} run{'s' if count != 1 else ''}: {counted(sweep.rows)}"
    return words if sweep.eta_s is None else f"{words}; about {duration(sweep.eta_s)} to go"


def counted(rows: Sequence[Row]) -> str:
    """How many are in which state."""
    states = Counter(row.state for row in rows)
    return ", ".join(f"{states[state]} {state}" for state in sorted(states, key=lambda s: -states[s]))


def table(rows: Sequence[Row], width: int) -> Table:
    """One row a run."""
    narrow = width < NARROW
    result = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    result.add_column("run", overflow="fold", min_width=RUN_WIDTH)
    result.add_column("state", no_wrap=True)
    for header in ("step", "accuracy", *(() if narrow else ("reward", "s/step")), "to go", "age"):
        result.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        state = Text(row.phase if row.state == "running" and row.phase else row.state, COLOURS.get(row.state, ""))
        speed = [decimals(row.reward), significant(row.seconds_per_step)]
        cells = [progress(row), decimals(row.accuracy), *([] if narrow else speed), duration(row.eta_s)]
        result.add_row(Text(row.run_id), state, *cells, duration(row.age_s))
    return result


def notes(rows: Sequence[Row]) -> Iterator[Text]:
    """A line for each run of which there is something to say, and for each other machine."""
    for host, count in sorted(Counter(host for row in rows if (host := elsewhere(row))).items()):
        yield Text(f"{count} of them on {host}")
    for row in rows:
        if said := note(row):
            yield Text(f"{row.run_id}: {said}", COLOURS["failed"] if row.state == "failed" else "")


def note(row: Row) -> str:
    """What no column holds: where it collapsed, and why it did, or failed, or waits."""
    where = f"collapsed at step {row.collapse_step}" if row.collapse_step is not None else ""
    return ": ".join(part for part in (where, row.reason) if part)


def elsewhere(row: Row) -> str | None:
    """The machine that a run is on, where it is another one: of its process only the last sign of life is known."""
    return row.host if row.host != socket.gethostname() else None


def line(row: Row) -> str:
    """A run in one line."""
    parts = [row.phase if row.state == "running" and row.phase else row.state]
    if row.step is not None:
        parts.append(f"step {progress(row)}")
    if row.accuracy is not None:
        parts.append(f"accuracy {decimals(row.accuracy)}")
    if row.reward is not None:
        parts.append(f"reward {decimals(row.reward)}")
    if row.eta_s is not None:
        parts.append(f"{significant(row.seconds_per_step)} s a step, {duration(row.eta_s)} to go")
    if host := elsewhere(row):
        parts.append(f"on {host}")
    if said := note(row):
        parts.append(said)
    return f"{row.run_id}: {', '.join(parts)}"


def progress(row: Row) -> str:
    """`12/60`."""
    return "" if row.step is None else str(row.step) if row.steps is None else f"{row.step}/{row.steps}"


def decimals(value: float | None) -> str:
    """A share."""
    return "" if value is None else f"{value:.3f}"


def significant(value: float | None) -> str:
    """Two digits, three above ten."""
    return "" if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """`42 s`, `12 min`, `3.5 h`, `2.1 d`."""
    if seconds is None:
        return ""
    for size, unit, digits in ((86_400, "d", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"
