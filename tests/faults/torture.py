"""Torture: a small sweep is killed again and again at random moments, and must end as if nothing had happened.

    python -m tests.faults.torture --kills 50 --seed 0 --folder DIR

A round is the sweep in a fresh folder, started with the real command line until it exits with 0. Meanwhile it is hit
by SIGKILL: the runner alone, one worker, the forkserver, or every process at once as a power cut does. Rounds go on
until there were enough kills; each ends with a comparison against the same sweep undisturbed, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from drpo_bench.records import DONE, RunDir
from tests.faults.tools import check_tracked, command, differences, end_state, ended, environment, write_sweep

AXES = """
precision = ["fp32", "bf16"]
loss = [{ id = "drpo", delta = 0.15 }]
include = [
    { precision = "fp16", loss = { id = "pg_is" } },
    { precision = "fp8_rollout", loss = { id = "pg_is" } },
]
"""
STEPS = 40
KINDS = ("runner", "worker", "forkserver", "everything")
# When: once the files say that the sweep is at that, and up to so many seconds later, one after the other; how often.
MOMENTS: dict[str, tuple[int, list[tuple[str, float]]]] = {
    "at any time": (3, [("", 9.0)]),
    "warm start": (2, [("warm start", 0.6)]),
    "training": (3, [("training", 3.0)]),
    "checkpoint": (3, [("training", 3.0), ("checkpoint", 0.03)]),
    "report": (1, [("report", 2.5)]),
}
STARTS = 12  # of a round after its last kill; more would mean that the sweep does not come to an end
ORPHANS_END = 30.0  # seconds in which the processes of a killed runner must have ended by themselves
LOOK = 0.002  # seconds between two looks at the files


@dataclass
class Tally:
    """What was done and what came of it."""

    kills: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)  # what the sweep was doing when it was hit
    rounds: int = 0
    starts: int = 0
    resumed: int = 0  # runs that a start found unfinished with a checkpoint
    compared: int = 0  # runs, at the ends of rounds
    mismatches: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)  # exits, messages and processes that should not be
    seconds: float = 0.0


class Torture:
    """One sweep, its undisturbed end state, and a random number generator."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random, self.tally = folder, random.Random(seed), Tally()
        folder.mkdir(parents=True, exist_ok=True)
        write_sweep(folder, AXES, STEPS)
        if self.launch("undisturbed", tracked=True).wait() != 0:
            raise RuntimeError((folder / "undisturbed.log").read_text())
        self.reference = end_state(folder / "undisturbed" / "small")

    def launch(self, out: str, tracked: bool) -> subprocess.Popen[bytes]:
        """Start the sweep into a results folder, in a process group of its own; what it says is appended to a log."""
        tracking = [] if tracked else ["--no-tracking"]
        with (self.folder / f"{out}.log").open("ab") as log:
            return subprocess.Popen(
                command("run", "small.toml", "--out", out, "--workers", "2", *tracking),
                cwd=self.folder,
                env=environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def go(self, kills: int) -> Tally:
        """Rounds until there were so many kills, the last one to its end."""
        begin = time.monotonic()
        while self.tally.kills.total() < kills:
            self.tally.rounds += 1
            self.round(f"round_{self.tally.rounds}", kills, tracked=self.tally.rounds % 2 == 1)
        self.tally.seconds = round(time.monotonic() - begin, 1)
        return self.tally

    def round(self, out: str, kills: int, tracked: bool) -> None:
        """One sweep from nothing to its end, and the comparison."""
        results, code, left = self.folder / out, None, STARTS
        while code != 0 and left:
            self.tally.starts += 1
            self.tally.resumed += len(resumable(results))
            process = self.launch(out, tracked)
            while process.poll() is None and self.tally.kills.total() < kills:
                self.strike(psutil.Process(process.pid), results)
            code = process.wait()
            left -= self.tally.kills.total() >= kills
            if code not in (0, 1, -9):
                self.tally.complaints.append(f"{out}: exit code {code}")
        said = (self.folder / f"{out}.log").read_text()
        if code != 0:
            self.tally.complaints.append(f"{out}: not finished after {STARTS} undisturbed starts")
        if "Traceback" in said:
            self.tally.complaints.append(f"{out}: a traceback")
        self.tally.compared += len(list(results.glob("small/runs/*")))
        problems = differences(self.reference, results / "small")
        if tracked:
            problems += check_tracked(results / "mlflow.db", results / "small")
        self.tally.mismatches += [f"{out}: {problem}" for problem in problems]

    def strike(self, runner: psutil.Process, results: Path) -> None:
        """One kill of a random kind at a random moment; none where the sweep ends before."""
        weights = [weight for weight, _ in MOMENTS.values()]
        kind, (moment,) = self.random.choice(KINDS), self.random.choices(list(MOMENTS), weights)
        if moment == "warm start" and warm(results):
            moment = "training"
        for state, longest in MOMENTS[moment][1]:
            delay = self.random.uniform(0, longest)
            while state and doing(results) != state:
                if ended(runner):
                    return
                time.sleep(LOOK)
            time.sleep(delay)
        while not (victims := self.victims(kind, runner, results)):
            if ended(runner):
                return
            time.sleep(LOOK)
        family = [runner, *runner.children(recursive=True)]
        seen = doing(results)
        for victim in victims:
            try:
                victim.kill()
            except psutil.NoSuchProcess:  # it ended by itself in this very moment
                return
        self.tally.kills[kind] += 1
        self.tally.moments[seen] += 1
        sys.stderr.write(f"{results.name}: kill {self.tally.kills.total()}, {kind}, {seen}\n")
        if kind in ("runner", "everything"):
            self.bury(family, results.name)

    def bury(self, family: list[psutil.Process], name: str) -> None:
        """The processes of a runner that was killed end, by themselves or because they were hit as well."""
        until = time.monotonic() + ORPHANS_END
        while alive := [process for process in family if not ended(process)]:
            if time.monotonic() > until:
                self.tally.complaints += [f"{name}: outlived its runner by {ORPHANS_END:.0f} s: {p}" for p in alive]
                for process in alive:
                    process.kill()
                return
            time.sleep(LOOK)

    def victims(self, kind: str, runner: psutil.Process, results: Path) -> list[psutil.Process]:
        """The processes that a kill of this kind hits now, the parents first; none if there is none of them yet."""
        try:
            family = [runner, *runner.children(recursive=True)]
            if kind == "runner":
                return [runner]
            if kind == "everything":
                return family
            workers = [process for process in family[1:] if process.pid in worker_ids(results)]
            if kind == "worker":
                return [self.random.choice(workers)] if workers else []
            return list({worker.parent() for worker in workers if worker.parent() != runner} - {None})
        except psutil.NoSuchProcess:
            return []


def statuses(results: Path) -> dict[str, dict[str, Any]]:
    """Run id -> status, of the runs that have begun."""
    return {path.parent.name: RunDir(path.parent).status() for path in results.glob("small/runs/*/status.json")}


def worker_ids(results: Path) -> set[int]:
    """The process ids that the runs under way name as theirs."""
    return {status["process"]["pid"] for status in statuses(results).values() if "process" in status}


def resumable(results: Path) -> list[str]:
    """The unfinished runs that have a checkpoint."""
    found = statuses(results)
    return [
        name
        for name, status in found.items()
        if status["state"] not in DONE and list(results.glob(f"small/runs/{name}/checkpoints/step_*"))
    ]


def doing(results: Path) -> str:
    """What the sweep is at, as its files say."""
    found = list(statuses(results).values())
    running = [status for status in found if status["state"] == "running"]
    if list(results.glob("small/runs/*/checkpoints/unfinished_*")):
        return "checkpoint"
    if any(status.get("phase") == "warm start" for status in running) or list(results.glob("warmstarts/*.unfinished")):
        return "warm start"
    if any("phase" not in status for status in running):
        return "training"
    if len(found) == 4 and all(status["state"] in DONE for status in found):
        return "report"
    return "start"


def warm(results: Path) -> bool:
    """Whether the warm start is trained, so that the sweep will not be at it again."""
    return bool(list(results.glob("warmstarts/*/warmstart.json")))


def main() -> int:
    """The tally as text and as tally.json; 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="A new folder; it is left for you to look at.")
    arguments = parser.parse_args()
    tally = Torture(arguments.folder.resolve(), arguments.seed).go(arguments.kills)
    text = json.dumps({"seed": arguments.seed} | vars(tally), indent=1)
    (arguments.folder / "tally.json").write_text(text + "\n")
    sys.stdout.write(f"{text}\n{arguments.folder}\n")
    return 1 if tally.mismatches or tally.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
