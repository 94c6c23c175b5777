"""report.md and the terminal's table, from a results folder alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from drpo_bench.analysis import report
from drpo_bench.analysis.captions import figure_notes
from drpo_bench.analysis.cells import current, label_runs
from drpo_bench.analysis.figures import final_bars
from drpo_bench.analysis.layout import save_figure
from drpo_bench.analysis.load import read_results
from drpo_bench.analysis.report import comparison_table, write_report
from drpo_bench.analysis.tables import final_table
from drpo_bench.cli import app
from drpo_bench.errors import UserError
from drpo_bench.records import write_json


@pytest.fixture(scope="module")
def reported(study, tmp_path_factory) -> Path:
    """The study in a folder of its own, reported once."""
    directory = tmp_path_factory.mktemp("reported") / "study"
    shutil.copytree(study, directory)
    assert write_report(directory) == directory / "report.md"
    return directory


@pytest.fixture
def no_drawing(monkeypatch):
    names = {name: [name] for name in ("learning_curves", "final_accuracy", "stability")}
    monkeypatch.setattr(report, "draw_figures", lambda *_: names)


def printed(directories, width=200) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(comparison_table(directories))
    return capture.get()


def test_report_has_everything(reported):
    text = (reported / "report.md").read_text()
    assert text.startswith("# study\n\n> Which losses hold?\n")
    assert "30 runs: 2 collapsed, 1 failed, 27 finished." in text
    rows = [line for line in text.splitlines() if line.startswith("| fp8_rollout, lag 2 |")]
    assert len(rows) == 5
    assert "| GRPO | 2 | 0, 1 | 0.400 | 0.650 [0.600, 0.700] |" in rows[1] and "| 1 failed |" in rows[1]
    assert "1/3 [0.01, 0.91] at 25\\* |" in rows[2] and rows[2].endswith("| rollout+trainer |")
    assert "| failed | 20/60 | MemoryError: no \\| more |" in text
    assert "Share of sampled tokens with mu <= 0.01 in the first batch, arithmetic, nano: 8.0%" in text
    for part in (
        "drpo-bench run study",
        "Commit: c0ffee (30 runs)",
        "python=3.11.7",
        "a cpu",
        "Wall time: 15.0 minutes",
    ):
        assert part in text
    for name in ("learning_curves", "final_accuracy", "stability"):
        assert f"![{name}](figures/{name}.png)" in text
        for kind in ("png", "pdf", "csv"):
            assert (reported / "figures" / f"{name}.{kind}").stat().st_size > 500


def test_a_fresh_clone_gives_the_same_report(reported, tmp_path, no_drawing):
    clone = tmp_path / "study"
    clone.mkdir()
    for name in ("summary.csv", "curves.csv", "experiment.json"):
        shutil.copy(reported / name, clone / name)
    # The way to the folder is part of the command to reproduce; all the rest must be the same.
    there = write_report(clone).read_text().replace(tmp_path.name, reported.parent.name)
    assert there == (reported / "report.md").read_text()
    (clone / "experiment.json").unlink()
    assert "drpo-bench run study" in write_report(clone).read_text()


def test_a_figure_drawn_again_has_the_same_bytes(reported, tmp_path):
    results = read_results(reported)
    summary = label_runs(current(results.summary))
    table = final_table(summary)
    paths = save_figure(final_bars(table, figure_notes(summary)["final_accuracy"]), table, tmp_path, "final_accuracy")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"final_accuracy.{e}" for e in ("csv", "pdf", "png")]
    for path in paths:
        assert path.read_bytes() == (reported / "figures" / path.name).read_bytes()
    assert b"CreationDate" not in (tmp_path / "final_accuracy.pdf").read_bytes()


def test_without_a_result_there_are_no_figures(make_run, tmp_path):
    make_run(state="running", accuracies=(0.4, 0.5), step=12)
    text = write_report(tmp_path / "study").read_text()
    assert "No run has a result yet" in text and "| running | 12/60 |" not in text
    assert "| running | 10/60 |" in text  # as far as its records go
    assert not (tmp_path / "study" / "figures").exists()


def test_an_empty_folder_is_the_users_mistake(tmp_path):
    for action in (write_report, lambda path: comparison_table([path])):
        with pytest.raises(UserError, match="no results here") as error:
            action(tmp_path / "nothing")
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_many_settings_take_several_pages(make_run, tmp_path, monkeypatch):
    saved = {}
    for name in ("learning_curves", "final_bars", "stability_panel"):
        monkeypatch.setattr(report, name, lambda *_: None)
    monkeypatch.setattr(report, "save_figure", lambda _, table, directory, name: saved.update({name: table}))
    for lag in range(8):
        make_run(changes={"rollout": {"lag": lag}})
    text = write_report(tmp_path / "study").read_text()
    assert saved["stability"]["setting_label"].nunique() == 6 and saved["stability_2"]["setting_label"].nunique() == 2
    assert "![stability](figures/stability_2.png)" in text


def test_the_terminals_table(reported):
    text = printed([reported], width=80)
    assert text.splitlines()[0].strip() == "study"
    assert "fp8_rollout, lag 2" in text and "experiment" not in text
    assert "emulated: bf16, fp8_rollout (trainer and rollout)" in text
    words = " ".join(text.split())
    assert "GRPO 2 0.650 [0.600, 0.700] 0.600 +0.250 1 failed" in words
    assert "SPO 3 0.467 [0.000, 0.800] 0.000 +0.067 1/3 collapsed" in words and "at 25*" in words


def test_experiments_side_by_side(make_run, reported, tmp_path):
    make_run(loss="drpo", precision="fp32", emulated=False)
    other = (tmp_path / "study").rename(tmp_path / "other")
    text = printed([reported, other])
    assert text.split("\n")[0].strip() == "study and other"
    rows = [line.split() for line in text.splitlines() if "DRPO" in line]
    assert [row[:3] for row in rows] == [["DRPO", "other", "1"], ["DRPO", "study", "3"], ["DRPO", "study", "3"]]
    assert not (other / "summary.csv").exists()


def test_experiments_of_one_name_are_told_apart_by_their_folders(make_run, tmp_path):
    make_run(loss="drpo")
    other = tmp_path / "other" / "study"
    shutil.copytree(tmp_path / "study", other)
    table = comparison_table([tmp_path / "study", other])
    assert table.title == f"{tmp_path / 'study'} and {other}"


def commands(report: Path) -> list[list[str]]:
    """What the report says to type, without the program's name."""
    block = report.read_text().split("## How to reproduce")[1].split("```")[1]
    return [line.split()[1:] for line in block.strip().splitlines()]


