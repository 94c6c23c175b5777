"""One run in a process of its own: what it is told, its environment, its locks, its log.

Nothing here depends on the executor, so that no result does.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from drpo_bench.config import RunConfig, canonical, load_run_config
from drpo_bench.records import DONE, RunDir
from drpo_bench.sweep.cores import own_cores

PRELOAD = ["drpo_bench.sweep.preload"]  # what the forkserver imports

# Of libraries beside torch, whose threads `runtime.threads` sets: they compute nothing here that is worth a thread.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# A batch system's own pinning, read when the forkserver starts, would put all its workers on the same cores.
UNWANTED = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
LONGEST_TEMP = 70  # characters of TMPDIR: the path of the forkserver's socket below it has 107 at most
LOCK = "run.lock"
LOCK_SECONDS = 0.5  # between two looks at the lock of another process


@dataclass(frozen=True)
class Order:
    """What a worker is told: plain data that reaches a process on any machine."""

    run_id: str
    config: dict[str, Any]
    experiment_dir: Path  # absolute, as is the cache of warm starts
    cache: Path
    cwd: Path  # of the runner: relative paths in the config mean this
    gpus: str | None = None  # CUDA_VISIBLE_DEVICES; None: as found

    @property
    def run_dir(self) -> RunDir:
        return RunDir(self.experiment_dir / "runs" / self.run_id)

    @property
    def threads(self) -> int:
        return int(self.config["runtime"]["threads"])

    @property
    def on_gpu(self) -> bool:
        return bool(self.config["runtime"]["device"] == "cuda")


def make_order(run: RunConfig, experiment_dir: Path, cache: Path) -> Order:
    """The order for one run."""
    config = canonical(run.model_dump())
    return Order(run.run_id, config, experiment_dir.absolute(), cache.absolute(), Path.cwd())


def prepare_environment() -> None:
    """Set what libraries read when they are loaded; before a forkserver is started."""
    os.environ |= ENVIRONMENT
    for name in UNWANTED:
        os.environ.pop(name, None)
    if len(tempfile.gettempdir()) > LONGEST_TEMP:
        tempfile.tempdir = "/tmp"


def run_worker(order: Order) -> None:
    """Train one run. An exception ends the process with its traceback in log.txt and exit code 1.

    A second process for the same run waits for the end of the first: no directory ever has two writers.
    """
    from filelock import FileLock

    obey_signals()
    threading.Thread(target=exit_with_the_parent, daemon=True).start()
    be_the_first_victim()
    if order.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = order.gpus
    os.chdir(order.cwd)
    order.run_dir.path.mkdir(parents=True, exist_ok=True)
    log = os.open(order.run_dir.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.stdout.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    lock = FileLock(order.run_dir.path / LOCK, poll_interval=LOCK_SECONDS, fallback_to_soft=False)
    with lock, own_cores(order.threads) as cores:
        if order.run_dir.status()["state"] in DONE:  # while this one waited; the runner asks for no such run
            return
        where = f"cores {', '.join(map(str, cores))}" if cores else "not pinned"
        sys.stdout.write(f"process {os.getpid()} on {socket.gethostname()}, {where}\n")
        sys.stdout.flush()
        train_quietly(load_run_config(order.config), order.experiment_dir, order.cache)


def train_quietly(run: RunConfig, experiment_dir: Path, cache: Path) -> None:
    """Train without transformers' progress bars; torch is loaded by now where a forkserver is used."""
    from transformers.utils import logging as transformers_logging

    from drpo_bench.trainer import train

    transformers_logging.disable_progress_bar()
    train(run, experiment_dir, cache)


def obey_signals() -> None:
    """Ctrl-C reaches the whole group and is for the runner, which stops its workers: with SIGTERM, at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def be_the_first_victim() -> None:
    """When memory ends, the kernel takes a worker, whose run resumes, and not the runner. Linux only."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text(str(max(500, int(score.read_text()))))


def exit_with_the_parent() -> None:
    """End this process when the one that started it is gone, however it went: nobody would settle the run."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
