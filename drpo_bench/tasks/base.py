"""What a task is: problems as a pure function of (split, seed, index), a tokenizer, and a grader."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from drpo_bench.tasks.grading import Verdict

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Split = Literal["warmstart", "train", "eval"]
SHARES: tuple[tuple[Split, int], ...] = (("warmstart", 45), ("train", 45), ("eval", 10))  # percent
MAX_DRAWS = 2000  # at 10% a draw, a split is missed this often only where it is empty

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """One problem: the prompt as it is tokenised, the gold answer, and a worked solution."""

    prompt: str
    answer: str  # what stands after "#### "
    solution: str  # what the warm start learns; ends with "#### <answer>"

    @property
    def key(self) -> str:
        """sha256 of the prompt: two problems are the same when their texts are."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()


class Task(Protocol):
    """A source of problems; `problem` is pure, so any worker can draw any index at any time."""

    @property
    def name(self) -> str:
        """The id of the task, as in `[task] name`."""

    def problem(self, split: Split, seed: int, index: int) -> Problem:
        """The problem number `index` of an endless stream."""

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of models that are trained from scratch on this task."""

    def grade(self, problem: Problem, response: str) -> Verdict:
        """Whether the decoded response, without special tokens, answers the problem."""


def split_of(prompt: str) -> Split:
    """The split a prompt belongs to, by its hash: the splits are disjoint by construction."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % 100
    for split, share in SHARES:
        if bucket < share:
            return split
        bucket -= share
    raise AssertionError("the shares of the splits do not sum to 100")


def problem_rng(task: str, split: Split, seed: int, index: int) -> random.Random:
    """The random numbers of one problem: the same in every process, whatever was drawn before."""
    digest = hashlib.sha256(f"{task}/{split}/{seed}/{index}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def draw_in_split(split: Split, draw: Callable[[], T], prompt_of: Callable[[T], str]) -> T:
    """Draw until the prompt falls in the split asked for."""
    for _ in range(MAX_DRAWS):
        candidate = draw()
        if split_of(prompt_of(candidate)) == split:
            return candidate
    raise ValueError(f"task: has too few distinct problems, none of {MAX_DRAWS} draws fell in {split!r}")


def distinct_problems(task: Task, split: Split, seed: int, count: int, field: str) -> list[Problem]:
    """The first `count` problems with different texts of a split's stream.

    Raises ValueError naming the config's field where the split has fewer.
    """
    found: dict[str, Problem] = {}
    for index in range(20 * count):
        problem = task.problem(split, seed, index)
        found.setdefault(problem.key, problem)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"{field}: {count} asked for, but {task.name} has only {len(found)} in {split!r}")
