"""CPU seconds that tracking takes a step, of a real sweep: `python tests/cost_of_tracking.py OUT [run's options]`.

Runs `drpo-bench run quickstart --out OUT` and prints JSON: CPU seconds of the tracking processes (at the sweep's start
and end, and meanwhile), their memory, and the seconds of a step as the runs' records tell them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil

from drpo_bench.records import read_records
from drpo_bench.tracking.tracker import NICENESS


def main(out: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "drpo_bench.cli", "run", "quickstart", "--out", str(out), *options]
    runner = psutil.Popen(command, stdout=sys.stderr)
    start: dict[int, float] = {}  # CPU seconds of each tracking process before it made way for the runs
    end: dict[int, float] = {}
    memory = 0
    while runner.poll() is None:
        for process in runner.children(recursive=True):
            try:
                if "spawn_main" in " ".join(process.cmdline()):
                    seconds = sum(process.cpu_times()[:2])
                    if process.nice() != NICENESS:
                        start[process.pid] = seconds
                    end[process.pid] = seconds
                    memory = max(memory, process.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs([runner], timeout=0.1)
    runs = [list(read_records(path)) for path in out.glob("quickstart/runs/*/metrics.jsonl")]
    steps = sum(records[-1]["step"] for records in runs)
    step = sum(records[-1]["time_s"] for records in runs) / steps
    meanwhile = sum(end.values()) - sum(start.values())
    figures = {"start_and_end_cpu_s": sum(start.values()), "meanwhile_cpu_s": meanwhile, "steps": steps}
    figures |= {"step_s": step, "share_of_a_step": meanwhile / steps / step, "memory_mib": memory / 2**20}
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
