"""What two workers are worth: `python tests/scaling_of_workers.py OUT [STEPS]`, on an idle machine with two cores.

Runs the same sweep of eight equal runs (the quickstart's setting, one warm start, eight deltas) with one worker, with
two, and with one of two threads, each in a folder of its own under OUT, and prints JSON a sweep: its seconds, those of
the runs alone, and what the runner (imports, processes, tracking, figures, report) costs a run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from drpo_bench.records import read_json
from drpo_bench.shipped import shipped_experiments

DELTAS = (0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17)
WAYS = {"one": (1, 1), "two": (2, 1), "two_threads": (1, 2)}  # workers, threads


def sweep_file(folder: Path, steps: int) -> Path:
    """The quickstart's file with other axes."""
    text = shipped_experiments()["quickstart"].read_text()
    assert tomllib.loads(text)["train"]["steps"] == 60
    losses = ", ".join(f'{{ id = "drpo", delta = {delta} }}' for delta in DELTAS)
    text = text[: text.index("[sweep]")].replace("steps = 60", f"steps = {steps}")
    path = folder / "quickstart.toml"
    path.write_text(f'{text}[sweep]\nseed = [0]\nprecision = ["fp32"]\nloss = [{losses}]\n')
    return path


def run(file: Path, out: Path, workers: int, threads: int, *options: str) -> float:
    """Seconds of a sweep."""
    command = [sys.executable, "-m", "drpo_bench.cli", "run", str(file), "--out", str(out), "--workers", str(workers)]
    begin = time.monotonic()
    subprocess.run([*command, "--set", f"runtime.threads={threads}", *options], check=True, stdout=sys.stderr)
    return time.monotonic() - begin


def main(folder: Path, steps: int = 40) -> None:
    folder.mkdir(parents=True)
    file, seconds = sweep_file(folder, steps), dict[str, float]()
    for name, (workers, threads) in WAYS.items():
        out = folder / name
        first = ("--only", "loss.delta=0.1", "--set", "train.steps=1", "--no-tracking")
        run(file, out, 1, threads, *first)  # the warm start, which is not what is measured
        shutil.rmtree(out / "quickstart")
        seconds[name] = run(file, out, workers, threads)
        alone = sum(read_json(path)["seconds"] for path in out.glob("quickstart/runs/*/status.json"))
        figures = {"way": name, "workers": workers, "threads": threads, "seconds": seconds[name], "of_runs": alone}
        figures |= {"of_runner_a_run": (seconds[name] - alone / workers) / len(DELTAS)}
        figures |= {"of_one_worker": seconds[name] / seconds["one"]}
        sys.stdout.write(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
