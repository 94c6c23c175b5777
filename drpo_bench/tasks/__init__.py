"""Tasks: problems, their worked solutions, tokenizers and grading. Nothing here imports torch."""

from __future__ import annotations

from drpo_bench.task_configs import ArithmeticConfig, Gsm8kConfig, TaskConfig
from drpo_bench.tasks.base import Problem, Split, Task, distinct_problems
from drpo_bench.tasks.grading import Verdict

__all__ = ["Problem", "Split", "Task", "Verdict", "distinct_problems", "make_task"]


def make_task(config: TaskConfig) -> Task:
    """The task that a `[task]` table describes."""
    if isinstance(config, ArithmeticConfig):
        from drpo_bench.tasks.arithmetic import Arithmetic

        return Arithmetic(config)
    if isinstance(config, Gsm8kConfig):
        from drpo_bench.tasks.gsm8k import Gsm8k

        return Gsm8k(config)
    from drpo_bench.tasks.word_problems import WordProblems

    return WordProblems(config)
