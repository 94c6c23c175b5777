"""The run directory: atomic json, append-only jsonl, status. The files are the only truth."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from drpo_bench.errors import UserError
from drpo_bench.process import this_process

State = Literal["pending", "running", "finished", "collapsed", "failed"]
DONE: tuple[State, ...] = ("finished", "collapsed")
EXPERIMENT_FILE = "experiment.json"  # of an experiment's folder: whose it is, which version wrote it, what is planned


def write_json(path: Path, data: Any) -> None:
    """Replace `path` atomically: a reader sees the old file or the new one, never a part."""
    write_text(path, json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write, fsync, rename; a disk that fills on the way leaves the old file and nothing else."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def remove_leftovers(directory: Path) -> None:
    """Drop the temporary files of processes that were killed while they wrote here; those of living ones stay."""
    import psutil

    for path in directory.glob(".*"):
        writer = re.fullmatch(r"\..+\.(\d+)", path.name)
        if writer and not psutil.pid_exists(int(writer[1])):
            path.unlink(missing_ok=True)


class DamagedFile(UserError):
    """A file that drpo-bench wrote was cut short or changed since."""


def read_json(path: Path) -> Any:
    """The data of a json file. Raises DamagedFile."""
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise DamagedFile(f"{path}: damaged: not JSON") from None


def plain(value: float) -> float | str:
    """A metric as strict JSON can hold it: non-finite numbers become "nan", "inf" or "-inf"."""
    return value if math.isfinite(value) else str(value)


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append one line, flushed to the operating system, so that a killed process loses none."""
    with path.open("a") as file:
        file.write(record_line(record))


def sync_file(path: Path) -> None:
    """Force what was written to the disk; a directory's entries likewise."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a jsonl file; a last line cut short by a crash is left out. Raises DamagedFile for another."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if line.endswith(b"\n"):
            yield parse_record(line, f"{path}: line {number}")


def parse_record(line: bytes, where: str) -> dict[str, Any]:
    """The record in a line of a jsonl file. Raises DamagedFile, which tells where the line stands."""
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:
        raise DamagedFile(f"{where} is damaged") from None
    for key in record.keys() - {"step"}:
        if record[key] in ("nan", "inf", "-inf"):
            record[key] = float(record[key])
    return record


def extent(path: Path) -> dict[str, Any]:
    """How long a file of records is and the sha256 of its bytes; of an absent file, those of an empty one."""
    data = path.read_bytes() if path.exists() else b""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def begins_with(path: Path, known: dict[str, Any]) -> bool:
    """Whether a file still begins with what `extent` saw of it."""
    data = path.read_bytes()[: known["bytes"]] if path.exists() else b""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} == known


def cut_back(path: Path, size: int) -> None:
    """Drop what a killed run wrote after its checkpoint, so that resuming writes it once."""
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)
        sync_file(path)


def record_line(record: dict[str, Any]) -> str:
    """A record as a line of strict JSON."""
    strict = {key: plain(value) if isinstance(value, float) else value for key, value in record.items()}
    return json.dumps(strict, allow_nan=False) + "\n"


@dataclass(frozen=True)
class RunDir:
    """Paths and small files of one run, `<out>/<experiment>/runs/<run_id>/`."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def env(self) -> Path:
        return self.path / "env.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def records(self) -> tuple[Path, Path]:
        """What a run appends to, and a checkpoint cuts back to."""
        return self.metrics, self.samples

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    def status(self) -> dict[str, Any]:
        """The run's status; `pending` before it started."""
        path = self.path / "status.json"
        try:
            return read_json(path) if path.exists() else {"state": "pending"}
        except DamagedFile as damage:
            return {"state": "pending", "reason": str(damage)}

    def set_stopped(self) -> None:
        """Pending, because whoever ran it was stopped; how far it came is still told."""
        status = self.status()
        told = () if "phase" in status else ("step", "steps", "accuracy", "seconds")  # of a warm start, nothing
        self.set_status("pending", reason="stopped", **{key: status[key] for key in told if key in status})

    def set_status(self, state: State, **fields: Any) -> None:
        """Replace the status; fields that are not given again are gone, but for the runner's count of attempts.

        A running run's names its process.
        """
        process = {"process": this_process()} if state == "running" else {}
        kept = {key: value for key, value in self.status().items() if key == "attempt"}
        write_json(self.path / "status.json", {"state": state, "updated_at": time.time()} | kept | process | fields)
