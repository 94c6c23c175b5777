"""How long a run takes to its first training step, its warm start cached, and what of that are imports."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from drpo_bench.bench.timing import timed

RUN = ("--only", "loss=drpo", "--only", "seed=0", "--workers", "1", "--set", "train.steps=1")
IMPORTS = {
    "import torch": "import torch",
    "import transformers' Qwen3": "import transformers.models.qwen3.modeling_qwen3",
    "what the forkserver imports": "import drpo_bench.sweep.preload",
}


def run_cli(experiment: str, out: Path, *options: str, poll: Callable[[], object] = lambda: None) -> float:
    """Seconds of a `drpo-bench run`; `poll` is asked all the while."""
    command = [sys.executable, "-m", "drpo_bench.cli", "run", experiment, "--out", str(out), *options]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            poll()
            time.sleep(0.005)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - begin


def first_step(out: Path, name: str) -> float:
    """Seconds of a run of the quickstart to the record of its first evaluation, after which it trains."""
    begin, seen = time.perf_counter(), list[float]()

    def poll() -> None:
        if not seen and any(path.stat().st_size for path in (out / name).glob("runs/*/metrics.jsonl")):
            seen.append(time.perf_counter() - begin)

    run_cli("quickstart", out, *RUN, "--set", f"experiment.name={name}", poll=poll)
    return seen[0]


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """Medians of the start-up and of its imports, each in a process of its own."""
    run_cli("quickstart", folder, *RUN, "--set", "experiment.name=first")  # the warm start, and files into memory
    steps = [first_step(folder, f"startup{i}") for i in range(repeats)]
    parts = {}
    for what, code in IMPORTS.items():
        work = partial(subprocess.check_call, [sys.executable, "-c", code])
        parts[what] = statistics.median(timed(work)[0] for _ in range(repeats))
    return {"seconds": statistics.median(steps), "range": [min(steps), max(steps)], "imports": parts}
