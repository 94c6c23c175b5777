"""Where runs are computed: on this machine, by Ray or by Slurm."""

from drpo_bench.sweep.executors.base import Ending, Executor
from drpo_bench.sweep.executors.options import ExecutorOptions

__all__ = ["Ending", "Executor", "ExecutorOptions"]
