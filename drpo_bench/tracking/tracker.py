"""Sends a sweep to MLflow from processes of their own: training never waits for them, nor fails with them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drpo_bench.tracking.store import SERVERS, StoreError, limit_waiting, probe, reason, scheme_of, shown

if TYPE_CHECKING:
    from drpo_bench.tracking.sync import ExperimentSync

LOCK = "mlflow.lock"  # one sender a folder at a time: the tracker of a run, or `drpo-bench sync`
LOCK_SECONDS = 30.0
SYNC_SECONDS = 30.0  # long enough for requests of many records, which cost half as much a record
NICENESS = 19  # at most 1.5% of a core that a worker keeps busy
STOP_SECONDS = 5.0  # for the request under way, when the sweep ends
STOP, WARNED = "stop", "warned"  # what the processes say to each other
FINISH_SECONDS = 60.0  # for what is left then; the rest is `drpo-bench sync`'s


class Sender:
    """Sends one folder, again and again; a store that fails is warned about once and tried again."""

    def __init__(self, directory: Path, uri: str, warned: bool = False) -> None:
        limit_waiting()
        self.directory, self.uri, self.warned = directory, uri, warned
        self.synced: ExperimentSync | None = None
        self.records = 0

    def attempt(self, artifacts: bool = False) -> bool:
        """One sync, with figures and report if asked for; whether MLflow now has all of it."""
        from filelock import FileLock
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        from drpo_bench.tracking.sync import ExperimentSync

        try:
            with FileLock(self.directory / LOCK, timeout=LOCK_SECONDS, fallback_to_soft=False):
                if scheme_of(self.uri) not in SERVERS:
                    probe(self.uri)  # fails at once, where MLflow would try for minutes
                self.synced = self.synced or ExperimentSync(self.directory, self.uri)
                self.records += self.synced.sync()
                if artifacts:
                    self.synced.log_artifacts()
        except (StoreError, MlflowException, SQLAlchemyError, OSError) as error:
            self.synced = None  # what MLflow has must be asked anew
            self.warn(f"MLflow at {shown(self.uri)} cannot be written: {reason(error)}")
            return False
        if self.synced.damaged:
            self.warn(f"MLflow: left out: {self.synced.damaged[0]}")
        return not self.synced.damaged

    def warn(self, message: str) -> None:
        """Once, on standard error."""
        if not self.warned:
            warn(message, self.directory)
        self.warned = True


class Tracker:
    """The processes that send a sweep: one while its runs train, behind them, and one when they are done."""

    def __init__(self, directory: Path, uri: str) -> None:
        self.directory, self.uri = directory, uri
        self.running: tuple[SpawnProcess, Connection] | None = None

    def start(self) -> None:
        """Send what is new every few seconds from now on."""
        self.running = launch(send_what_is_new, self.directory, self.uri)

    def finish(self) -> bool:
        """Send what is left, with figures and report; False if the store did not take it within FINISH_SECONDS."""
        warned = self.stop() if self.running else False
        process, connection = launch(send_the_rest, self.directory, self.uri, warned)
        answered, sent = connection.poll(FINISH_SECONDS), False
        if answered:
            with suppress(EOFError):  # it ended without an answer, and said why
                sent = connection.recv()
        elif not warned:
            warn(f"MLflow at {shown(self.uri)} is not done after {FINISH_SECONDS:.0f} s", self.directory)
        end(process)
        return sent

    def stop(self) -> bool:
        """Stop sending; whether there was a warning."""
        assert self.running
        process, connection = self.running
        heard = set()
        with suppress(EOFError, OSError):  # it was killed: whoever sends the rest finds out what there is
            connection.send(STOP)
            while STOP not in heard and connection.poll(STOP_SECONDS):
                heard.add(connection.recv())
        end(process)
        return WARNED in heard


def launch(target: Callable[..., None], *arguments: Any) -> tuple[SpawnProcess, Connection]:
    """A process that ends with this one, and the pipe to it."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=target, args=(theirs, *arguments), name="mlflow", daemon=True)
    process.start()
    theirs.close()
    return process, ours


def end(process: SpawnProcess) -> None:
    """Whatever it is at: a request is stored as a whole or not at all."""
    process.kill()
    process.join()


def send_what_is_new(connection: Connection, directory: Path, uri: str) -> None:
    """A sync every few seconds until the runner says so, or is gone; the first one while the runs start."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; it is for the runner
    sender = Sender(directory, uri)
    told = False
    with suppress(BrokenPipeError):  # the runner is gone
        while True:
            sender.attempt()
            if sender.warned and not told:
                connection.send(WARNED)
                told = True
            if os.nice(0) < NICENESS:
                gc.freeze()  # MLflow's modules: collecting among them took a third of a sync
                os.nice(NICENESS)
            if connection.poll(SYNC_SECONDS):
                connection.send(STOP)
                return


def send_the_rest(connection: Connection, directory: Path, uri: str, warned: bool) -> None:
    """The last sync of a sweep, at the priority of any process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection.send(Sender(directory, uri, warned).attempt(artifacts=True))


def warn(message: str, directory: Path) -> None:
    """One line on standard error."""
    sys.stderr.write(f"warning: {message}; `drpo-bench sync {directory}` sends it later\n")
    sys.stderr.flush()
