"""Runs what is missing of a sweep on this machine: one process a run, a fixed number at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from drpo_bench.config import RunConfig, canonical
from drpo_bench.records import DONE, RunDir, State

POLL_SECONDS = 0.2
WARMSTARTS = "warmstarts"  # folder under the results directory, shared by all experiments


@dataclass
class Worker:
    """A running process, the slot of cores it holds, and how often its run was tried before."""

    run: RunConfig
    process: ForkServerProcess
    slot: int
    tried: int


def run_all(
    runs: Sequence[RunConfig],
    out: Path,
    workers: int,
    retries: int,
    on_change: Callable[[RunConfig, State], None],
    on_poll: Callable[[Sequence[RunConfig]], None],
) -> None:
    """Run every run in its own process, `workers` at a time; a run that fails does not stop the others.

    It is tried again up to `retries` times, after the waiting ones, from its last checkpoint.

    `on_change` hears of every run that starts, ends or waits to be tried again (pending), `on_poll` of those under way
    a few times a second. Ctrl-C or SIGTERM stops the processes, marks their runs pending (they resume from their
    checkpoints) and is raised on.
    """
    from drpo_bench.sweep.worker import PRELOAD

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    waiting, active = [(run, 0) for run in runs], list[Worker]()
    free_slots = list(range(workers))
    for stop in (signal.SIGINT, signal.SIGTERM):  # a batch system's stop, and Ctrl-C also under nohup
        signal.signal(stop, signal.default_int_handler)
    try:
        while waiting or active:
            while waiting and free_slots:
                (run, tried), slot = waiting.pop(0), free_slots.pop(0)
                active.append(Worker(run, start_process(context, run, out, slot, workers), slot, tried))
                on_change(run, "running")
            time.sleep(POLL_SECONDS)
            on_poll([worker.run for worker in active])
            for worker in [w for w in active if not w.process.is_alive()]:
                active.remove(worker)
                free_slots.append(worker.slot)
                state = settle(worker, out)
                again = state == "failed" and worker.tried < retries
                if again:
                    waiting.append((worker.run, worker.tried + 1))
                on_change(worker.run, "pending" if again else state)
    except KeyboardInterrupt:
        for worker in active:
            worker.process.terminate()
        for worker in active:
            worker.process.join()
            run_dir = run_dir_of(worker.run, out)
            if run_dir.status()["state"] == "running":
                run_dir.set_status("pending", reason="stopped")
        raise


def start_process(
    context: multiprocessing.context.ForkServerContext, run: RunConfig, out: Path, slot: int, workers: int
) -> ForkServerProcess:
    """Start one run on the cores of its slot."""
    from drpo_bench.sweep.worker import run_worker

    experiment_dir = out / run.experiment.name
    arguments = (
        canonical(run.model_dump()),
        experiment_dir,
        out / WARMSTARTS,
        slot_cores(slot, workers, run.runtime.threads),
    )
    run_dir = run_dir_of(run, out)
    run_dir.path.mkdir(parents=True, exist_ok=True)
    run_dir.set_status("running", phase="start", step=0, steps=run.train.steps)
    process = context.Process(target=run_worker, args=arguments, name=run.run_id)
    process.start()
    return process


def available_cores() -> list[int]:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def slot_cores(slot: int, workers: int, threads: int) -> tuple[int, ...]:
    """Cores of its own for each worker; none (no pinning) where there are not enough."""
    cores = available_cores()
    if workers * threads > len(cores):
        return ()
    return tuple(cores[slot * threads : (slot + 1) * threads])


def settle(worker: Worker, out: Path) -> State:
    """The final state of a process that ended; one that ended without a result has failed."""
    run_dir = run_dir_of(worker.run, out)
    make_sure_it_ended(worker.process)
    status = run_dir.status()
    if status["state"] not in DONE:
        step = 0 if "phase" in status else status.get("step", 0)  # before the first batch, steps are the warm start's
        reason = failure_reason(run_dir, worker.process.exitcode)
        run_dir.set_status("failed", step=step, steps=worker.run.train.steps, reason=reason)
    state: State = run_dir.status()["state"]
    return state


def make_sure_it_ended(process: ForkServerProcess) -> None:
    """A worker whose forkserver died seems to have ended and trains on: no run may have two writers."""
    import psutil

    process.join()
    try:
        survivor = psutil.Process(process.pid)
        if any("forkserver" in word for word in survivor.cmdline()):
            survivor.kill()
            survivor.wait()
    except psutil.NoSuchProcess:
        return


def failure_reason(run_dir: RunDir, exitcode: int | None) -> str:
    """The last line of the log, which is the exception's; or the signal that killed the process."""
    if exitcode is not None and exitcode < 0:
        cause = "; out of memory is the usual cause" if exitcode == -signal.SIGKILL else ""
        return f"killed by signal {-exitcode} ({signal.Signals(-exitcode).name}){cause}"
    lines = run_dir.log.read_text().strip().splitlines() if run_dir.log.exists() else []
    return lines[-1] if lines else f"exit code {exitcode}"


def run_dir_of(run: RunConfig, out: Path) -> RunDir:
    """Where a run lives under the results directory."""
    return RunDir(out / run.experiment.name / "runs" / run.run_id)
