"""What `drpo-bench bench` measured, as a table and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

TRUSTED_SPREAD = 0.2
OTHERS = 0.1  # share of the machine that may be busy with something else


def show(report: dict[str, Any]) -> None:
    """The report as a table."""
    console = Console(highlight=False)
    precision = report["precision"] + (" (emulated)" if report.get("emulated") else "")
    console.print(
        f"{report['cpu']}, {report['threads']} thread(s); {report['size']}, {precision}; {report['shape']}",
        soft_wrap=True,
    )
    if "comparisons" in report:
        console.print(f"Against {report['comparisons'][0]['peer']}; a ratio above 1: we were faster")
    table = Table(box=SIMPLE_HEAD)
    rows = rows_of(report)
    for column in next(rows):
        table.add_column(column, justify="left" if column == "what" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(f"GPU: {report['gpu']}")
    for warning in warnings(report):
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def rows_of(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The columns of the report's table, then its rows."""
    if "comparisons" in report:
        return comparison_rows(report["comparisons"])
    for name, rows in (("startup", startup_rows), ("workers", workers_rows), ("growth", growth_rows)):
        if name in report:
            return rows(report[name])
    return alone_rows(report)


def startup_rows(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """To the first training step, and the imports, which are not added up: each loads what it needs."""
    yield "what", "s", "over starts"
    yield "start to first training step", f"{found['seconds']:.1f}", "{:.1f} to {:.1f}".format(*found["range"])
    for what, seconds in found["imports"].items():
        yield what, f"{seconds:.1f}", ""


def workers_rows(found: dict[str, dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """A row a way."""
    yield "what", "s", "runs an hour", "of 1 worker"
    for way, row in found.items():
        yield way, f"{row['seconds']:.1f}", f"{row['runs_per_hour']:.0f}", f"{row['of_one_worker']:.2f}"


def growth_rows(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Slopes of the upper half of each axis."""
    yield "what", "rollout", "trainer"
    for axis, (rollout, trainer) in found["slopes"].items():
        yield f"slope with {axis}", f"{rollout:.2f}", f"{trainer:.2f}"


def comparison_rows(comparisons: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """The columns, and a row a comparison."""
    unit = "tok/s" if comparisons[0]["by_rate"] else "s"
    yield "what", f"we, {unit}", f"they, {unit}", "ratio", "over turns"
    for row in comparisons:
        if "not_measured" in row:
            yield row["what"], "", "not measured", "", ""
            continue
        low, high = row["ratio_range"]
        sides = [row[side] for side in ("ours", "theirs")]
        speeds = [f"{s['tokens_per_s']:,.0f}" if row["by_rate"] else f"{s['seconds']:.3f}" for s in sides]
        yield row["what"], *speeds, f"{row['ratio']:.2f}", f"{low:.2f} to {high:.2f}"


def alone_rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The columns, rollout and trainer, and a row a format."""
    yield "what", "s", "tok/s", "spread", "share"
    for name, share in (("rollout", ""), ("trainer", f"{report['trainer_share_of_matmul']:.0%} of matmul")):
        found = report[name]
        yield name, f"{found['seconds']:.3f}", f"{found['tokens_per_s']:,.0f}", f"{found['spread']:.0%}", share
    for name, found in report["rollout_formats"].items():
        label = f"rollout {name}" + (" (emulated)" if found["emulated"] else "")
        seconds, rate = f"{found['seconds']:.3f}", f"{found['tokens_per_s']:,.0f}"
        yield label, seconds, rate, f"{found['spread']:.0%}", f"{found['of_bf16']:.2f} of bf16"


def warnings(report: dict[str, Any]) -> list[str]:
    """What is not to be believed, or was not measured."""
    busy = report["others"] > OTHERS
    found = [f"other processes took {report['others']:.0%} of the machine when we began"] if busy else []
    found += [f"fallen behind: {said}" for said in report.get("fallen_behind", [])]
    for row in report.get("comparisons", []):
        name = f"{row['what']}: {row['peer']}"
        if "not_measured" in row:
            found.append(f"{name}: not measured: {row['not_measured']}")
        elif row["doubtful"]:
            found.append(f"{name}: some turns say the opposite; nothing follows")
    sides = [(name, report[name]) for name in ("rollout", "trainer") if name in report]
    found += [f"{name}: spread {s['spread']:.0%}" for name, s in sides if s["spread"] > TRUSTED_SPREAD]
    return found
