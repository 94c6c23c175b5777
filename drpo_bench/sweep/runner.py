"""Runs what is missing of a sweep, by any executor, and settles what becomes of every run."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from drpo_bench.config import RunConfig
from drpo_bench.records import DONE, RunDir, State
from drpo_bench.sweep.executors import Ending, Executor
from drpo_bench.sweep.worker import make_order

POLL_SECONDS = 0.2
WARMSTARTS = "warmstarts"  # folder under the results directory, shared by all experiments


def run_all(
    runs: Sequence[RunConfig],
    out: Path,
    executor: Executor,
    retries: int,
    on_end: Callable[[RunConfig, State], None],
    on_poll: Callable[[Sequence[RunConfig]], None],
) -> None:
    """Run every run in a process of its own; one that fails does not stop the others.

    It is tried again up to `retries` times, after the waiting ones, from its last checkpoint.

    `on_end` hears of every run that ends or waits to be tried again (pending), `on_poll` of those that the executor has
    a few times a second. Ctrl-C, SIGTERM and any error stop the processes and mark their runs pending (they resume from
    their checkpoints), and are raised on.
    """
    waiting = [(run, 1) for run in runs]
    active: dict[str, tuple[RunConfig, int]] = {}  # by run id: the run and which attempt at it this is
    listen(signal.default_int_handler)
    try:
        while waiting or active:
            room = max(0, executor.capacity - len(active))
            starting, waiting = waiting[:room], waiting[room:]
            active |= {run.run_id: (run, attempt) for run, attempt in starting}
            for run, attempt in starting:
                queue(run, out, attempt)
            if starting:
                executor.submit([make_order(run, out / run.experiment.name, out / WARMSTARTS) for run, _ in starting])
            for run_id, ending in executor.ended(POLL_SECONDS).items():
                run, attempt = active.pop(run_id)
                state = settle(run, out, ending)
                if state == "failed" and attempt <= retries:
                    waiting.append((run, attempt + 1))
                    state = "pending"
                on_end(run, state)
            on_poll([run for run, _ in active.values()])
    except BaseException:
        listen(signal.SIG_IGN)  # a second Ctrl-C would leave runs that nobody settles; stopping takes seconds
        executor.stop()
        for run, _ in active.values():
            run_dir = run_dir_of(run, out)
            if run_dir.status()["state"] not in DONE:
                with suppress(OSError):  # a full disk may be what stops us; the next runner sees that nobody runs it
                    run_dir.set_stopped()
        listen(signal.default_int_handler)
        raise


def listen(handler: Any) -> None:
    """To a batch system's stop and to Ctrl-C, also under nohup."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, handler)


def queue(run: RunConfig, out: Path, attempt: int) -> None:
    """The run is the executor's now, and has not begun; from its second attempt on the reason tells why."""
    run_dir = run_dir_of(run, out)
    run_dir.path.mkdir(parents=True, exist_ok=True)
    why = {"reason": run_dir.status().get("reason", "")} if attempt > 1 else {}
    run_dir.set_status("pending", phase="queued", attempt=attempt, **why)


def settle(run: RunConfig, out: Path, ending: Ending) -> State:
    """The final state of a run whose process ended; one that ended without a result has failed."""
    run_dir = run_dir_of(run, out)
    status = run_dir.status()
    if status["state"] not in DONE:
        step = 0 if "phase" in status else status.get("step", 0)  # before the first batch, steps are the warm start's
        run_dir.set_status("failed", step=step, steps=run.train.steps, reason=ending.reason or last_line(run_dir))
    state: State = run_dir.status()["state"]
    return state


def last_line(run_dir: RunDir) -> str:
    """Of the log: the exception's."""
    lines = run_dir.log.read_text(errors="replace").strip().splitlines() if run_dir.log.exists() else []
    return lines[-1] if lines else "its process ended and said nothing"


def run_dir_of(run: RunConfig, out: Path) -> RunDir:
    """Where a run lives under the results directory."""
    return RunDir(out / run.experiment.name / "runs" / run.run_id)
