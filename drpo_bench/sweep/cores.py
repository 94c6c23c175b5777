"""Cores of its own for each worker: workers that share cores slow each other down many times over."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


def available_cores() -> list[int]:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextmanager
def own_cores(count: int) -> Iterator[list[int]]:
    """Pin this process to so many cores that no other worker of this user on this machine holds, until the block ends.

    Yields them, or an empty list where fewer are free and the process is left unpinned. Cores are held by locks on
    files in TMPDIR, which the operating system frees when a process ends, however it ends; so the workers of all sweeps
    and executors keep out of each other's way. Linux only.
    """
    from filelock import FileLock, Timeout

    if not hasattr(os, "sched_setaffinity"):
        yield []
        return
    folder = Path(tempfile.gettempdir()) / f"drpo-bench-cores-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    cores = available_cores()
    start = random.SystemRandom().randrange(len(cores))  # or all who do not see each other's locks would take the first
    with ExitStack() as held:
        mine = list[int]()
        with FileLock(folder / "choosing.lock"):  # one at a time, or two could each get a half of what they need
            for core in cores[start:] + cores[:start]:
                if len(mine) < count:
                    with suppress(Timeout):
                        held.enter_context(FileLock(folder / f"{core}.lock", timeout=0))
                        mine.append(core)
            if len(mine) < count:
                held.close()
                mine.clear()
        if mine:
            os.sched_setaffinity(0, mine)
        yield mine
