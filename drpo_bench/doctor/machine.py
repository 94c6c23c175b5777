"""The machine without torch: cores, load, memory, and the places that runs write to. What cannot be read is None."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from drpo_bench.tracking.store import shown

BUSY = 0.5  # load a core above which timings say more about the neighbours than about the code
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def describe_cores() -> dict[str, Any]:
    """Cores of this process and of the machine, a container's quota of them, and the machine's load (1 minute)."""
    total = os.cpu_count() or 1
    try:
        load = os.getloadavg()[0]
    except OSError:
        load = None
    return {
        "usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total,
        "total": total,
        "quota": min(cpu_quotas(), default=None),
        "load": load,
        "busy": load is not None and load > BUSY * total,
    }


def describe_memory() -> dict[str, Any]:
    """Total and available bytes; a control group's limit rules where it is lower."""
    try:
        import psutil
    except ImportError:
        return {"total": None, "available": None, "limited": False}
    memory = psutil.virtual_memory()
    limits = list(memory_limits())
    total = min([memory.total, *(limit for limit, _ in limits)])
    available = min([memory.available, *(free for _, free in limits)])
    return {"total": total, "available": available, "limited": total < memory.total}


def describe_directory(path: Path) -> dict[str, Any]:
    """Free bytes and whether files can be written there; for a path that is not there yet, its nearest parent."""
    existing = nearest(path)
    try:
        free = shutil.disk_usage(existing).free
    except OSError:
        free = None
    writable = os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)
    return {"path": str(path), "exists": existing == path.absolute(), "free": free, "writable": writable}


def describe_store(uri: str) -> dict[str, Any]:
    """The MLflow store, its password left out. A server is not asked: writable is None."""
    address = urlsplit(uri)
    if address.scheme.split("+")[0] == "sqlite":  # sqlite:///relative, sqlite:////absolute
        file = Path(address.path.removeprefix("/"))
        folder = describe_directory(file.parent)["writable"]
        return {"uri": shown(uri), "writable": folder and (not file.exists() or os.access(file, os.W_OK))}
    if address.scheme in ("", "file") and uri != "databricks":
        return {"uri": shown(uri), "writable": describe_directory(Path(unquote(address.path)))["writable"]}
    return {"uri": shown(uri), "writable": None}


def nearest(path: Path) -> Path:
    """The path itself, or the nearest parent that exists."""
    absolute = path.absolute()
    return next(p for p in (absolute, *absolute.parents) if os.path.exists(p) or p == p.parent)


def memory_limits() -> Iterator[tuple[int, int]]:
    """(limit, free) of every control group that limits this process; cached files count as free."""
    for folder in control_groups("memory"):
        limit = first_number(folder / "memory.max") or first_number(folder / "memory.limit_in_bytes")
        used = first_number(folder / "memory.current") or first_number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            yield limit, limit - used + cached_files(folder / "memory.stat")


def cpu_quotas() -> Iterator[float]:
    """CPUs' worth of time that each control group grants, where it sets a quota."""
    for folder in control_groups("cpu"):
        quota, period = first_number(folder / "cpu.max"), 100_000
        if quota is not None:
            period = int((folder / "cpu.max").read_text().split()[1])
        else:
            quota = first_number(folder / "cpu.cfs_quota_us")
            period = first_number(folder / "cpu.cfs_period_us") or period
        if quota is not None and quota > 0:  # -1: none
            yield quota / period


def control_groups(controller: str) -> Iterator[Path]:
    """Folders of this process's control groups (version 2 or 1), innermost first, up to the root."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = CGROUPS / controller if controllers else CGROUPS
        for part in (Path(path), *Path(path).parents):
            yield mount / part.relative_to("/")


def cached_files(stat: Path) -> int:
    """Bytes of file cache that the kernel takes back before it kills; 0 where it does not say."""
    try:
        counts = dict(line.split() for line in stat.read_text().splitlines())
    except OSError:
        return 0
    return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))


def first_number(path: Path) -> int | None:
    """The file's first word as an integer; None if there is no such file or it says `max`."""
    try:
        return int(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
