"""An experiment's folder as two tables: run directories merged into the committed, cumulative csv files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from drpo_bench.analysis.runs import CURVE_COLUMNS, KEY, SUMMARY_COLUMNS, Row, RunRows, read_run
from drpo_bench.errors import UserError
from drpo_bench.records import DONE, RunDir, read_json, write_text

SUMMARY, CURVES, OWNER = "summary.csv", "curves.csv", "experiment.json"


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
    write_text(directory / SUMMARY, csv_text(summary))
    write_text(directory / CURVES, csv_text(curves))
    return results


def _merge(directory: Path) -> tuple[Results, pd.DataFrame, pd.DataFrame]:
    problems: list[str] = []
    runs = list(_read_runs(directory, problems))
    old = read_text_table(directory / SUMMARY, SUMMARY_COLUMNS, KEY)
    with_result = set(_keys(old[old["state"].isin(DONE)]))
    fresh = []
    for run in runs:
        key = tuple(as_text(run.summary[column]) for column in KEY)
        if run.summary["state"] not in DONE and key in with_result:
            problems.append(f"{key[0]} is being repeated ({run.summary['state']}); its earlier result stands")
        else:
            fresh.append(run)
    summary = merge_rows(old, [run.summary for run in fresh], SUMMARY_COLUMNS, KEY)
    old_curves = read_text_table(directory / CURVES, CURVE_COLUMNS, (*KEY, "step"))
    replaced = [tuple(as_text(run.summary[column]) for column in KEY) for run in fresh]
    rows = [row for run in fresh for row in run.curves]
    curves = merge_rows(old_curves, rows, CURVE_COLUMNS, (*KEY, "step"), replaced)
    if summary.empty:
        raise UserError(problems[0] if problems else f"{directory}: no results here: neither runs/ nor {SUMMARY}")
    owner = read_json(directory / OWNER) if (directory / OWNER).exists() else {}
    typed_summary = typed(summary, SUMMARY_COLUMNS, directory / SUMMARY)
    typed_curves = typed(curves, CURVE_COLUMNS, directory / CURVES)
    question, file = str(owner.get("question", "")), str(owner.get("file", ""))
    return Results(directory, typed_summary, typed_curves, tuple(problems), question, file), summary, curves


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


def merge_rows(
    old: pd.DataFrame,
    rows: Sequence[Row],
    columns: Mapping[str, type],
    key: Sequence[str],
    replaced: Sequence[tuple[str, ...]] = (),
) -> pd.DataFrame:
    """Text rows: `rows` over those of `old` with the same run (or named in `replaced`), sorted by key."""
    new = pd.DataFrame([{c: as_text(row.get(c)) for c in columns} for row in rows], columns=list(columns), dtype=str)
    gone = set(_keys(new)) | set(replaced)
    kept = old[[run not in gone for run in _keys(old)]]
    merged = pd.concat([kept, new], ignore_index=True).fillna("").drop_duplicates(list(key), keep="last")
    numbers = {column: pd.to_numeric(merged[column]) if columns[column] is int else merged[column] for column in key}
    order = pd.DataFrame(numbers).sort_values(list(key), kind="stable").index
    return merged.loc[order].reset_index(drop=True)


def _keys(table: pd.DataFrame) -> list[tuple[str, ...]]:
    return list(zip(*(table[column] for column in KEY), strict=True))


def as_text(value: Any) -> str:
    """A csv cell: six significant digits, nothing for what was not measured."""
    if value is None:
        return ""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def csv_text(table: pd.DataFrame) -> str:
    """The csv file's text, the same on every machine."""
    text: str = table.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    return text


def read_text_table(path: Path, columns: Mapping[str, type], key: Sequence[str]) -> pd.DataFrame:
    """A csv as text, so that the rows we keep stay as they are to the byte; empty if there is no file."""
    if not path.exists():
        return pd.DataFrame(columns=list(columns), dtype=str)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a csv file: {error}") from None
    for column in key:
        if column not in table:
            raise UserError(f"{path}: column {column} is missing")
        wrong = table.loc[~table[column].str.fullmatch(r"\d+" if columns[column] is int else ".+"), column]
        if len(wrong):
            raise UserError(f"{path}: line {wrong.index[0] + 2}: {column} is {wrong.iloc[0]!r}")
    return table.reindex(columns=[*columns, *(c for c in table.columns if c not in columns)], fill_value="")


def typed(table: pd.DataFrame, columns: Mapping[str, type], source: Path) -> pd.DataFrame:
    """Numbers where the columns are numbers; an empty cell is a missing value."""
    result = {}
    for column, kind in columns.items():
        if kind is str:
            result[column] = table[column]
            continue
        try:
            numbers = pd.Series([float(text) if text else math.nan for text in table[column]], table.index)
            result[column] = numbers.astype("Int64" if kind is int else "float64")
        except (ValueError, TypeError) as error:
            raise UserError(f"{source}: column {column}: {error}") from None
    return pd.DataFrame(result)