def moved(tmp_path: Path, out: str, name: str, file: str) -> Path:
    """The folder of `make_run` under another results folder, as an experiment of that file."""
    (tmp_path / out).mkdir()
    directory = (tmp_path / "study").rename(tmp_path / out / name)
    write_json(directory / "experiment.json", {"name": name, "file": file})
    return directory


def test_the_commands_that_it_prints_work(make_run, tmp_path, no_drawing, monkeypatch):
    make_run(loss="drpo")
    directory = moved(tmp_path, "out", "study", "eng.toml")  # a file of another name than the experiment
    (tmp_path / "eng.toml").write_text("[experiment]\nname = 'study'\n")
    text = write_report(directory).read_text()
    run, again = commands(directory / "report.md")
    assert (run, again) == (["run", "eng.toml", "--out", "out"], ["report", "out/study"])
    assert "`drpo-bench reproduce out/study/runs/<run_id>`" in text
    assert "eng.toml, which is expected beside the folder out" in text
    monkeypatch.chdir(tmp_path)
    for command in ([*run, "--dry-run"], again):
        assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0


def test_a_shipped_experiment_is_run_by_its_name(make_run, tmp_path, no_drawing, monkeypatch):
    make_run(loss="drpo")
    directory = moved(tmp_path, "results", "quickstart", "quickstart.toml")
    assert "which comes with drpo-bench" in write_report(directory).read_text()
    run, _ = commands(directory / "report.md")
    assert run == ["run", "quickstart"]
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, [*run, "--dry-run"], catch_exceptions=False).exit_code == 0
