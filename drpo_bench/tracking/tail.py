"""Reads a growing metrics.jsonl from where it stopped, also when a resumed run cut the file back in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drpo_bench.records import parse_record


class Tail:
    """The place in one file, remembered by the bytes of the last line that was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position, self.last_line = 0, b""

    def read(self) -> list[dict[str, Any]]:
        """The whole lines since the last call; all of them again where the file is not what was read of it.

        Raises DamagedFile.
        """
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.position - len(self.last_line))
            text = file.read()
            if text.startswith(self.last_line):
                text = text[len(self.last_line) :]
            else:
                self.position, self.last_line = 0, b""
                file.seek(0)
                text = file.read()
        lines = [line for line in text.splitlines(keepends=True) if line.endswith(b"\n")]
        records = [parse_record(line, f"{self.path}: a line") for line in lines]
        if lines:
            self.position += sum(len(line) for line in lines)
            self.last_line = lines[-1]
        return records
