"""`drpo-bench status`: what the files say of runs, be they live, broken or torn; tables, pipes and watching."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from drpo_bench.config import NUMERICS_VERSION
from drpo_bench.errors import UserError
from drpo_bench.process import this_process
from drpo_bench.records import RunDir, append_record, write_json
from drpo_bench.sweep import status as status_module
from drpo_bench.sweep.run_row import GONE, TAIL_BYTES, Row, read_row
from drpo_bench.sweep.status import Sweep, print_status, read_sweeps
from drpo_bench.sweep.status_table import duration, fitting, line, view

LONG = "nano_qwen3_moe-fp8_rollout-drpo_no_abs_advantage-s10-0123abcd"
ACCURACY = "eval/arithmetic/accuracy"


def make_run(experiment: Path, name: str, state: str, records: int = 0, **fields: Any) -> RunDir:
    """A run of two seconds a step with an evaluation every ten."""
    run_dir = RunDir(experiment / "runs" / name)
    run_dir.path.mkdir(parents=True)
    for step in range(records):
        record = {"step": step, "time_s": 100.0 + 2.0 * step, "reward/mean": step / 100}
        append_record(run_dir.metrics, record | ({ACCURACY: 0.5 + step / 100} if step % 10 == 0 else {}))
    run_dir.set_status(state, **fields)  # type: ignore[arg-type]
    return run_dir


def dead_process() -> dict[str, Any]:
    """A process of this machine that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return this_process() | {"pid": child.pid}


def rename_process(run_dir: RunDir, **fields: Any) -> None:
    status = run_dir.status()
    write_json(run_dir.path / "status.json", status | {"process": status["process"] | fields})


def printed(directory: Path, width: int) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(view(read_sweeps(directory), width))
    return capture.get()


def test_a_running_run(tmp_path):
    run_dir = make_run(tmp_path / "study", "a", "running", records=24, step=23, steps=60, accuracy=0.7, seconds=148.0)
    row = read_row(run_dir.path)
    assert (row.experiment, row.run_id, row.state, row.step, row.steps) == ("study", "a", "running", 23, 60)
    assert (row.accuracy, row.reward, row.seconds_per_step, row.eta_s) == (0.7, 0.23, 2.0, 74.0)
    assert row.host == this_process()["host"] and row.reason is None
    assert row.updated_at == run_dir.status()["updated_at"] and 0 <= row.age_s < 60


def test_the_keys_of_the_json_are_those_of_the_docs(tmp_path, capsys):
    make_run(tmp_path / "study", "a", "finished", records=3, step=2, steps=2, accuracy=0.5, seconds=4.0)
    print_status(tmp_path / "study", as_json=True, watch=False)
    (row,) = json.loads(capsys.readouterr().out)
    page = (Path(__file__).parents[1] / "docs" / "design.md").read_text()
    assert all(f"`{key}`" in page for key in row)
    assert row["state"] == "finished" and row["eta_s"] is None and row["collapse_step"] is None


def test_speed_is_that_of_the_last_records(tmp_path):
    run_dir = make_run(tmp_path, "a", "running", records=30, step=49, steps=100)
    for step in range(30, 50):
        append_record(run_dir.metrics, {"step": step, "time_s": 158.0 + 0.5 * (step - 29)})
    assert read_row(run_dir.path).seconds_per_step == 0.5
    assert read_row(run_dir.path).eta_s == 51 * 0.5


def test_only_the_end_of_the_records_is_read(tmp_path):
    run_dir = make_run(tmp_path, "a", "running", step=20, steps=30)
    with run_dir.metrics.open("wb") as file:
        file.truncate(2**38)  # a hole that no memory holds
        file.seek(0, os.SEEK_END)
        file.write(b"\n")
    for step in range(21):
        append_record(run_dir.metrics, {"step": step, "time_s": 2.0 * step})
    assert read_row(run_dir.path).eta_s == 20.0


def test_a_record_longer_than_the_tail_is_found(tmp_path):
    run_dir = make_run(tmp_path, "a", "running", step=1, steps=4)
    for step in range(2):
        append_record(run_dir.metrics, {"step": step, "reward/mean": 0.5, "x": "y" * 3 * TAIL_BYTES})
    assert read_row(run_dir.path).reward == 0.5


