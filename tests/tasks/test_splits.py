"""What holds for every synthetic task: disjoint splits, pure problems, solutions that grade as correct."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from drpo_bench.task_configs import ArithmeticConfig, TaskConfig, WordProblemsConfig
from drpo_bench.tasks import Problem, Split, make_task
from drpo_bench.tasks.base import draw_in_split, problem_rng, split_of

SPLITS: tuple[Split, ...] = ("warmstart", "train", "eval")
CONFIGS = [ArithmeticConfig(), ArithmeticConfig(max_operand=9), WordProblemsConfig()]
IDS = ["arithmetic", "arithmetic_small", "word_problems"]


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_splits_are_disjoint(config: TaskConfig) -> None:
    task = make_task(config)
    keys = {split: {task.problem(split, 0, index).key for index in range(1000)} for split in SPLITS}
    assert not keys["warmstart"] & keys["train"]
    assert not keys["warmstart"] & keys["eval"]
    assert not keys["train"] & keys["eval"]


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_a_problem_depends_on_its_arguments_alone(config: TaskConfig) -> None:
    forwards, backwards = make_task(config), make_task(config)
    expected = [forwards.problem("train", 3, index) for index in range(50)]
    assert [backwards.problem("train", 3, index) for index in reversed(range(50))] == expected[::-1]


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_seed_index_and_split_each_change_the_problem(config: TaskConfig) -> None:
    task = make_task(config)
    base = [task.problem("train", 0, index) for index in range(20)]
    assert base != [task.problem("train", 1, index) for index in range(20)]
    assert base != [task.problem("train", 0, index) for index in range(20, 40)]
    assert base != [task.problem("eval", 0, index) for index in range(20)]


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_the_worked_solution_is_graded_correct_and_another_answer_wrong(config: TaskConfig) -> None:
    task = make_task(config)
    for index in range(300):
        problem = task.problem("train", 0, index)
        assert problem.solution.endswith(f"#### {problem.answer}")
        assert task.grade(problem, problem.solution).status == "correct"
        assert task.grade(problem, f"{problem.solution}0").status == ("wrong" if problem.answer != "0" else "correct")
        assert task.grade(problem, problem.solution.split("####")[0]).status == "unparsable"


def test_problems_are_the_same_in_another_process_and_need_no_torch() -> None:
    program = (
        "import sys\n"
        "from drpo_bench.task_configs import ArithmeticConfig, WordProblemsConfig\n"
        "from drpo_bench.tasks import make_task\n"
        "for config in (ArithmeticConfig(nesting=0.5), WordProblemsConfig()):\n"
        "    print(repr([make_task(config).problem('eval', 5, index) for index in range(20)]))\n"
        "assert not {'torch', 'transformers', 'datasets', 'tokenizers'} & set(sys.modules)\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    tasks = [make_task(config) for config in (ArithmeticConfig(nesting=0.5), WordProblemsConfig())]
    here = "".join(repr([task.problem("eval", 5, index) for index in range(20)]) + "\n" for task in tasks)
    assert outputs == {here}


def test_shares_of_the_splits() -> None:
    counts: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    for number in range(4000):
        counts[split_of(f"prompt {number}")] += 1
    for split, share in zip(SPLITS, (0.45, 0.45, 0.10), strict=True):
        assert abs(counts[split] / 4000 - share) < 0.03, split  # 4 standard deviations


def test_key_is_the_sha256_of_the_prompt() -> None:
    assert Problem("1+1=", "2", "#### 2").key == hashlib.sha256(b"1+1=").hexdigest()


def test_random_numbers_differ_by_every_argument() -> None:
    first = problem_rng("arithmetic", "train", 1, 12).random()
    assert first == problem_rng("arithmetic", "train", 1, 12).random()
    others = [("word_problems", "train", 1, 12), ("arithmetic", "eval", 1, 12), ("arithmetic", "train", 11, 2)]
    assert first not in {problem_rng(name, split, seed, index).random() for name, split, seed, index in others}  # type: ignore[arg-type]


def test_an_empty_split_is_an_error_and_not_a_hang() -> None:
    other: Split = "train" if split_of("1+1=") == "eval" else "eval"
    with pytest.raises(ValueError, match="too few distinct problems"):
        draw_in_split(other, lambda: "1+1=", str)
