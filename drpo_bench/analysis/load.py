"""An experiment's folder as two tables: run directories merged into the committed, cumulative csv files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from drpo_bench.analysis.csv_rows import CURVE_KEY, CURVES, SUMMARY, csv_text, merge_rows, read_rows, row_key
from drpo_bench.analysis.runs import CURVE_COLUMNS, KEY, SUMMARY_COLUMNS, Row, RunRows, read_run
from drpo_bench.errors import UserError
from drpo_bench.records import DONE, EXPERIMENT_FILE, RunDir, read_json, write_text
from drpo_bench.same_run import check_schema

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
    check_schema(directory)
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
    owner = read_json(directory / EXPERIMENT_FILE) if (directory / EXPERIMENT_FILE).exists() else {}
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