def test_a_run_whose_process_is_gone_has_failed(tmp_path):
    run_dir = make_run(tmp_path, "a", "running", records=5, step=4, steps=60)
    rename_process(run_dir, **dead_process())
    row = read_row(run_dir.path)
    assert (row.state, row.reason, row.step, row.eta_s) == ("failed", GONE, 4, None)
    assert run_dir.status()["state"] == "running"  # the file is the runner's


def test_a_run_that_ends_between_two_looks_has_not_failed(tmp_path, monkeypatch):
    run_dir = make_run(tmp_path, "a", "running", records=5, step=4, steps=4)

    def ends_now(process):
        run_dir.set_status("finished", step=4, steps=4)
        return False

    monkeypatch.setattr("drpo_bench.sweep.run_row.is_alive", ends_now)
    assert read_row(run_dir.path).state == "finished"


def test_a_run_on_another_machine_is_running_and_its_age_is_told(tmp_path):
    run_dir = make_run(tmp_path / "study", "a", "running", records=5, step=4, steps=60)
    rename_process(run_dir, host="node17", pid=1)
    write_json(run_dir.path / "status.json", run_dir.status() | {"updated_at": time.time() - 7200})
    row = read_row(run_dir.path)
    assert (row.state, row.host) == ("running", "node17") and 7200 <= row.age_s < 7260
    assert "1 of them on node17" in printed(tmp_path / "study", 120) and "on node17" in line(row)


def test_the_warm_start_is_told_by_its_phase(tmp_path):
    make_run(tmp_path / "study", "a", "running", phase="warm start", step=120, steps=2000, accuracy=0.2)
    row = read_row(tmp_path / "study" / "runs" / "a")
    assert (row.phase, row.step, row.steps, row.eta_s) == ("warm start", 120, 2000, None)
    assert "warm start  120/2000" in printed(tmp_path / "study", 120)


BROKEN = {
    "status.json is missing": lambda run: (run.path / "status.json").unlink(),
    "damaged": lambda run: (run.path / "status.json").write_text('{"state": "runn'),
    "status.json is damaged": lambda run: (run.path / "status.json").write_text("[1]"),
    "status.json cannot be read": lambda run: ((run.path / "status.json").unlink(), (run.path / "status.json").mkdir()),
    "metrics.jsonl has a damaged line": lambda run: run.metrics.write_bytes(
        run.metrics.read_bytes().replace(b'"step": 3', b'"st\xff\x00')
    ),
    "metrics.jsonl cannot be read": lambda run: (run.metrics.unlink(), run.metrics.mkdir()),
}


@pytest.mark.parametrize("told", BROKEN)
def test_broken_files_are_told_in_the_row(told, tmp_path, capsys):
    run_dir = make_run(tmp_path, "a", "running", records=5, step=4, steps=60)
    BROKEN[told](run_dir)
    row = read_row(run_dir.path)
    assert told in row.reason
    assert row.state == ("pending" if "metrics" not in told else "running")
    assert row.age_s is not None
    for as_json in (False, True):
        print_status(tmp_path, as_json, watch=False)
    assert told in capsys.readouterr().out


def test_what_a_live_run_leaves_half_written_is_no_damage(tmp_path):
    torn = make_run(tmp_path, "torn", "running", records=5, step=4, steps=60)
    with torn.metrics.open("a") as file:
        file.write('{"step": 5, "time_s": 11')
    empty = make_run(tmp_path, "empty", "running", step=0, steps=60)
    empty.metrics.touch()
    assert (read_row(torn.path).reason, read_row(torn.path).reward) == (None, 0.04)
    assert (read_row(empty.path).reason, read_row(empty.path).seconds_per_step) == (None, None)


def test_values_of_another_type_are_no_numbers(tmp_path):
    run_dir = make_run(tmp_path, "a", "running", step="x", steps=None, accuracy="nan", reason=["x"], updated_at=True)
    append_record(run_dir.metrics, {"step": 0, "time_s": "soon", "reward/mean": float("nan")})
    write_json(run_dir.path / "status.json", run_dir.status() | {"process": {"pid": "12"}})
    row = read_row(run_dir.path)
    assert (row.step, row.steps, row.accuracy, row.reward, row.reason) == (None, None, None, None, None)
    assert row.state == "running" and row.updated_at > 0


