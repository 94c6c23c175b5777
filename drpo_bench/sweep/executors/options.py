"""What the command line says of executors: checked before anything is written, then made into one."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from drpo_bench.config import RunConfig
from drpo_bench.errors import UserError, did_you_mean
from drpo_bench.sweep.cores import available_cores
from drpo_bench.sweep.executors.base import Executor

EXECUTORS = ("local", "ray", "slurm")
TRIAL = "cluster=local"  # of --slurm: jobs that are processes of this machine


@dataclass(frozen=True)
class ExecutorOptions:
    """The options of `run` that say where and how often runs are computed, and no more."""

    name: str = "local"
    workers: int | None = None
    retries: int = 1
    address: str | None = None
    gpus_per_run: float | None = None
    slurm: tuple[str, ...] = ()

    @property
    def elsewhere(self) -> bool:
        """Whether runs are computed on machines that this one need not be like."""
        return (self.name == "slurm" and TRIAL not in self.slurm) or self.address is not None

    def check(self, runs: Sequence[RunConfig]) -> None:
        """Raise UserError for options that do not go together, or need what is not installed."""
        if self.name not in EXECUTORS:
            hint = did_you_mean(self.name, EXECUTORS) or f"; known: {', '.join(EXECUTORS)}"
            raise UserError(f"--executor {self.name}: unknown{hint}")
        if self.address is not None and self.name != "ray":
            raise UserError(f"--address {self.address}: is for --executor ray")
        if self.slurm and self.name != "slurm":
            raise UserError(f"--slurm {self.slurm[0]}: is for --executor slurm")
        if self.gpus_per_run is not None:
            self.check_gpus_per_run(self.gpus_per_run, runs)
        if self.name == "ray" and find_spec("ray") is None:
            raise UserError("--executor ray: Ray is not installed; `pip install -e '.[ray]'` installs it")
        if self.name == "slurm":
            from drpo_bench.sweep.executors.slurm import check_settings

            check_settings(self.slurm)
            if TRIAL in self.slurm and any(map(on_gpu, runs)):
                raise UserError(f"--slurm {TRIAL}: is to try Slurm out on a CPU, not for runtime.device = 'cuda'")

    def check_gpus_per_run(self, share: float, runs: Sequence[RunConfig]) -> None:
        """Raise UserError for a share that Ray does not give, or nobody would use."""
        if self.name != "ray":
            raise UserError(f"--gpus-per-run {share:g}: is for --executor ray")
        if not 0 < share < math.inf or (share > 1 and share != int(share)):
            raise UserError(f"--gpus-per-run {share:g}: must be a fraction of one GPU, or a whole number")
        if not any(map(on_gpu, runs)):
            raise UserError(f"--gpus-per-run {share:g}: no run has runtime.device = 'cuda'")

    def simultaneous(self, runs: Sequence[RunConfig]) -> int:
        """How many runs at a time: as many as their threads, or on GPUs the GPUs, leave room for.

        Where a cluster queues them, all; it knows its room.
        """
        if self.workers or self.elsewhere:
            return self.workers or len(runs)
        room = len(available_cores()) // most_threads(runs)
        if any(map(on_gpu, runs)):
            room = int(len(visible_gpus()) / (self.gpus_per_run or 1))
        return max(1, min(len(runs), room))

    def warnings(self, runs: Sequence[RunConfig]) -> list[str]:
        """What will be slower than it need be."""
        threads, cores = most_threads(runs), len(available_cores())
        if self.elsewhere or (self.workers or 1) * threads <= cores or any(map(on_gpu, runs)):
            return []
        asked = f"runtime.threads = {threads}" + (f" and --workers {self.workers}" if self.workers else "")
        return [f"{asked}, but there are {cores} cores: threads share them, and all runs take longer than with fewer"]

    def make(self, runs: Sequence[RunConfig]) -> Executor:
        """The executor, its cluster reached. Raises UserError."""
        workers, threads, on_gpus = self.simultaneous(runs), most_threads(runs), any(map(on_gpu, runs))
        if self.name == "ray":
            from drpo_bench.sweep.executors.ray import RayExecutor

            return RayExecutor(workers, self.address, threads, (self.gpus_per_run or 1) if on_gpus else 0)
        if self.name == "slurm":
            from drpo_bench.sweep.executors.slurm import SlurmExecutor

            return SlurmExecutor(workers, self.slurm, len(runs), threads, on_gpus)
        from drpo_bench.sweep.executors.local import LocalExecutor

        return LocalExecutor(workers, visible_gpus() if on_gpus else ())


def most_threads(runs: Sequence[RunConfig]) -> int:
    """Of any of the runs."""
    return max(run.runtime.threads for run in runs)


def on_gpu(run: RunConfig) -> bool:
    """Whether a run computes on a GPU."""
    return run.runtime.device == "cuda"


def visible_gpus() -> list[str]:
    """The GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them."""
    if chosen := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return chosen.split(",")
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
