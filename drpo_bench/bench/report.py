"""`drpo-bench bench`: what is asked for, measured, and printed as a table or as JSON."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from drpo_bench.bench.regression import fallen_behind, read_reports
from drpo_bench.bench.shapes import Shape
from drpo_bench.bench.table import show
from drpo_bench.bench.timing import Comparison
from drpo_bench.config import SIZES
from drpo_bench.doctor.machine import describe_cores
from drpo_bench.environment import cpu_name
from drpo_bench.errors import UserError, did_you_mean
from drpo_bench.precision_configs import ALIASES, PRESETS, PrecisionConfig

PEERS = ("trl", "hf", "vllm")
PARTS = ("speed", "startup", "workers", "growth")


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


def bench(request: Request, as_json: bool) -> dict[str, Any]:
    """Measure and print; `fallen_behind` says which ratios have, compared with those of `--against`."""
    request.check()
    earlier = read_reports(request.against) if request.against else None
    torch.set_num_threads(request.threads)
    report = measure(request, Shape())
    report["fallen_behind"] = [] if earlier is None else fallen_behind(report, earlier)
    if as_json:
        print(json.dumps(report, indent=1))  # noqa: T201
    else:
        show(report)
    return report


def measure(request: Request, shape: Shape) -> dict[str, Any]:
    """The machine, what was asked for, and what was measured."""
    precision = PrecisionConfig.model_validate(request.precision)
    report: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": describe_cores(),
        "others": psutil.cpu_percent(interval=0.5) / 100,  # share of the machine that is busy before we begin
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
        from drpo_bench.bench import growth

        points = growth.measure(request.repeats)
        return {"growth": {"points": [asdict(point) for point in points], "slopes": growth.slopes(points)}}
    from drpo_bench.bench import startup, workers

    with tempfile.TemporaryDirectory() as folder:
        if request.part == "startup":
            return {"startup": startup.measure(Path(folder), request.repeats)}
        return {"workers": workers.measure(Path(folder))}


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
