"""The console that results are printed to: a terminal's width, or in a pipe whatever the lines need."""

from __future__ import annotations

from rich.console import Console

PIPE_WIDTH = 10_000  # wide enough that nothing is wrapped or cut; tables take only what they need


def output() -> Console:
    """Standard output."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)
