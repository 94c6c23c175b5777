"""An experiment's folder as two tables: run directories merged into the committed, cumulative csv files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from drpo_bench.analysis.runs import CURVE_COLUMNS, KEY, SUMMARY_COLUMNS, Row, RunRows, read_run
from drpo_bench.errors import UserError
from drpo_bench.records import DONE, RunDir, read_json, write_text

Key = tuple[str, ...]

SUMMARY, CURVES, OWNER = "summary.csv", "curves.csv", "experiment.json"
CURVE_KEY = (*KEY, "step")
DTYPES: dict[type, Any] = {str: "str", int: "Int64", float: "float64"}


@dataclass(frozen=True)
class Results:
    """Everything known of an experiment: one row a run, one row a run and evaluation."""

    directory: Path
    summary: pd.DataFrame
    curves: pd.DataFrame
    problems: tuple[str, ...]  # what could not be read, in words
    question: str = ""
    file: str = ""  # the experiment file's name


def read_results(directory: Path) -> Results:
    """Merge the run directories with summary.csv and curves.csv, in memory. Raises UserError if there are none."""
    return _merge(directory)[0]


def update_results(directory: Path) -> Results:
    """The same, and write both files. Rows whose run directory is absent are kept, for ever."""
    results, summary, curves = _merge(directory)
    write_text(directory / SUMMARY, summary)
    write_text(directory / CURVES, curves)
    return results


def _merge(directory: Path) -> tuple[Results, str, str]:
    """The results, and the texts of the two csv files."""
    problems: list[str] = []
    runs = list(_read_runs(directory, problems))
    old = read_rows(directory / SUMMARY, KEY)
    with_result = {row_key(row, KEY) for row in old if row.get("state") in DONE}
    fresh = []
    for run in runs:
        key = row_key(run.summary, KEY)
        if run.summary["state"] not in DONE and key in with_result:
            problems.append(f"{key[0]} is being repeated ({run.summary['state']}); its earlier result stands")
        else:
            fresh.append(run)
    replaced = {row_key(run.summary, KEY) for run in fresh}
    summary = merge_rows(old, [run.summary for run in fresh], replaced, KEY)
    old_curves = read_rows(directory / CURVES, CURVE_KEY)
    curves = merge_rows(old_curves, [row for run in fresh for row in run.curves], replaced, CURVE_KEY)
    if not summary:
        raise UserError(problems[0] if problems else f"{directory}: no results here: neither runs/ nor {SUMMARY}")
    owner = read_json(directory / OWNER) if (directory / OWNER).exists() else {}
    results = Results(
        directory,
        typed(summary, SUMMARY_COLUMNS, directory / SUMMARY),
        typed(curves, CURVE_COLUMNS, directory / CURVES),
        tuple(problems),
        str(owner.get("question", "")),
        str(owner.get("file", "")),
    )
    return results, csv_text(summary, SUMMARY_COLUMNS), csv_text(curves, CURVE_COLUMNS)


def _read_runs(directory: Path, problems: list[str]) -> Iterable[RunRows]:
    """Every readable run directory; what cannot be read is told, not skipped in silence."""
    for path in sorted((directory / "runs").glob("*/")):
        run_dir = RunDir(path)
        if not run_dir.config.exists():
            status = run_dir.status()
            reason = f": {status['reason']}" if "reason" in status else ""
            problems.append(f"{path.name} has no config.json ({status['state']}{reason}) and is in no table")
            continue
        try:
            yield read_run(run_dir)
        except (ValueError, KeyError) as error:
            line = " ".join(str(error).split())
            problems.append(f"{path} cannot be read and is in no table: {type(error).__name__}: {line[:200]}")


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


def typed(rows: Sequence[Row], columns: Mapping[str, type], source: Path) -> pd.DataFrame:
    """Numbers where the columns are numbers; an empty cell is a missing value."""
    table = {}
    for column, kind in columns.items():
        cells = [row.get(column, "") for row in rows]
        try:
            numbers = cells if kind is str else [float(cell) if cell else math.nan for cell in cells]
        except ValueError as error:
            raise UserError(f"{source}: column {column}: {error}") from None
        table[column] = pd.Series(numbers, dtype=DTYPES[kind])
    return pd.DataFrame(table)
