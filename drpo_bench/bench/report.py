"""`drpo-bench bench`: what was measured, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
TRUSTED_SPREAD = 0.2


@dataclass(frozen=True)
class Request:
    """The options of `drpo-bench bench`."""

    peer: str | None
    size: str
    threads: int
    precision: str
    repeats: int
    peer_python: Path | None
    warmstarts: Path

    def check(self) -> None:
        """Raise UserError for what is not known."""
        for option, value, known in (
            ("--peer", self.peer, PEERS),
            ("--size", self.size, tuple(SIZES)),
            ("--precision", ALIASES.get(self.precision, self.precision), tuple(PRESETS)),
        ):
            if value is not None and value not in known:
                hint = did_you_mean(value, known) or f"; known: {', '.join(known)}"
                raise UserError(f"{option} {value}: unknown{hint}")
        if self.peer == "trl" and self.precision != "fp32":
            raise UserError(f"--precision {self.precision}: TRL trains in fp32 on a CPU, so --peer trl compares fp32")


def bench(request: Request, as_json: bool) -> None:
    """Measure and print."""
    request.check()
    torch.set_num_threads(request.threads)
    report = measure(request, Shape())
    if as_json:
        print(json.dumps(report, indent=1))  # noqa: T201
    else:
        show(report)


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
    }
    if request.peer is None:
        return report | alone(request, precision, shape)
    return report | {"comparisons": [comparison.data() for comparison in against(request, precision, shape)]}


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
    rows = comparison_rows(report["comparisons"]) if "comparisons" in report else alone_rows(report)
    for column in next(rows):
        table.add_column(column, justify="left" if column == "what" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for warning in warnings(report):
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)


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
    for row in report.get("comparisons", []):
        name = f"{row['what']}: {row['peer']}"
        if "not_measured" in row:
            found.append(f"{name}: not measured: {row['not_measured']}")
        elif row["doubtful"]:
            found.append(f"{name}: some turns say the opposite; nothing follows")
    sides = [(name, report[name]) for name in ("rollout", "trainer") if name in report]
    found += [f"{name}: spread {s['spread']:.0%}" for name, s in sides if s["spread"] > TRUSTED_SPREAD]
    return found
