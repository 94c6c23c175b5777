"""What the files of one run say of it, be they half-written, damaged or missing."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drpo_bench.process import is_alive
from drpo_bench.records import RunDir

TAIL_BYTES = 65_536  # read from the end of metrics.jsonl, and more only where no record ends in it
RECENT = 10  # records over which the speed is taken
GONE = "its process is gone; run the experiment again to resume"


@dataclass(frozen=True)
class Row:
    """One run. None is what is not known, or not known yet."""

    experiment: str
    run_id: str
    state: str
    step: int | None = None  # of the warm start while `phase` says so, as are `steps` and `accuracy`
    steps: int | None = None
    accuracy: float | None = None  # of the last evaluation
    reward: float | None = None  # reward/mean of the last record
    seconds_per_step: float | None = None
    eta_s: float | None = None  # of a running run
    seconds: float | None = None
    collapse_step: int | None = None
    reason: str | None = None
    phase: str | None = None
    host: str | None = None  # of a running run's process
    updated_at: float | None = None
    age_s: float | None = None  # seconds since then


def read_row(path: Path) -> Row:
    """The row of a run directory."""
    run_dir = RunDir(path.absolute())
    status, (records, damage) = read_status(run_dir), last_records(run_dir.metrics)
    state, phase, process = str(status["state"]), text(status.get("phase")), status.get("process")
    last = records[-1] if records else {}
    step, steps = whole(status.get("step", last.get("step"))), whole(status.get("steps"))
    accuracy = number(status.get("accuracy"))
    speed = seconds_per_step(records)
    training = state == "running" and phase is None
    remaining = steps - step if training and step is not None and steps is not None else None
    updated_at = number(status.get("updated_at")) or modified(run_dir)
    return Row(
        experiment=run_dir.path.parent.parent.name,
        run_id=run_dir.path.name,
        state=state,
        step=step,
        steps=steps,
        accuracy=last_accuracy(records) if accuracy is None else accuracy,
        reward=number(last.get("reward/mean")),
        seconds_per_step=speed,
        eta_s=None if remaining is None or speed is None else remaining * speed,
        seconds=number(status.get("seconds")),
        collapse_step=whole(status.get("collapse_step")),
        reason=text(status.get("reason")) or damage,
        phase=phase,
        host=text(process.get("host")) if state == "running" and isinstance(process, dict) else None,
        updated_at=updated_at,
        age_s=None if updated_at is None else max(0.0, time.time() - updated_at),
    )


def read_status(run_dir: RunDir) -> dict[str, Any]:
    """status.json with a `state`; a running run whose process is gone has failed."""
    status = stored_status(run_dir)
    if status["state"] == "running" and is_gone(status.get("process")):
        status = stored_status(run_dir)  # again: it may have ended between the two looks
        if status["state"] == "running":
            return status | {"state": "failed", "reason": GONE}
    return status


def stored_status(run_dir: RunDir) -> dict[str, Any]:
    """status.json as it lies there; a run without a readable one is pending, and the reason says why."""
    try:
        status: Any = run_dir.status()
    except OSError as error:
        return {"state": "pending", "reason": f"status.json cannot be read: {error.strerror}"}
    if not isinstance(status, dict) or "state" not in status:
        return {"state": "pending", "reason": "status.json is damaged"}
    if status == {"state": "pending"} and run_dir.metrics.exists():
        return status | {"reason": "status.json is missing"}
    return status


def is_gone(process: Any) -> bool:
    """Whether the process that a status names has ended, as far as this machine can tell."""
    if not isinstance(process, dict) or not isinstance(process.get("pid"), int):
        return False
    if number(process.get("started")) is None or "host" not in process:
        return False
    return is_alive(process) is False


def last_records(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The last few records, read from the file's end, and what is wrong with them; a torn last line is left out."""
    lines: list[bytes] = []
    try:
        with path.open("rb") as file:
            size, length = os.fstat(file.fileno()).st_size, TAIL_BYTES
            while True:
                start = max(0, size - length)
                file.seek(start)
                lines = file.read(size - start).split(b"\n")[1 if start else 0 : -1]
                if lines or start == 0:
                    break
                length *= 8
    except FileNotFoundError:
        return [], None
    except OSError as error:
        return [], f"metrics.jsonl cannot be read: {error.strerror}"
    records, damage = [], None
    for line in lines[-RECENT - 1 :]:
        record = parsed(line)
        if record is None:
            damage = "metrics.jsonl has a damaged line"
        else:
            records.append(record)
    return records, damage


def parsed(line: bytes) -> dict[str, Any] | None:
    """A record, or None."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def seconds_per_step(records: Sequence[dict[str, Any]]) -> float | None:
    """From the clock of the first and the last of the records."""
    known = [(s, t) for r in records if (s := whole(r.get("step"))) is not None and (t := number(r.get("time_s")))]
    if len(known) < 2 or known[-1][0] <= known[0][0]:
        return None
    (first, begin), (last, end) = known[0], known[-1]
    return max(0.0, end - begin) / (last - first)


def last_accuracy(records: Sequence[dict[str, Any]]) -> float | None:
    """`eval/<task>/accuracy` of the last record that has one."""
    for record in reversed(records):
        for name, value in record.items():
            if name.startswith("eval/") and name.endswith("/accuracy"):
                return number(value)
    return None


def modified(run_dir: RunDir) -> float | None:
    """When anything was last written there, by the files' own times; None where they are gone."""
    try:
        return max(path.stat().st_mtime for path in (run_dir.path, *run_dir.path.iterdir()))
    except OSError:
        return None


def number(value: Any) -> float | None:
    """A finite number, or None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def whole(value: Any) -> int | None:
    """A whole number, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def text(value: Any) -> str | None:
    """Words on one line, or None."""
    return " ".join(value.split()) or None if isinstance(value, str) else None
