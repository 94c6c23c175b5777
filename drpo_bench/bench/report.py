"""`drpo-bench bench`: what was measured, as a table or as JSON."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drpo_bench.bench.shapes import Shape
from drpo_bench.bench.timing import Comparison
from drpo_bench.config import SIZES
from drpo_bench.doctor.machine import describe_cores
from drpo_bench.environment import cpu_name
from drpo_bench.errors import UserError, did_you_mean
from drpo_bench.precision_configs import ALIASES, PRESETS, PrecisionConfig

PEERS = ("trl", "hf", "vllm")
PARTS = ("speed", "startup", "workers", "growth")
TRUSTED_SPREAD = 0.2
TOLERATED = 0.15  # by which a ratio may fall before it counts


@dataclass(frozen=True)
class Request:
    """The options of `drpo-bench bench`."""

    peer: str | None
    part: str
    size: str
    threads: int
    precision: str
    repeats: int
    peer_python: Path | None
    warmstarts: Path
    out: Path
    against: Path | None

    def check(self) -> None:
        """Raise UserError for what is not known."""
        for option, value, known in (
            ("--peer", self.peer, PEERS),
            ("--part", self.part, PARTS),
            ("--size", self.size, tuple(SIZES)),
            ("--precision", ALIASES.get(self.precision, self.precision), tuple(PRESETS)),
        ):
            if value is not None and value not in known:
                hint = did_you_mean(value, known) or f"; known: {', '.join(known)}"
                raise UserError(f"{option} {value}: unknown{hint}")
        if self.peer and self.part != "speed":
            raise UserError(f"--part {self.part}: measured without a peer; leave --peer out")
        if self.against is not None and not self.peer:
            raise UserError("--against: only ratios to a peer are compared; name one with --peer")
        if self.against is not None and not self.against.is_file():
            raise UserError(f"--against {self.against}: no such file")
        if self.peer == "trl" and self.precision != "fp32":
            raise UserError(f"--precision {self.precision}: TRL trains in fp32 on a CPU, so --peer trl compares fp32")


def bench(request: Request, as_json: bool) -> bool:
    """Measure and print. False if a ratio has fallen behind that of `--against`."""
    request.check()
    earlier = read_reports(request.against) if request.against else []
    torch.set_num_threads(request.threads)
    report = measure(request, Shape())
    report["fallen_behind"] = fallen_behind(report, earlier)
    if as_json:
        print(json.dumps(report, indent=1))  # noqa: T201
    else:
        show(report)
    return not report["fallen_behind"]


def measure(request: Request, shape: Shape) -> dict[str, Any]:
    """The machine, what was asked for, and what was measured."""
    precision = PrecisionConfig.model_validate(request.precision)
    report: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": describe_cores(),
        "threads": request.threads,
        "size": request.size,
        "precision": precision.name,
        "shape": str(shape),
        "gpu": f"not measured: {torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'no GPU'}",
        "part": request.part,
    }
    if request.peer is not None:
        return report | {"comparisons": [comparison.data() for comparison in against(request, precision, shape)]}
    if request.part == "speed":
        return report | alone(request, precision, shape)
    return report | part(request)


def part(request: Request) -> dict[str, Any]:
    """What is measured besides speed."""
    if request.part == "growth":
        return {"growth": growth(request)}
    from drpo_bench.bench import startup, workers

    with tempfile.TemporaryDirectory() as folder:
        if request.part == "startup":
            return {"startup": startup.measure(Path(folder), request.repeats)}
        return {"workers": workers.measure(Path(folder))}


def growth(request: Request) -> dict[str, Any]:
    """The curves, with their figure and CSV in `request.out`."""
    import pandas as pd

    from drpo_bench.analysis.growth import draw_growth
    from drpo_bench.bench.growth import measure, slopes

    points = measure(request.repeats)
    rows, found = [asdict(point) for point in points], slopes(points)
    request.out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(request.out / "growth.csv", index=False)
    draw_growth(rows, found, request.out / "growth.png")
    return {"points": rows, "slopes": found}


def read_reports(path: Path) -> list[dict[str, Any]]:
    """The reports of an earlier `make bench`. Raises UserError."""
    try:
        reports = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"--against {path}: {error}") from None
    return reports if isinstance(reports, list) else [reports]


def fallen_behind(report: dict[str, Any], earlier: Sequence[dict[str, Any]]) -> list[str]:
    """Ratios to a peer that were higher in every turn then than in any turn now, and by more than `TOLERATED`.

    Only like is compared with like: peer, size, precision, threads and shape.
    """
    same = ("size", "precision", "threads", "shape")
    known = {
        (row["peer"], row["what"]): row
        for other in earlier
        if all(other.get(field) == report[field] for field in same)
        for row in other.get("comparisons", [])
        if "ratio" in row
    }
    found = []
    for row in report.get("comparisons", []):
        before = known.get((row["peer"], row["what"]))
        if before is None or "ratio" not in row:
            continue
        apart = row["ratio_range"][1] < before["ratio_range"][0]
        if apart and row["ratio"] < (1 - TOLERATED) * before["ratio"]:
            found.append(f"{row['what']}: {row['ratio']:.2f} times {row['peer']}, was {before['ratio']:.2f}")
    return found


def against(request: Request, precision: PrecisionConfig, shape: Shape) -> list[Comparison]:
    """The comparisons with a peer."""
    if request.peer == "trl":
        from drpo_bench.bench import trl

        return trl.compare(
            request.size, request.threads, shape, request.repeats, request.warmstarts, request.peer_python
        )
    if request.peer == "hf":
        from drpo_bench.bench import hf

        return hf.compare(request.size, precision, shape, request.repeats)
    from drpo_bench.bench import vllm

    return vllm.compare(request.size, precision, shape, request.repeats)


def alone(request: Request, precision: PrecisionConfig, shape: Shape) -> dict[str, Any]:
    """Rollout, trainer and formats without a peer."""
    from drpo_bench.bench.machine import format_costs, measure_alone

    found = measure_alone(request.size, precision, shape, request.repeats)
    return {
        "parameters": found.parameters,
        "emulated": found.emulated,
        "rollout": found.rollout.data(),
        "trainer": found.trainer.data(),
        "trainer_flops_per_s": found.flops,
        "matmul_fp32_flops_per_s": found.matmul,
        "trainer_share_of_matmul": found.flops / found.matmul,
        "rollout_formats": format_costs(request.size, shape, request.repeats),
    }


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
    found = [f"load {report['cores']['load']:.1f}: the machine is busy"] if report["cores"]["busy"] else []
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
