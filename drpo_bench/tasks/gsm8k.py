"""GSM8K: the real grade-school problems, from the hub or from local parquet files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from drpo_bench.task_configs import Gsm8kConfig
from drpo_bench.tasks.base import Problem, Split, problem_rng, split_of
from drpo_bench.tasks.grading import MARKER, Verdict, grade_final_answer, parse_number

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HUB_ID = "openai/gsm8k"
COLUMNS = ("question", "answer")
CALCULATOR = re.compile(r"<<[^<>]*>>")  # "48/2 = <<48/2=24>>24": annotations of the published solutions

Row = Mapping[str, str]


class Gsm8k:
    """The task `gsm8k`: finite, walked through in a new order every epoch.

    Training rows go to the splits by the hash of their text. Where evaluation rows have a source of their
    own (`eval_path`, or the hub's test split) the held-out tenth of the training rows is trained on.
    """

    name = "gsm8k"

    def __init__(self, config: Gsm8kConfig) -> None:
        self.config = config
        training, evaluation = _load(config)
        problems, self.dropped = parse_rows(training)  # `dropped`: rows whose gold is no number
        self.problems: dict[Split, list[Problem]] = {"warmstart": [], "train": [], "eval": []}
        for problem in problems:
            self.problems[split_of(problem.prompt)].append(problem)
        if evaluation is not None:
            heldout, dropped = parse_rows(evaluation)
            self.dropped += dropped
            known = {problem.prompt for problem in problems}
            self.problems["train"] += self.problems["eval"]
            self.problems["eval"] = [problem for problem in heldout if problem.prompt not in known]

    def problem(self, split: Split, seed: int, index: int) -> Problem:
        """Row number `index` of a stream that permutes the rows anew every epoch."""
        rows = self.problems[split]
        if not rows:
            field = "eval_path" if split == "eval" and self.config.eval_path else "path"
            raise ValueError(f"task.{field}: {getattr(self.config, field) or HUB_ID} has no rows for {split!r}")
        epoch, position = divmod(index, len(rows))
        return rows[permutation(split, seed, epoch, len(rows))[position]]

    def tokenizer(self) -> Tokenizer:
        """Byte-level BPE, learned from the rows that models are trained on."""
        from drpo_bench.tasks.tokenization import byte_bpe_tokenizer

        rows = self.problems["warmstart"] + self.problems["train"]
        return byte_bpe_tokenizer((row.prompt + row.solution for row in rows), self.config.vocab_size)

    def grade(self, problem: Problem, response: str) -> Verdict:
        """The number after the last `####`."""
        return grade_final_answer(problem.answer, response)


@lru_cache(maxsize=16)
def permutation(split: Split, seed: int, epoch: int, size: int) -> tuple[int, ...]:
    """The order of the rows in one epoch."""
    order = list(range(size))
    problem_rng(Gsm8k.name, split, seed, epoch).shuffle(order)
    return tuple(order)


def parse_rows(rows: Iterable[Row]) -> tuple[list[Problem], int]:
    """Problems of the rows, and how many rows were dropped for a gold answer that is no number."""
    parsed = [parse_row(row) for row in rows]
    problems = [problem for problem in parsed if problem is not None]
    return problems, len(parsed) - len(problems)


def parse_row(row: Row) -> Problem | None:
    """A row as a problem; None where its gold answer is missing or no number."""
    question, text = row["question"], row["answer"]
    if not question or not text or MARKER not in text:
        return None
    work, _, gold = text.rpartition(MARKER)
    answer = gold.strip().replace(",", "")
    if parse_number(answer) is None:
        return None
    solution = f"{CALCULATOR.sub('', work).strip()}\n{MARKER} {answer}"
    return Problem(f"Question: {question.strip()}\nAnswer:\n", answer, solution)


def _load(config: Gsm8kConfig) -> tuple[Iterable[Row], Iterable[Row] | None]:
    """Training rows and, where they have a source of their own, evaluation rows."""
    if config.path is None:
        training, evaluation = _load_hub(config.revision, "train"), _load_hub(config.revision, "test")
        return training, evaluation if config.eval_path is None else _load_file("eval_path", config.eval_path)
    evaluation_path = config.eval_path
    return (
        _load_file("path", config.path),
        None if evaluation_path is None else _load_file("eval_path", evaluation_path),
    )


def _load_hub(revision: str, split: str) -> Iterable[Row]:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    try:
        rows: Iterable[Row] = load_dataset(HUB_ID, "main", revision=revision, split=split)
    except (OSError, ValueError) as error:  # no network, no such dataset or revision
        raise ValueError(
            f"task.path: cannot load {HUB_ID} at revision {revision!r} from the hub "
            f"({type(error).__name__}); give a local parquet file"
        ) from error
    return rows


def _load_file(field: str, path: str) -> Iterable[Row]:
    """The rows of a local parquet file with the hub's columns."""
    from datasets import disable_progress_bars, load_dataset
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import read_schema

    if not Path(path).is_file():
        raise ValueError(f"task.{field}: there is no file {path}")
    try:
        columns = read_schema(path).names
    except ArrowInvalid as error:
        raise ValueError(f"task.{field}: {path} is not a parquet file") from error
    for column in COLUMNS:
        if column not in columns:
            raise ValueError(f"task.{field}: {path} has no column {column!r}, only {', '.join(columns)}")
    disable_progress_bars()
    rows: Iterable[Row] = load_dataset("parquet", data_files=path, split="train")
    return rows
