"""What two workers are worth: the same eight runs with one worker, with two, and with one of two threads."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

from drpo_bench.bench.startup import run_cli
from drpo_bench.records import read_json
from drpo_bench.shipped import shipped_experiments

DELTAS = (0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17)
WAYS = {"1 worker": (1, 1), "2 workers": (2, 1), "1 worker, 2 threads": (1, 2)}  # workers, threads
STEPS = 40


def sweep_file(folder: Path) -> Path:
    """The quickstart's file with other axes: one warm start, eight deltas."""
    text = shipped_experiments()["quickstart"].read_text()
    assert tomllib.loads(text)["train"]["steps"] == 60
    losses = ", ".join(f'{{ id = "drpo", delta = {delta} }}' for delta in DELTAS)
    text = text[: text.index("[sweep]")].replace("steps = 60", f"steps = {STEPS}")
    path = folder / "quickstart.toml"
    path.write_text(f'{text}[sweep]\nseed = [0]\nprecision = ["fp32"]\nloss = [{losses}]\n')
    return path


def measure(folder: Path) -> dict[str, dict[str, Any]]:
    """Seconds of the sweep in each way, figures and report included; runs an hour as a multiple of one worker's."""
    file, found = sweep_file(folder), dict[str, dict[str, Any]]()
    for number, (way, (workers, threads)) in enumerate(WAYS.items()):
        out = folder / str(number)
        options = "--workers", str(workers), "--set", f"runtime.threads={threads}"
        first = "--only", "loss.delta=0.1", "--set", "train.steps=1", "--no-tracking"
        run_cli(str(file), out, *options, *first)  # the warm start, which is not what is measured
        shutil.rmtree(out / "quickstart")
        seconds = run_cli(str(file), out, *options)
        of_runs = sum(read_json(path)["seconds"] for path in out.glob("quickstart/runs/*/status.json"))
        found[way] = {
            "seconds": seconds,
            "of_runner_a_run": (seconds - of_runs / workers) / len(DELTAS),
            "runs_per_hour": 3600 * len(DELTAS) / seconds,
            "of_one_worker": found["1 worker"]["seconds"] / seconds if found else 1.0,
        }
    return found
