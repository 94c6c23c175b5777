"""What Slurm says of jobs: asked of its queue, which every Slurm has, not of its accounting, which not every has."""

from __future__ import annotations

import getpass
import os
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


def queued(name: str | None = None) -> set[str] | None:
    """This user's jobs (of a name) that wait or run, an element of an array as `7_1`; None where Slurm is silent."""
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i", *([f"--name={name}"] if name else [])]
    # A user's own filters would hide jobs.
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=plain)
    return set(done.stdout.split()) if done.returncode == 0 else None


def state_of(job: str) -> str:
    """How a job ended, in Slurm's word, which it remembers for some minutes."""
    command = ["scontrol", "--oneliner", "show", "job", job]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"\bJobState=(\w+)", done.stdout)
    return found[1] if found else "UNKNOWN"


def cancel(name: str) -> None:
    """Take back this user's jobs of a name."""
    subprocess.run(["scancel", f"--user={getpass.getuser()}", f"--name={name}"], check=False)