def test_folders_of_every_kind(tmp_path):
    for experiment in ("one", "two"):
        make_run(tmp_path / experiment, "a", "finished", records=2, step=1, steps=1)
    (tmp_path / "warmstarts").mkdir()
    names = lambda path: [(s.directory.name, [r.run_id for r in s.rows]) for s in read_sweeps(path)]  # noqa: E731
    assert names(tmp_path) == [("one", ["a"]), ("two", ["a"])]
    assert names(tmp_path / "two") == [("two", ["a"])]
    assert names(tmp_path / "two" / "runs" / "a") == [("two", ["a"])]
    for path in (tmp_path / "warmstarts", tmp_path / "absent"):
        with pytest.raises(UserError, match="no runs here"):
            read_sweeps(path)


def test_planned_runs_count_before_they_begin(tmp_path):
    make_run(tmp_path / "study", "a", "finished", records=2, step=1, steps=1)
    owner = {"name": "study", "file": "study.toml", "planned": ["a", "b", "c"]}
    write_json(tmp_path / "study" / "experiment.json", owner)
    (tmp_path / "study" / "summary.csv").write_text(f"run_id,state,numerics_version\nc,finished,{NUMERICS_VERSION}\n")
    (sweep,) = read_sweeps(tmp_path / "study")
    assert [(row.run_id, row.state) for row in sweep.rows] == [("a", "finished"), ("b", "pending")]
    (tmp_path / "study" / "experiment.json").write_text("{")
    assert [row.run_id for row in read_sweeps(tmp_path / "study")[0].rows] == ["a"]


def test_time_to_go_of_a_sweep():
    def row(state, step=None, eta=None, **fields):
        return Row("e", "r", state, step, 100, seconds_per_step=2.0 if step else None, eta_s=eta, **fields)

    finished, half, waiting = row("finished", 100), row("running", 50, eta=100.0), Row("e", "r", "pending")
    assert Sweep(Path(), [finished, half]).eta_s == 100.0
    assert Sweep(Path(), [finished, half, waiting]).eta_s == 300.0  # 100 s of its own, 200 s of one like the others
    assert Sweep(Path(), [half, half, waiting]).eta_s == 200.0  # two workers
    assert Sweep(Path(), [half, row("running", 1, eta=198.0)]).eta_s == 198.0  # the longest cannot be shared
    assert Sweep(Path(), [finished, half, row("pending", 50)]).eta_s == 200.0  # stopped half-way
    warm = Row("e", "r", "running", 1900, 2000, phase="warm start")
    assert Sweep(Path(), [finished, warm]).eta_s == 200.0
    assert Sweep(Path(), [finished, waiting]).eta_s is None  # nobody is at work
    assert Sweep(Path(), [Row("e", "r", "running", 0, 100)]).eta_s is None  # nothing is known yet


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, ""), (0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (9000, "2.5 h"), (180_000, "2.1 d")],
)
def test_times_as_people_say_them(seconds, words):
    assert duration(seconds) == words


def test_a_hundred_columns_are_enough_for_long_names(tmp_path):
    make_run(tmp_path / "study", LONG, "running", records=30, step=29, steps=1000, accuracy=0.4)
    make_run(tmp_path / "study", "b", "failed", step=3, steps=1000, reason="RuntimeError: " + "x" * 200)
    for width in (80, 100):
        text = printed(tmp_path / "study", width)
        assert max(map(len, text.splitlines())) <= width
        assert "29/1000" in text and "0.400" in text and "32 min" in text
        assert ("0.290" in text) == (width == 100)
    assert LONG in printed(tmp_path / "study", 200)


def test_a_short_terminal_shows_what_is_urgent(tmp_path):
    for number in range(40):
        make_run(tmp_path / "study", f"done{number}", "finished", step=1, steps=1)
    make_run(tmp_path / "study", "zz", "running", step=1, steps=9)
    console = Console(width=100, height=20, force_terminal=True)
    shown = fitting(read_sweeps(tmp_path / "study"), console)
    lines = ["".join(part.text for part in parts) for parts in console.render_lines(shown)]
    assert len(lines) < 20 and any("zz" in text for text in lines)
    assert any("more: " in text and "finished" in text for text in lines)


def cli(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "drpo_bench.cli", "status", *arguments]


