"""Sends a sweep to MLflow from a process of its own: training never waits for it, nor fails with it."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from drpo_bench.tracking.store import SERVERS, StoreError, limit_waiting, probe, reason, scheme_of, shown

if TYPE_CHECKING:
    from drpo_bench.tracking.sync import ExperimentSync

LOCK = "mlflow.lock"  # one sender a folder at a time: the tracker of a run, or `drpo-bench sync`
LOCK_SECONDS = 30.0
SYNC_SECONDS = 10.0  # long enough for requests of many records, which cost half as much a record
NICENESS = 10  # a tenth of a worker's share of its core, while there is something to send
FINISH_SECONDS = 60.0  # after the sweep; what is left then, `drpo-bench sync` sends
FINISH = "finish"


class Sender:
    """Sends one folder, again and again; a store that fails is warned about once and tried again."""

    def __init__(self, directory: Path, uri: str) -> None:
        limit_waiting()
        self.directory, self.uri = directory, uri
        self.synced: ExperimentSync | None = None
        self.records, self.warned = 0, False

    def attempt(self, artifacts: bool = False) -> bool:
        """One sync, with figures and report if asked for; whether MLflow now has all of it."""
        from filelock import FileLock
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        from drpo_bench.tracking.sync import ExperimentSync

        try:
            with FileLock(self.directory / LOCK, timeout=LOCK_SECONDS):
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
    """The process that sends a sweep while its runs train."""

    def __init__(self, directory: Path, uri: str) -> None:
        self.directory, self.uri = directory, uri
        self.connection, self.other_end = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        arguments = (directory, uri, self.other_end)
        self.process = context.Process(target=send_until_told, args=arguments, name="mlflow", daemon=True)

    def start(self) -> None:
        """Start the process; Ctrl-C, which the terminal sends to all, is for the runner alone."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the process inherits it
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        self.other_end.close()

    def finish(self) -> bool:
        """Send what is left, with figures and report; False if the store did not take it within FINISH_SECONDS."""
        if self.process.pid is None:
            self.start()
        sent = False
        try:
            self.connection.send(FINISH)
            if self.connection.poll(FINISH_SECONDS):
                sent = self.connection.recv()
            else:
                warn(f"MLflow at {shown(self.uri)} is not done after {FINISH_SECONDS:.0f} s", self.directory)
        except (EOFError, OSError):  # the process is gone, and said why
            warn(f"MLflow at {shown(self.uri)}: the process that sends ended early", self.directory)
        self.process.kill()  # nothing is lost: a request is stored as a whole or not at all
        self.process.join()
        return sent


def send_until_told(directory: Path, uri: str, connection: Connection) -> None:
    """The process: a sync every few seconds, a last one when told to finish; it ends when the runner does."""
    os.nice(NICENESS)
    sender = Sender(directory, uri)
    try:
        sender.attempt()
        gc.freeze()  # MLflow's modules: collecting among them took a third of a sync
        while not connection.poll(SYNC_SECONDS):
            sender.attempt()
        connection.send(connection.recv() == FINISH and sender.attempt(artifacts=True))
    except (EOFError, BrokenPipeError):
        return  # the runner was killed; the next one sends the rest


def warn(message: str, directory: Path) -> None:
    """One line on standard error."""
    sys.stderr.write(f"warning: {message}; `drpo-bench sync {directory}` sends it later\n")
    sys.stderr.flush()
