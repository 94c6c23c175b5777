"""GSM8K on an excerpt of the real rows: parsing, splits, epochs, and the user's mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drpo_bench.task_configs import Gsm8kConfig
from drpo_bench.tasks import Split, make_task
from drpo_bench.tasks.base import split_of
from drpo_bench.tasks.gsm8k import Gsm8k, parse_row

EXCERPT = str(Path(__file__).parents[1] / "data" / "gsm8k_excerpt.parquet")
SPLITS: tuple[Split, ...] = ("warmstart", "train", "eval")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` copies what it reads into a cache; not into the user's."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def task() -> Gsm8k:
    task = make_task(Gsm8kConfig(path=EXCERPT, vocab_size=600))
    assert isinstance(task, Gsm8k)
    return task


def write(path: Path, **columns: list[str | None]) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return str(path)


def test_a_row_becomes_prompt_answer_and_clean_solution() -> None:
    row = {
        "question": "Weng earns $12 an hour. How much for 100 hours? ",
        "answer": "She earns 12*100 = $<<12*100=1200>>1,200.\nThat is all.\n#### 1,200",
    }
    problem = parse_row(row)
    assert problem is not None
    assert problem.prompt == "Question: Weng earns $12 an hour. How much for 100 hours?\nAnswer:\n"
    assert problem.answer == "1200"
    assert problem.solution == "She earns 12*100 = $1,200.\nThat is all.\n#### 1200"


@pytest.mark.parametrize("answer", ["no marker 12", "#### twelve", "####", "", None])
def test_a_row_without_a_number_is_no_problem(answer: Any) -> None:
    assert parse_row({"question": "How many?", "answer": answer}) is None


def test_dropped_rows_are_counted(tmp_path: Path) -> None:
    questions: list[str | None] = ["a", "b", "c", "d"]
    path = write(tmp_path / "rows.parquet", question=questions, answer=["#### 1", "#### x", None, "2 #### 3"])
    task = Gsm8k(Gsm8kConfig(path=path))
    assert task.dropped == 2
    assert sorted(p.answer for rows in task.problems.values() for p in rows) == ["1", "3"]


def test_rows_go_to_the_splits_by_their_text(task: Gsm8k) -> None:
    assert sum(map(len, task.problems.values())) == 60
    assert task.dropped == 0
    for split in SPLITS:
        assert task.problems[split]
        assert {split_of(problem.prompt) for problem in task.problems[split]} == {split}


def test_every_epoch_walks_through_all_rows_in_a_new_order(task: Gsm8k) -> None:
    size = len(task.problems["train"])
    epochs = [[task.problem("train", 7, epoch * size + i) for i in range(size)] for epoch in range(3)]
    for epoch in epochs:
        assert {problem.key for problem in epoch} == {problem.key for problem in task.problems["train"]}
    assert epochs[0] != epochs[1]
    assert epochs[1] != epochs[2]
    again = Gsm8k(Gsm8kConfig(path=EXCERPT))
    assert again.problem("train", 7, 2 * size + 1) == epochs[2][1]
    assert [task.problem("train", 8, i) for i in range(size)] != epochs[0]


def test_solutions_grade_as_correct(task: Gsm8k) -> None:
    for rows in task.problems.values():
        for problem in rows:
            assert task.grade(problem, problem.solution).status == "correct"
            assert task.grade(problem, f"#### {problem.answer}1").status == "wrong"
            assert "<<" not in problem.solution


def test_the_tokenizer_round_trips_all_rows_and_splits_digits(task: Gsm8k) -> None:
    tokenizer = task.tokenizer()
    assert tokenizer.get_vocab_size() == 600
    for rows in task.problems.values():
        for problem in rows:
            ids = tokenizer.encode(problem.prompt).ids + tokenizer.encode(problem.solution).ids
            assert tokenizer.decode(ids) == problem.prompt + problem.solution
    assert tokenizer.encode("1200").tokens == ["1", "2", "0", "0"]


def test_evaluation_rows_of_their_own_leave_out_what_is_trained_on(task: Gsm8k, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(EXCERPT).slice(0, 5).to_pydict()
    questions = [*rows["question"], "How many legs have 3 cats?"]
    path = write(tmp_path / "eval.parquet", question=questions, answer=[*rows["answer"], "#### 12"])
    both = Gsm8k(Gsm8kConfig(path=EXCERPT, eval_path=path))
    assert [problem.answer for problem in both.problems["eval"]] == ["12"]
    assert len(both.problems["train"]) == len(task.problems["train"]) + len(task.problems["eval"])
    assert both.problem("eval", 0, 0) == both.problem("eval", 0, 1)


@pytest.mark.parametrize("field", ["path", "eval_path"])
def test_mistakes_name_the_field_and_the_file(field: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.parquet")
    text = tmp_path / "rows.csv"
    text.write_text("question,answer\n")
    column = write(tmp_path / "column.parquet", question=["a"], reply=["#### 1"])
    for path, told in (
        (missing, "there is no file"),
        (str(text), "not a parquet file"),
        (column, "no column 'answer'"),
    ):
        config = Gsm8kConfig.model_validate({"path": EXCERPT, field: path})
        with pytest.raises(ValueError, match=told) as error:
            Gsm8k(config)
        assert str(error.value).startswith(f"task.{field}: ")
        assert path in str(error.value)


def test_without_the_hub_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ValueError, match=r"task\.path: cannot load openai/gsm8k .* local parquet file"):
        Gsm8k(Gsm8kConfig())


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "one.parquet", question=["How many legs have 3 cats?"], answer=["#### 12"])
    task = Gsm8k(Gsm8kConfig(path=path))
    for split in SPLITS:
        if not task.problems[split]:
            with pytest.raises(ValueError, match=r"task\.path: .* has no rows for"):
                task.problem(split, 0, 0)
