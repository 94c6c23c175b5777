"""A run whose process meets a fault at a chosen operation on files: killed, cut off from power, or out of disk space.

Python announces every operation on files to audit hooks, before it does it; what safetensors writes, and fsync, are
announced here. Nothing of the product is changed for it.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from drpo_bench.config import RunConfig, canonical, load_run_config
from drpo_bench.records import RunDir
from drpo_bench.sweep.runner import WARMSTARTS
from drpo_bench.sweep.worker import PRELOAD, make_order, run_worker
from drpo_bench.trainer import Trainer

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
GROWING = ("open", "os.mkdir", "write", "fsync")  # operations that need space on the disk
CHANGING = (*GROWING, "os.rename", "os.remove", "os.rmdir", "os.truncate")
FULL = f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}"


class Fault:
    """Counts the operations below `root` that change files, and strikes at number `at` (and, on a full disk, after).

    `kill` is SIGKILL. `power` is SIGKILL where everything that was not forced to the disk by then is half lost.
    `full` is an error at every operation that needs space, from that one on.
    """

    def __init__(self, root: Path, at: int, kind: str) -> None:
        self.root, self.at, self.kind = str(root.resolve()), at, kind
        self.count = 0
        self.durable = {path.stat().st_ino: path.stat().st_size for path in self.files()}  # inode -> bytes on the disk

    def install(self) -> None:
        """From now on in this process, for its whole life."""
        sys.addaudithook(self.hear)
        real_fsync, real_write = os.fsync, safetensors.torch.serialize_file

        def fsync(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            self.meet("fsync", path)
            real_fsync(descriptor)
            status = os.fstat(descriptor)
            self.durable[status.st_ino] = status.st_size

        def serialize_file(tensors: Any, filename: Any, metadata: Any = None) -> None:
            self.meet("write", os.fspath(filename), lambda: real_write(tensors, filename, metadata))
            real_write(tensors, filename, metadata)

        os.fsync, safetensors.torch.serialize_file = fsync, serialize_file

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit event, before it happens."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes) and flags & WRITING:
                self.meet(event, os.fsdecode(path))
        elif event == "os.rename":
            _, target, _, target_folder = arguments
            self.meet(event, located(target, target_folder))
            self.forget(located(target, target_folder))
        elif event in ("os.remove", "os.rmdir"):
            path, folder = arguments
            self.meet(event, located(path, folder))
            self.forget(located(path, folder))
        elif event in ("os.mkdir", "os.truncate") and not isinstance(arguments[0], int):
            self.meet(event, located(arguments[0], arguments[2] if event == "os.mkdir" else -1))

    def meet(self, event: str, path: str, begin: Callable[[], None] = lambda: None) -> None:
        """Count an operation and, where it is the one, strike; `begin` does what would be half done by then."""
        if not os.path.abspath(path).startswith(self.root):
            return
        if event not in (GROWING if self.kind == "full" else CHANGING):
            return
        self.count += 1
        if self.kind == "full" and self.count >= self.at:
            if event == "write":
                begin()
                os.truncate(path, os.path.getsize(path) // 2)
                raise SafetensorError(f"Error while serializing: I/O error: {FULL} (os error {errno.ENOSPC})")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if self.kind != "full" and self.count == self.at:
            self.strike(begin)

    def strike(self, begin: Callable[[], None]) -> None:
        """End this process as a power cut or the kernel does."""
        if self.kind == "power":
            begin()
            for path in self.files():
                status = path.stat()
                kept = min(self.durable.get(status.st_ino, 0), status.st_size)
                os.truncate(path, kept + (status.st_size - kept) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def forget(self, path: str) -> None:
        """A file that goes: its inode may be used again."""
        if os.path.exists(path):
            self.durable.pop(os.stat(path).st_ino, None)

    def files(self) -> list[Path]:
        """Every file below the root."""
        return [path for path in Path(self.root).rglob("*") if path.is_file()]


def located(path: Any, folder: int) -> str:
    """A path as an absolute one, where it was given relative to an open folder."""
    name = os.fsdecode(path)
    return name if folder == -1 else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)


def run(config: dict[str, Any], experiment_dir: Path, at: int, kind: str) -> None:
    """In a process of its own: train, or finish what is there, until the fault strikes."""
    experiment_dir.parent.mkdir(parents=True, exist_ok=True)
    if at:
        Fault(experiment_dir.parent, at, kind).install()
    run_worker(make_order(load_run_config(config), experiment_dir, experiment_dir.parent / WARMSTARTS))


def run_until(config: dict[str, Any], experiment_dir: Path, step: int) -> None:
    """In a process of its own: train some batches and be gone."""
    run = load_run_config(config)
    trainer = Trainer(run, RunDir(experiment_dir / "runs" / run.run_id), experiment_dir.parent / WARMSTARTS)
    trainer.train(until=step)
    os.kill(os.getpid(), signal.SIGKILL)


def start(config: RunConfig, experiment_dir: Path, at: int = 0, kind: str = "kill") -> int | None:
    """The exit code of a process that trains below `experiment_dir` and meets a fault at operation `at`; 0 for none."""
    return finish(run, config, experiment_dir, at, kind)


def stop_after(config: RunConfig, experiment_dir: Path, step: int) -> None:
    """Begin a run and kill it when `step` batches are done."""
    assert finish(run_until, config, experiment_dir, step) == -signal.SIGKILL


def finish(target: Callable[..., None], config: RunConfig, *arguments: Any) -> int | None:
    """The exit code of a process that is forked with everything imported, as workers are."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=target, args=(canonical(config.model_dump()), *arguments))
    process.start()
    process.join()
    return process.exitcode
