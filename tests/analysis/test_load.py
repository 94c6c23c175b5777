"""summary.csv and curves.csv: cumulative, atomic, the same bytes again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from drpo_bench.analysis.load import read_results, update_results
from drpo_bench.errors import UserError
from drpo_bench.records import read_json, write_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "study"


def texts(folder: Path) -> tuple[str, str]:
    return (folder / "summary.csv").read_text(), (folder / "curves.csv").read_text()


def test_rows_of_deleted_runs_are_kept_to_the_byte(make_run, folder):
    runs = [make_run(seed=seed, metrics={"policy/entropy": 1 / 3}) for seed in range(3)]
    update_results(folder)
    before = texts(folder)
    shutil.rmtree(runs[1].path)
    update_results(folder)
    assert texts(folder) == before
    shutil.rmtree(folder / "runs")
    results = update_results(folder)
    assert texts(folder) == before
    assert len(results.summary) == 3 and len(results.curves) == 21
    assert not list(folder.glob(".*"))


def test_rows_of_present_runs_are_replaced(make_run, folder):
    first, _ = make_run(seed=0, accuracies=(0.4, 0.5), state="running", step=10), make_run(seed=1)
    update_results(folder)
    shutil.rmtree(first.path)
    make_run(seed=0)
    results = update_results(folder)
    assert results.summary["state"].tolist() == ["finished", "finished"]
    assert results.curves.groupby("run_id").size().tolist() == [7, 7]


def test_a_run_that_fell_back_leaves_no_later_evaluations(make_run, folder):
    first = make_run(seed=0, accuracies=(0.4, 0.5, 0.6), state="failed")
    update_results(folder)
    shutil.rmtree(first.path)
    make_run(seed=0, accuracies=(0.4, 0.5), state="running")
    assert update_results(folder).curves["step"].tolist() == [0, 10]


def test_a_result_is_not_replaced_by_a_repeat_under_way(make_run, folder):
    run = make_run(seed=0)
    update_results(folder)
    before = texts(folder)
    run.set_status("running", step=3, steps=60)
    results = update_results(folder)
    assert texts(folder) == before
    assert results.summary["final_accuracy"].tolist() == [0.6]
    assert "is being repeated (running); its earlier result stands" in results.problems[0]


def test_numerics_versions_are_kept_apart(make_run, folder):
    run = make_run(seed=0, numerics_version=1)
    update_results(folder)
    shutil.rmtree(run.path)
    make_run(seed=0, numerics_version=2)
    results = update_results(folder)
    assert results.summary["numerics_version"].tolist() == [1, 2]
    assert len(results.curves) == 14


def test_two_machines_grow_one_study(make_run, folder, tmp_path):
    make_run(seed=0)
    update_results(folder)
    there = texts(folder)
    shutil.rmtree(folder)
    make_run(seed=10)
    make_run(seed=2)
    (folder / "summary.csv").write_text(there[0])
    (folder / "curves.csv").write_text(there[1])
    results = update_results(folder)
    assert sorted(results.summary["seed"]) == [0, 2, 10]
    assert sorted(set(results.curves["run_id"])) == results.summary["run_id"].tolist()


def test_reading_writes_nothing(make_run, folder):
    make_run(seed=0)
    assert len(read_results(folder).summary) == 1
    assert not (folder / "summary.csv").exists()


def test_numbers_have_six_digits_and_missing_ones_are_empty(make_run, folder):
    make_run(accuracies=(0.123456789, 0.5), without=["policy/entropy"])
    update_results(folder)
    curves = pd.read_csv(folder / "curves.csv", dtype=str, keep_default_na=False)
    assert curves["eval/accuracy"].tolist() == ["0.123457", "0.5"]
    assert curves["policy/entropy"].tolist() == ["", ""] and curves["step"].tolist() == ["0", "10"]
    assert len(curves.columns) <= 25


def test_steps_are_sorted_as_numbers(make_run, folder):
    make_run(accuracies=[0.4] * 12)
    assert update_results(folder).curves["step"].tolist() == list(range(0, 111, 10))
    assert [line.split(",")[2] for line in texts(folder)[1].splitlines()[1:]] == [str(n) for n in range(0, 111, 10)]


def test_infinities_survive(make_run, folder):
    make_run(accuracies=(0.4, 0.5), metrics={"optim/grad_norm": float("inf")})
    update_results(folder)
    shutil.rmtree(folder / "runs")
    assert read_results(folder).curves["optim/grad_norm"].tolist()[1] == float("inf")


def test_a_column_of_a_later_version_is_kept(make_run, folder):
    make_run(seed=0)
    update_results(folder)
    table = pd.read_csv(folder / "summary.csv", dtype=str, keep_default_na=False).assign(future="x")
    table.to_csv(folder / "summary.csv", index=False)
    shutil.rmtree(folder / "runs")
    make_run(seed=1)
    update_results(folder)
    assert pd.read_csv(folder / "summary.csv", keep_default_na=False)["future"].tolist() == ["x", ""]


def test_what_cannot_be_read_is_told(make_run, folder):
    make_run(seed=0)
    no_config, broken = make_run(seed=1), make_run(seed=2)
    no_config.config.unlink()
    no_config.set_status("failed", reason="the warm start did not reach its target")
    write_json(broken.config, read_json(broken.config) | {"train": {"steps": "many"}})
    results = update_results(folder)
    assert len(results.summary) == 1
    missing, unreadable = sorted(results.problems, key=lambda text: "cannot be read" in text)
    assert "has no config.json (failed: the warm start did not reach its target)" in missing
    assert broken.path.name in unreadable and "train.steps" in unreadable


@pytest.mark.parametrize("prepare", [lambda path: None, lambda path: (path / "runs").mkdir(parents=True)])
def test_an_empty_folder_is_one_line(folder, prepare):
    prepare(folder)
    with pytest.raises(UserError, match=r"study: no results here: neither runs/ nor summary\.csv$"):
        update_results(folder)
    assert not (folder / "summary.csv").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("run_id", "id", 1), r"summary\.csv: column run_id is missing"),
        (
            lambda text: text + "<<<<<<< ours" + "," * text.splitlines()[0].count(",") + "\n",
            r"line 3: numerics_version",
        ),
        (lambda text: text.replace(",0.4,", ",x,"), r"summary\.csv: column initial_accuracy: .*'x'"),
        (lambda text: "", r"summary\.csv: cut short: its last line has no end"),
        (lambda text: text[:-3], r"summary\.csv: cut short: its last line has no end"),
        (lambda text: text + "<<<<<<< ours\n", r"line 3: not as many cells as columns"),
    ],
)
def test_a_damaged_csv_is_the_users_to_mend(make_run, folder, damage, message):
    make_run(seed=0)
    update_results(folder)
    shutil.rmtree(folder / "runs")
    damaged = damage((folder / "summary.csv").read_text())
    (folder / "summary.csv").write_text(damaged)
    with pytest.raises(UserError, match=message):
        update_results(folder)
    assert (folder / "summary.csv").read_text() == damaged
