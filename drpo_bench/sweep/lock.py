"""One runner a sweep directory: who owns it, since when, and whether they still live.

`runner.lock` is held by the operating system, which frees it when the process ends, however it ends. Not every shared
filesystem carries such a lock to other machines, so `runner.json` names the owner; its age is the last sign of life.
"""

from __future__ import annotations

import getpass
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drpo_bench.errors import UserError
from drpo_bench.process import is_alive, this_process
from drpo_bench.records import DamagedFile, read_json, write_json

LOCK, OWNER = "runner.lock", "runner.json"
HEARTBEAT_SECONDS = 5.0


@contextmanager
def owned(directory: Path, take_over: bool) -> Iterator[str | None]:
    """Own a directory until the block ends; yields what is to be told of an owner that went without leaving.

    Raises UserError where another runner is at work, or may be on another machine (unless `take_over`).
    """
    from filelock import FileLock, Timeout

    lock = FileLock(directory / LOCK, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{directory}: another drpo-bench run is at work in this folder{owner_text(directory)}"
        ) from None
    try:
        stale = leftover(directory, take_over)
        me = this_process()
        started = {"user": user(), "started_at": time.time(), "command": shlex.join(sys.argv)}
        write_json(directory / OWNER, {"process": me} | started)
        stopping = threading.Event()
        beats = threading.Thread(target=beat, args=(directory, me, stopping), name="heartbeat", daemon=True)
        beats.start()
        try:
            yield stale
        finally:
            stopping.set()
            beats.join()
            if (read_owner(directory) or {}).get("process") == me:
                (directory / OWNER).unlink()
    finally:
        lock.release()


def leftover(directory: Path, take_over: bool) -> str | None:
    """What to say of the owner that a free lock still names; UserError if it may be at work on another machine."""
    owner = read_owner(directory)
    if owner is None:
        return None
    if is_alive(owner["process"]) is None and not take_over:
        who = owner_text(directory)
        raise UserError(f"{directory}: owned by a run on another machine{who}; if that one is gone, add --take-over")
    return f"{directory}: taken over from a run that ended without leaving{owner_text(directory)}"


def read_owner(directory: Path) -> dict[str, Any] | None:
    """runner.json, or None where there is none that can be read."""
    try:
        owner: dict[str, Any] = read_json(directory / OWNER)
    except (FileNotFoundError, DamagedFile):
        return None
    return owner if isinstance(owner, dict) and "process" in owner else None


def owner_text(directory: Path) -> str:
    """`: process 12 of alice on node7, started 3 hours ago, last sign of life 2 s ago`; empty if nobody is named."""
    owner = read_owner(directory)
    if owner is None:
        return ""
    process, now = owner["process"], time.time()
    age = duration(now - (directory / OWNER).stat().st_mtime)
    return (
        f": process {process['pid']} of {owner['user']} on {process['host']}, started "
        f"{duration(now - owner['started_at'])} ago, last sign of life {age} ago"
    )


def duration(seconds: float) -> str:
    """Seconds as people say them; a clock that was set back gives 0."""
    seconds = max(0.0, seconds)
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def user() -> str:
    """Who runs this; a container's user can have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def beat(directory: Path, me: dict[str, Any], stopping: threading.Event) -> None:
    """Show life by the file's time, which needs no disk space; stop the runner if another has taken over."""
    while not stopping.wait(HEARTBEAT_SECONDS):
        owner = read_owner(directory)
        if owner is not None and owner["process"] != me:
            sys.stderr.write(f"drpo-bench: {directory}: taken over by another run{owner_text(directory)}; stopping\n")
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if owner is not None:
            os.utime(directory / OWNER)
