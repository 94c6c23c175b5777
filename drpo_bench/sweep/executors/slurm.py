"""`--executor slurm`: one job array, through submitit; `--slurm cluster=local` tries it out without Slurm."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from drpo_bench.config import content_hash
from drpo_bench.errors import UserError, did_you_mean
from drpo_bench.sweep.executors.base import Ending
from drpo_bench.sweep.executors.child import run_in_child
from drpo_bench.sweep.executors.slurm_queue import SlurmQueue, cancel, queued, state_of
from drpo_bench.sweep.worker import Order

FOLDER = "slurm"  # submitit's files, in the experiment's folder
CLUSTERS = ("slurm", "local")
# What the executor sets itself, or cannot: a run is one task on one node, --workers says how many at a time.
RESERVED = {
    *("additional_parameters", "array_parallelism", "job_name", "nodes", "ntasks_per_node", "num_gpus"),
    "stderr_to_stdout",
}
OF_SUBMITIT = {"setup", "teardown", "srun_args", "signal_delay_s", "use_srun"}  # no options of sbatch
WHOLE = {"time", "cpus_per_task", "cpus_per_gpu", "signal_delay_s"}
LISTS = {"setup", "teardown", "srun_args"}  # given once an entry
GPU_KEYS = {"gpus_per_node", "gpus_per_task", "gres"}
DEFAULTS = {"time": 24 * 60}  # minutes; a job that runs out of them goes on from its checkpoint, in the queue again
TIMEOUTS = 1000  # how often it may
POLL_SECONDS = 1.0
VERDICT_SECONDS = 600.0  # at most, between the signals by which Slurm announces the end of a job and the end
ARRAY_SIZE = 1000  # jobs of an array: Slurm's own limit, where nobody has raised it
STOP_SECONDS = 15.0


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`--slurm key=value` options as submitit takes them. Raises UserError; looks at nothing but the words."""
    from submitit import SlurmExecutor as Submitit

    known = Submitit._valid_parameters() - RESERVED | {"cluster"}
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not text:
            raise UserError(f"--slurm {setting}: must be key=value")
        if key in RESERVED:
            raise UserError(f"--slurm {key}: is set by drpo-bench; --workers says how many runs at a time")
        if key not in known:
            hint = did_you_mean(key, known) or f"; known: {', '.join(sorted(known))}"
            raise UserError(f"--slurm {key}: unknown{hint}")
        if key == "cluster" and text not in CLUSTERS:
            raise UserError(f"--slurm cluster={text}: must be slurm or local")
        if key in WHOLE and not (text.isascii() and text.isdigit() and int(text)):
            raise UserError(f"--slurm {key}={text}: must be a whole number{' of minutes' if key == 'time' else ''}")
        if key in LISTS:
            parsed.setdefault(key, []).append(text)
        elif key in parsed:
            raise UserError(f"--slurm {key}: given twice")
        else:
            parsed[key] = int(text) if key in WHOLE else {"true": True, "false": False}.get(text, text)
    if parsed.get("cluster") == "local" and (ignored := parsed.keys() - {"cluster", "time"}):
        raise UserError(f"--slurm {min(ignored)}: means nothing with cluster=local")
    return parsed


def check_settings(settings: Sequence[str]) -> None:
    """Raise UserError for what would keep every job from being submitted."""
    if find_spec("submitit") is None:
        raise UserError("--executor slurm: submitit is not installed; `pip install -e '.[slurm]'` installs it")
    if parse_settings(settings).get("cluster", "slurm") == "slurm" and shutil.which("srun") is None:
        raise UserError("--executor slurm: there is no srun here; is this a machine of a Slurm cluster?")


