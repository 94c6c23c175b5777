"""Which process is at work, and whether it still is: what files say of their writers."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

SAME_START = 0.05  # seconds; two readings of one process's start differ by rounding


def this_process() -> dict[str, Any]:
    """Host, process id and its start, which tells a process from a later one of the same id."""
    import psutil

    return {"host": socket.gethostname(), "pid": os.getpid(), "started": start_of(psutil.Process())}


def start_of(process: psutil.Process) -> float:
    """Seconds from the machine's start to the process's: a wall clock that jumps does not move it."""
    import psutil

    return process.create_time() - psutil.boot_time()


def is_alive(process: dict[str, Any]) -> bool | None:
    """Whether a process that `this_process` described still runs; None where it ran on another host."""
    import psutil

    if process["host"] != socket.gethostname():
        return None
    try:
        found = psutil.Process(process["pid"])
        same = abs(start_of(found) - process["started"]) < SAME_START
        return bool(same and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
