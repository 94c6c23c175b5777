"""A worker process, forked where torch and transformers are loaded already, and how it ended."""

from __future__ import annotations

import multiprocessing
import signal
import socket
import time
from collections.abc import Collection
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess

from drpo_bench.sweep.executors.base import Ending
from drpo_bench.sweep.worker import PRELOAD, Order, prepare_environment, run_worker

LOST = 255  # the exit code that multiprocessing gives to every child of a forkserver that died
STOP_SECONDS = 5.0  # after which SIGTERM is followed by SIGKILL


class Child:
    """One run's process. All children of a process come from one forkserver, which imports once."""

    def __init__(self, order: Order) -> None:
        import psutil

        prepare_environment()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.process: ForkServerProcess = context.Process(target=run_worker, args=(order,), name=order.run_id)
        try:
            self.process.start()
        except (ConnectionError, EOFError):  # the forkserver has just died; the next start has a new one
            self.process.start()
        self.itself: psutil.Process | None = None
        with suppress(psutil.NoSuchProcess):
            self.itself = psutil.Process(self.process.pid)

    def ending(self) -> Ending | None:
        """How it ended, when it has; it is gone then."""
        if self.process.exitcode is None:
            return None
        self.make_sure_it_is_gone()
        code = self.process.exitcode
        if code == LOST:
            return Ending("lost with the forkserver that started it")
        if code < 0:
            cause = "; out of memory is the usual cause" if code == -signal.SIGKILL else ""
            return Ending(f"killed by signal {-code} ({signal.Signals(-code).name}){cause}", -code)
        return Ending()

    def make_sure_it_is_gone(self) -> None:
        """A worker whose forkserver died seems to have ended and trains on: end it."""
        import psutil

        with suppress(psutil.NoSuchProcess):
            while self.itself and self.itself.is_running() and self.itself.status() != psutil.STATUS_ZOMBIE:
                self.itself.kill()
                time.sleep(0.01)

    def stop(self) -> None:
        """End it, if it has not ended."""
        self.process.terminate()
        self.process.join(STOP_SECONDS)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.make_sure_it_is_gone()


def wait_for_any(children: Collection[Child], seconds: float) -> None:
    """Until one of them has ended, or so long."""
    connection.wait([child.process.sentinel for child in children], seconds)


def run_in_child(order: Order) -> Ending:
    """Train in a child of this process, wherever an executor has brought it; the child ends with it."""
    for folder in (order.run_dir.path, order.cwd):
        if not folder.is_dir():
            return Ending(f"{folder} is not there on {socket.gethostname()}: it must be where all machines see it")
    child = Child(order)
    try:
        while (ending := child.ending()) is None:
            wait_for_any([child], 0.5)  # in pieces: an interrupt that is no signal is noticed between them
        return ending
    finally:
        child.stop()
