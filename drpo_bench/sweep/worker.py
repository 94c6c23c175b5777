"""One run in a process of its own: pinned to its cores, its output in the run directory's log."""

from __future__ import annotations

import os
import signal
import sys
import threading
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from drpo_bench.config import load_run_config
from drpo_bench.records import RunDir
from drpo_bench.trainer import train

# What the forkserver imports once, so that no run pays for it.
PRELOAD = ["drpo_bench.sweep.worker", "transformers.models.qwen3.modeling_qwen3"]


def run_worker(config: dict[str, Any], experiment_dir: Path, cache: Path, cores: tuple[int, ...]) -> None:
    """Train one run. An exception ends the process with its traceback in log.txt and exit code 1."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the runner stops its workers
    threading.Thread(target=exit_with_the_runner, daemon=True).start()
    be_the_first_victim()
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    run = load_run_config(config)
    run_dir = RunDir(experiment_dir / "runs" / run.run_id)
    run_dir.path.mkdir(parents=True, exist_ok=True)
    log = os.open(run_dir.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.stdout.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    transformers_logging.disable_progress_bar()
    train(run, experiment_dir, cache)


def be_the_first_victim() -> None:
    """When memory ends, the kernel takes a worker, whose run resumes, and not the runner. Linux only."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("500")


def exit_with_the_runner() -> None:
    """End this process when the runner is gone, however it went: nobody would settle the run, or own it."""
    runner = parent_process()
    assert runner is not None
    runner.join()
    os._exit(1)