def test_a_pipe_is_neither_wrapped_nor_cut_and_nothing_heavy_is_imported(tmp_path):
    reason = "RuntimeError: " + "x" * 300
    make_run(tmp_path / "study", LONG, "failed", records=3, step=2, steps=60, reason=reason)
    code = "import sys; from drpo_bench import cli; cli.app(['status', sys.argv[1]], standalone_mode=False); "
    code += "assert not {'torch', 'pandas', 'transformers', 'mlflow'} & set(sys.modules), 'heavy'"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "study")], capture_output=True, text=True, check=True, env=narrow()
    )
    lines = done.stdout.splitlines()
    assert sum(f" {LONG}  failed" in text for text in lines) == 1
    assert f"{LONG}: {reason}" in lines


def narrow() -> dict[str, str]:
    return os.environ | {"COLUMNS": "40"}


def test_watching_through_a_pipe(tmp_path):
    run_dir = make_run(tmp_path / "study", "a", "running", records=3, step=2, steps=3)
    rename_process(run_dir, host="node17")
    watcher = subprocess.Popen(cli(str(tmp_path), "--watch"), stdout=subprocess.PIPE, text=True, env=narrow())
    assert watcher.stdout is not None
    assert ": running, step 2/3, accuracy 0.500, reward 0.020" in watcher.stdout.readline()
    run_dir.set_status("collapsed", step=3, steps=3, collapse_step=3, reason="accuracy")
    assert watcher.stdout.readline().rstrip().endswith("collapsed at step 3: accuracy")
    assert (watcher.stdout.read(), watcher.wait(timeout=30)) == ("", 0)  # it ends by itself


def test_watching_as_json_is_an_object_a_line_and_ctrl_c_ends_it_quietly(tmp_path):
    run_dir = make_run(tmp_path / "study", "a", "running", records=3, step=2, steps=12)
    rename_process(run_dir, host="node17")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    watcher = subprocess.Popen(cli(str(tmp_path), "--watch", "--json"), **pipes)
    found = json.loads(watcher.stdout.readline())
    assert found["runs"][0]["eta_s"] == 20.0
    assert found["experiments"] == [{"experiment": "study", "eta_s": 20.0}]
    watcher.send_signal(signal.SIGINT)
    assert (watcher.communicate(timeout=30)[1], watcher.returncode) == ("", 0)


def test_pending_runs_are_waited_for_while_a_runner_is_at_work(tmp_path):
    make_run(tmp_path / "study", "a", "pending")
    (sweep,) = read_sweeps(tmp_path / "study")
    assert sweep.is_over
    owner = tmp_path / "study" / "runner.json"
    write_json(owner, {"process": this_process()})
    assert not sweep.is_over
    write_json(owner, {"process": this_process() | {"host": "node17"}})
    assert not sweep.is_over
    os.utime(owner, (time.time() - 3600,) * 2)  # its heartbeat has stopped
    assert sweep.is_over


def test_watching_a_terminal_ends_with_the_whole_table(tmp_path, monkeypatch):
    make_run(tmp_path / "study", "a", "running", records=3, step=2, steps=12)
    console = Console(width=100, height=30, force_terminal=True, record=True)
    monkeypatch.setattr(status_module, "output", lambda: console)
    monkeypatch.setattr(time, "sleep", lambda seconds: RunDir(tmp_path / "study" / "runs" / "a").set_status("finished"))
    print_status(tmp_path / "study", as_json=False, watch=True)
    text = console.export_text()
    assert text.rindex("running") < text.rindex("study: 1 run: 1 finished") and text.rstrip().endswith("0 s")


def test_two_hundred_runs_take_no_time(tmp_path):
    filler = {f"drift/{number}": 0.123456789 for number in range(90)}
    lines = "".join(json.dumps({"step": s, "time_s": s * 0.5, "reward/mean": 0.5} | filler) + "\n" for s in range(100))
    for number in range(200):
        run_dir = make_run(tmp_path / "study", f"{number:03}", "running", step=99, steps=100)
        run_dir.metrics.write_text(lines)
    begin = time.perf_counter()
    (sweep,) = read_sweeps(tmp_path / "study")
    sys.stderr.write(f"200 runs read in {time.perf_counter() - begin:.2f} s\n")
    assert len(sweep.rows) == 200 and sweep.eta_s == 0.5
