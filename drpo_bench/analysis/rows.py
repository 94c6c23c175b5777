"""The table of results as text, for report.md and for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

HEADERS = [
    "setting",
    "loss",
    "n",
    "seeds",
    "step 0",
    "final [95%]",
    "IQM",
    "worst",
    "gain [95%]",
    "collapsed [95%]",
    "unfinished",
    "mismatch k3",
    "emulated",
]


def result_rows(final: pd.DataFrame) -> list[dict[str, str]]:
    """The rows of `tables.final_table` under HEADERS."""
    return [dict(zip(HEADERS, _cells(row), strict=True)) for row in final.to_dict("records")]


def brief_rows(final: pd.DataFrame) -> list[dict[str, str]]:
    """What fits into a terminal of 80 columns."""
    return [
        {
            "setting": row["setting_label"],
            "loss": row["loss_label"],
            "experiment": "",
            "n": str(row["n"]),
            "final [95%]": with_interval(row, "final"),
            "worst": number(row["final_worst"]) if final["n"].max() > 1 else "",
            "gain": number(row["gain"], "+"),
            "remarks": remarks(row),
        }
        for row in final.to_dict("records")
    ]


def remarks(row: Mapping[Any, Any]) -> str:
    """`1/3 collapsed at 25*; 1 failed`."""
    collapsed = f"{row['collapsed']}/{row['n']} collapsed at {row['collapse_steps']}" if row["collapsed"] else ""
    return "; ".join(text for text in (collapsed, row["unfinished"]) if text)


def _cells(row: Mapping[Any, Any]) -> list[str]:
    return [
        row["setting_label"],
        row["loss_label"],
        str(row["n"]),
        row["seeds"],
        number(row["initial"]),
        with_interval(row, "final"),
        number(row["final_iqm"]),
        number(row["final_worst"]),
        with_interval(row, "gain", "+"),
        collapses(row),
        row["unfinished"],
        "" if pd.isna(row["mismatch_k3"]) else f"{row['mismatch_k3']:.1e}",
        row["emulated"],
    ]


def collapses(row: Mapping[Any, Any]) -> str:
    """`2/5 [0.05, 0.85] at 20, 30*`; of a single run no interval, which would be [0, 0.98] or [0.02, 1]."""
    if not row["n"]:
        return ""
    interval = f" [{row['collapsed_low']:.2f}, {row['collapsed_high']:.2f}]" if row["n"] > 1 else ""
    steps = f" at {row['collapse_steps']}" if row["collapsed"] else ""
    return f"{row['collapsed']}/{row['n']}{interval}{steps}"


def with_interval(row: Mapping[Any, Any], name: str, sign: str = "") -> str:
    """`0.532 [0.410, 0.601]`; only the number where there is no interval."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    interval = "" if pd.isna(low) else f" [{number(low, sign)}, {number(high, sign)}]"
    return number(row[name], sign) + interval


def number(value: float, sign: str = "") -> str:
    """Three decimals, or nothing for what is missing."""
    return "" if pd.isna(value) else f"{value:{sign}.3f}"


def markdown_table(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """The lines of a Markdown table; columns that are empty in every row are left out."""
    headers = [header for header in rows[0] if any(row[header] for row in rows)]
    yield "| " + " | ".join(headers) + " |"
    yield "|" + "---|" * len(headers)
    for row in rows:
        yield "| " + " | ".join(row[header].replace("|", "\\|").replace("*", "\\*") for header in headers) + " |"
