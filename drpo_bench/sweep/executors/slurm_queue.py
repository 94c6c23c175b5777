"""What Slurm says of jobs: asked of its queue, which every Slurm has, not of its accounting, which not every has."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Collection

ASK_SECONDS = 10.0  # between two questions, for all jobs at once
GONE_SECONDS = 15.0  # that a job is out of the queue before it counts as lost: its files may be on their way


class SlurmQueue:
    """Which jobs are in no queue any more."""

    def __init__(self) -> None:
        self.asked = float("-inf")
        self.out: dict[str, float] = {}  # job -> since when it is known to be out

    def lost(self, jobs: Collection[str]) -> set[str]:
        """The jobs that have been out of the queue for a while; as it was when Slurm last answered."""
        now = time.monotonic()
        if now - self.asked >= ASK_SECONDS:
            self.asked = now
            waiting = queued()
            if waiting is not None:
                self.out = {job: self.out.get(job, now) for job in jobs if job not in waiting}
        return {job for job, since in self.out.items() if job in jobs and now - since >= GONE_SECONDS}


def queued() -> set[str] | None:
    """This user's jobs that wait or run, an element of an array as `7_1`; None where Slurm does not answer."""
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return set(done.stdout.split()) if done.returncode == 0 else None


def state_of(job: str) -> str:
    """How a job ended, in Slurm's word, which it remembers for some minutes."""
    command = ["scontrol", "--oneliner", "show", "job", job]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"\bJobState=(\w+)", done.stdout)
    return found[1] if found else "UNKNOWN"


def cancel(jobs: Collection[str]) -> None:
    """Take jobs back; whole arrays at once."""
    if arrays := sorted({job.split("_")[0] for job in jobs}):
        subprocess.run(["scancel", *arrays], check=False)