class SlurmExecutor:
    """An array job a submission; the first holds all runs, later ones those that are tried again."""

    def __init__(self, workers: int, settings: Sequence[str], runs: int, threads: int, on_gpu: bool) -> None:
        """So many runs, each with so many threads at most. Raises UserError where Slurm would not take them."""
        self.settings = DEFAULTS | parse_settings(settings)
        self.cluster = self.settings.pop("cluster", "slurm")
        self.workers = workers
        self.capacity = ARRAY_SIZE if self.cluster == "slurm" else workers  # Slurm has a queue, submitit itself none
        self.jobs: dict[str, Any] = {}  # run id -> submitit's job
        self.name: str | None = None  # of all jobs of the folder, those of a runner that was killed among them
        self.queue = SlurmQueue()
        if self.cluster == "slurm":
            check_submission(with_needs(self.settings, threads, on_gpu), min(runs, ARRAY_SIZE))

    def submit(self, orders: Sequence[Order]) -> None:
        from submitit import AutoExecutor

        folder = orders[0].experiment_dir / FOLDER
        if self.name is None and self.cluster == "slurm":
            cancel(job_name(orders[0].experiment_dir))
        self.name = job_name(orders[0].experiment_dir)
        executor = AutoExecutor(folder, self.cluster, slurm_max_num_timeout=TIMEOUTS)
        executor.update_parameters(**job_parameters(self.settings, orders, self.workers))
        with quiet_children(folder) if self.cluster == "local" else nullcontext():
            jobs = executor.map_array(SlurmRun(), orders)
        self.jobs |= {order.run_id: job for order, job in zip(orders, jobs, strict=True)}

    def ended(self, seconds: float) -> dict[str, Ending]:
        time.sleep(max(seconds, POLL_SECONDS))
        over = {run_id for run_id, job in self.jobs.items() if self.is_over(job)}
        if self.cluster == "slurm":
            lost = self.queue.lost({job.job_id for job in self.jobs.values()})
            over |= {run_id for run_id, job in self.jobs.items() if job.job_id in lost}
        return {run_id: ending_of(self.jobs.pop(run_id), self.cluster) for run_id in sorted(over)}

    def is_over(self, job: Any) -> bool:
        """Whether a job has left its result."""
        if self.cluster == "local":
            return bool(job.done())
        job.paths.folder.chmod(job.paths.folder.stat().st_mode)  # NFS would answer from its memory
        return bool(job.paths.result_pickle.exists())

    def stop(self) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        if self.cluster == "slurm" and self.name:
            cancel(self.name)
            while queued(self.name) and time.monotonic() < deadline:
                time.sleep(0.5)
        if self.cluster == "local":
            for job in self.jobs.values():
                job.cancel()
            while not all(job.done() for job in self.jobs.values()) and time.monotonic() < deadline:
                time.sleep(0.1)
        self.jobs.clear()

    def close(self) -> None:
        if self.jobs:
            self.stop()


@contextmanager
def quiet_children(folder: Path) -> Iterator[None]:
    """What processes that start in this block write to standard error goes to a file: submitit's own, interrupted."""
    folder.mkdir(parents=True, exist_ok=True)
    ours = os.dup(2)
    try:
        with (folder / "submitit.txt").open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(ours, 2)
        os.close(ours)


def job_name(experiment_dir: Path) -> str:
    """Of the jobs of one folder, and of no other."""
    return f"{experiment_dir.name}-{content_hash(str(experiment_dir.resolve()))[:8]}"


def with_needs(settings: Mapping[str, Any], threads: int, on_gpu: bool) -> dict[str, Any]:
    """The settings, and where they do not say it, what a run needs."""
    chosen = {"cpus_per_task": threads} | dict(settings)
    return chosen if not on_gpu or GPU_KEYS & chosen.keys() else chosen | {"gpus_per_node": 1}


def check_submission(settings: Mapping[str, Any], jobs: int) -> None:
    """Raise UserError where sbatch refuses: a partition, an account or a limit that this cluster has not."""
    options = {key: value for key, value in settings.items() if key not in OF_SUBMITIT}
    flags = [f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}") for key, value in options.items()]
    command = ["sbatch", "--test-only", "--parsable", f"--array=0-{jobs - 1}", "--wrap=true", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"--executor slurm: {done.stderr.strip().splitlines()[-1]}")


def job_parameters(settings: Mapping[str, Any], orders: Sequence[Order], workers: int) -> dict[str, Any]:
    """submitit's parameters of an array: the settings, and for the rest what the runs need."""
    chosen = with_needs(settings, max(order.threads for order in orders), any(order.on_gpu for order in orders))
    # From Slurm 22.05 on srun does not take it over from the job, and would bind all threads to one core.
    chosen["srun_args"] = [f"--cpus-per-task={chosen['cpus_per_task']}", *chosen.get("srun_args", [])]
    chosen["job_name"] = job_name(orders[0].experiment_dir)
    shared = {"timeout_min": chosen.pop("time")}  # names that submitit's local executor knows too
    shared |= {key: chosen.pop(key) for key in ("cpus_per_task", "gpus_per_node") if isinstance(chosen.get(key), int)}
    return shared | {f"slurm_{key}": value for key, value in chosen.items()} | {"slurm_array_parallelism": workers}


def ending_of(job: Any, cluster: str) -> Ending:
    """What the function of a job that is over returned; or what is known of one that did not come so far."""
    if not job.paths.result_pickle.exists() and cluster == "local":
        return Ending(f"its job's process ended without a result; what it wrote: {job.paths.stderr}")
    if not job.paths.result_pickle.exists():
        return Ending(f"Slurm: job {job.job_id} ended as {state_of(job.job_id)}; what it wrote: {job.paths.stderr}")
    if job.exception() is not None:
        return Ending(f"Slurm: job {job.job_id} could not start its run; what it wrote: {job.paths.stderr}")
    ending: Ending = job.result()
    return ending


class SlurmRun:
    """What a job calls; submitit asks `checkpoint` what it calls when it is back after a preemption or a timeout."""

    def __call__(self, order: Order) -> Ending:
        ending = run_in_child(order)
        if ending.reason and ending.signal != signal.SIGKILL:
            time.sleep(VERDICT_SECONDS)  # cancelled or preempted: the job itself ends now, and is queued again or not
        return ending

    def checkpoint(self, order: Order) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, order)
