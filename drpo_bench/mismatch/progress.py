"""What the command is doing: a spinner on a terminal, plain lines in a pipe; on standard error."""

from __future__ import annotations

import time

from rich.console import Console

SILENCE = 10.0  # seconds of a long part after which a pipe gets a line


class Progress:
    """A line for each part that is done, with its seconds; in between what is under way."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.status = self.console.status("") if self.console.is_terminal else None
        self.begin = self.spoke = time.perf_counter()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.status:
            self.status.stop()

    def start(self, what: str) -> None:
        """A part begins."""
        self.begin = self.spoke = time.perf_counter()
        if self.status:
            self.status.update(what)
            self.status.start()

    def warmstart(self, step: int, accuracy: float) -> None:
        """A step of the warm start is done."""
        what = f"warm start: step {step}, accuracy {accuracy:.3f}"
        if self.status:
            self.status.update(what)
        elif time.perf_counter() - self.spoke > SILENCE:
            self.spoke = time.perf_counter()
            self.console.print(what, markup=False)

    def done(self, what: str) -> float:
        """The part is done; returns its seconds."""
        seconds = time.perf_counter() - self.begin
        if self.status:
            self.status.stop()
        self.console.print(f"{what}, {seconds:.1f} s", soft_wrap=True, markup=False)
        return seconds
