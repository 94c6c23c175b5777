"""The committed csv files as rows of text: read with their mistakes named, merged, written; no pandas."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drpo_bench.analysis.runs import KEY, Row
from drpo_bench.errors import UserError

Key = tuple[str, ...]

SUMMARY, CURVES = "summary.csv", "curves.csv"
CURVE_KEY = (*KEY, "step")


def merge_rows(old: Iterable[Row], new: Iterable[Row], replaced: set[Key], key: Sequence[str]) -> list[Row]:
    """The rows of both as text, sorted by `key`; those of `old` whose run is `replaced` are gone."""
    merged = {row_key(row, key): row for row in old if row_key(row, KEY) not in replaced}
    merged |= {row_key(row, key): {name: as_text(value) for name, value in row.items()} for row in new}
    return [merged[place] for place in sorted(merged, key=lambda place: (place[0], *map(int, place[1:])))]


def row_key(row: Row, key: Sequence[str]) -> Key:
    """What identifies a row, as text."""
    return tuple(as_text(row[column]) for column in key)


def as_text(value: Any) -> str:
    """A csv cell: six significant digits, nothing for what was not measured."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def csv_text(rows: Sequence[Row], columns: Mapping[str, type]) -> str:
    """The csv file's text. Columns that a later version wrote stand behind ours."""
    others = dict.fromkeys(name for row in rows for name in row if name not in columns)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*columns, *others], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def read_rows(path: Path, key: Sequence[str]) -> list[Row]:
    """A csv as text, so that the rows we keep stay as they are to the byte; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        try:
            header, rows = list(reader.fieldnames or ()), list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a csv file: {error}") from None
    if not path.read_bytes().endswith(b"\n"):
        raise UserError(f"{path}: cut short: its last line has no end")
    missing = [column for column in key if column not in header]
    if missing:
        raise UserError(f"{path}: column {missing[0]} is missing")
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(f"{path}: line {line}: not as many cells as columns")
        for column in key[1:]:
            if not row[column].isdecimal():
                raise UserError(f"{path}: line {line}: {column} is {row[column]!r}, not a number")
    return list(rows)
