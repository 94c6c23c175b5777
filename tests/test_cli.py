"""The command line: exit codes, messages, and a sweep from the file to the report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SWEEP = """
[experiment]
name = "small"
question = "Does it run?"
[task]
name = "arithmetic"
min_terms = 2
max_terms = 2
max_operand = 9
[warmstart]
target = 0.0
max_steps = 10
eval_every = 10
eval_problems = 16
[rollout]
problems_per_batch = 4
group_size = 4
max_new_tokens = 24
[train]
steps = 3
updates_per_batch = 2
[eval]
every = 1
problems = 8
[sweep]
seed = [0]
precision = ["fp32", "fp8_rollout"]
loss = [{ id = "pg_is" }, { id = "drpo", delta = 0.15 }]
"""


def cli(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "drpo_bench.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


def statuses(folder: Path) -> dict[str, dict]:
    return {p.parent.name: json.loads(p.read_text()) for p in folder.glob("runs/*/status.json")}


@pytest.mark.slow
def test_a_sweep_end_to_end(tmp_path):
    (tmp_path / "small.toml").write_text(SWEEP)
    done = cli("run", "small.toml", "--workers", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "small"
    assert [s["state"] for s in statuses(folder).values()] == ["finished"] * 4
    for name in ("summary.csv", "curves.csv", "report.md", "figures/learning_curves.png"):
        assert (folder / name).stat().st_size > 0
    assert (tmp_path / "results" / "mlflow.db").exists()

    metrics = {p: p.read_bytes() for p in folder.glob("runs/*/metrics.jsonl")}
    again = cli("run", "small.toml", cwd=tmp_path)
    assert again.returncode == 0
    assert metrics == {p: p.read_bytes() for p in folder.glob("runs/*/metrics.jsonl")}

    status = cli("status", "results/small", "--json", cwd=tmp_path)
    assert {row["state"] for row in json.loads(status.stdout)} == {"finished"}
    other = (tmp_path / "other.toml").write_text(SWEEP)
    assert other
    refused = cli("run", "other.toml", cwd=tmp_path)
    assert refused.returncode == 2
    assert "holds experiment 'small' of small.toml" in refused.stderr


@pytest.mark.slow
def test_a_failed_run_does_not_stop_the_others_and_says_where(tmp_path):
    broken = SWEEP.replace("[sweep]", '[sweep]\n"warmstart.target" = [0.0, 1.0]').replace("target = 0.0\n", "", 1)
    (tmp_path / "small.toml").write_text(broken)
    done = cli("run", "small.toml", "--only", "loss=pg_is,precision=fp32", "--no-tracking", cwd=tmp_path)
    assert done.returncode == 1
    found = statuses(tmp_path / "results" / "small")
    assert sorted(s["state"] for s in found.values()) == ["failed", "finished"]
    (failed,) = (s for s in found.values() if s["state"] == "failed")
    assert failed["step"] == 0
    assert "warmstart.target" in failed["reason"]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_stop_and_resume_gives_the_undisturbed_result(tmp_path):
    text = SWEEP.replace("steps = 3", "steps = 30").replace("every = 1\n", "every = 30\n")
    (tmp_path / "small.toml").write_text(text + "\n[checkpoint]\nevery = 5\n")
    command = [sys.executable, "-m", "drpo_bench.cli", "run", "small.toml", "--no-tracking"]
    only = ["--only", "loss=drpo,precision=fp32"]
    whole = subprocess.run([*command, *only, "--out", "whole"], cwd=tmp_path, capture_output=True, check=False)
    assert whole.returncode == 0, whole.stderr

    process = subprocess.Popen([*command, *only, "--out", "cut"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("cut/small/runs/*/checkpoints/step_*/state.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    (status,) = statuses(tmp_path / "cut" / "small").values()
    assert status["state"] == "pending"
    assert (
        subprocess.run([*command, *only, "--out", "cut"], cwd=tmp_path, capture_output=True, check=False).returncode
        == 0
    )

    def untimed(out):
        (path,) = (tmp_path / out).glob("small/runs/*/metrics.jsonl")
        records = [json.loads(line) for line in path.read_text().splitlines()]
        return [{k: v for k, v in r.items() if k != "time_s" and not k.startswith(("time/", "perf/"))} for r in records]

    assert len(untimed("cut")) == 31
    assert untimed("cut") == untimed("whole")


@pytest.mark.slow
def test_real_gsm8k_rows_go_through_the_whole_loop(tmp_path):
    rows = Path(__file__).parent / "data" / "gsm8k_excerpt.parquet"
    settings = [
        f"task.path='{rows}'", "task.vocab_size=400", "model.name=nano", "warmstart.max_steps=4",
        "warmstart.eval_every=4", "warmstart.eval_problems=4", "warmstart.batch_size=4", "eval.problems=4",
        "rollout.max_new_tokens=48",
    ]  # fmt: skip
    overrides = [part for setting in settings for part in ("--set", setting)]
    done = cli("run", "gsm8k_pipeline", *overrides, "--only", "loss=drpo", "--no-tracking", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (metrics,) = (tmp_path / "results" / "gsm8k_pipeline").glob("runs/*/metrics.jsonl")
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 1, 2]
    assert "eval/gsm8k/accuracy" in records[2]
    sample = json.loads((metrics.parent / "samples.jsonl").read_text().splitlines()[0])
    assert sample["problem"].startswith("Question: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "absent.toml"], "absent.toml: no such experiment file"),
        (["run", "quickstart", "--set", "train.step=3"], "train.step: unknown field; did you mean 'steps'?"),
        (["run", "quickstart", "--set", "model.name=nanoo"], "model.name: 'nanoo' is no size"),
        (
            ["run", "gsm8k_pipeline", "--set", "task.path='absent.parquet'"],
            "task.path: there is no file absent.parquet",
        ),
        (["report", "absent"], "absent"),
        (["status", "absent"], "absent: no runs here"),
        (["reproduce", "absent"], "absent: no such directory"),
        (["sync", "absent"], "absent: no runs folder"),
        (["losses", "show", "drpoo"], "unknown loss 'drpoo'; did you mean 'drpo'?"),
        (
            ["run", "quickstart", "--set", "correction.id=tis_token"],
            "correction.id: the ratio of pg_is is over mu already",
        ),
        (["bench", "--size", "nanoo"], "--size nanoo: unknown; did you mean 'nano'?"),
    ],
)
def test_mistakes_exit_with_2_and_write_nothing(arguments, message, tmp_path):
    done = cli(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "small.toml").write_text(SWEEP)
    precious = tmp_path / "results" / "small" / "thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    done = cli("run", "small.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert "holds files that no experiment wrote" in done.stderr
    assert [p.name for p in precious.parent.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_bench_prints_its_figures_as_json(tmp_path):
    done = cli("bench", "--repeats", "1", "--json", cwd=tmp_path)
    figures = json.loads(done.stdout)
    assert figures["rollout"]["tokens_per_s"] > 0
    assert figures["trainer"]["tokens_per_s"] > 0
    assert 0 < figures["trainer_share_of_matmul"] < 1.2
