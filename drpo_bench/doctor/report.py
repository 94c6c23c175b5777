"""`drpo-bench doctor`: what the machine has, which arithmetic is real, what is installed, what to install."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drpo_bench.doctor.findings import Finding, find, size
from drpo_bench.doctor.machine import describe_cores, describe_directory, describe_memory, describe_store
from drpo_bench.doctor.packages import describe_engines, describe_packages

HEADINGS = {"problem": "Problems", "warning": "Warnings", "more": "To install for more"}
NO_DEVICES: dict[str, Any] = {
    "cpu": {"name": platform.processor() or platform.machine(), "units": {}},
    "gpus": [],
    "gpu_unused": False,
    "torch_cuda": None,
    "precisions": [],
}


def doctor(out: Path, mlflow_uri: str, as_json: bool) -> bool:
    """Print the report, as text or JSON. True if the default, the torch engine on the CPU, finds what it needs."""
    report = examine(out, mlflow_uri)
    findings = find(report)
    ok = all(finding.kind != "problem" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": ok, **report, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        show(Console(highlight=False), report, findings)
    return ok


def examine(out: Path, mlflow_uri: str) -> dict[str, Any]:
    """Everything the report says, JSON-ready; a broken torch leaves the devices empty and says why."""
    devices, torch_error = NO_DEVICES, None
    load = describe_cores()  # before torch: importing it is load
    try:
        from drpo_bench.doctor.devices import describe_devices

        devices = describe_devices()
    except (ImportError, OSError) as error:
        torch_error = str(error).splitlines()[0]
    return {
        "platform": platform.platform(),
        "cores": load,
        "memory": describe_memory(),
        "results": describe_directory(out),
        "mlflow": describe_store(mlflow_uri),
        **devices,
        "torch_error": torch_error,
        "engines": describe_engines(torch_error),
        "packages": describe_packages(),
    }


def show(console: Console, report: dict[str, Any], findings: list[Finding]) -> None:
    """The report as tables, then what to mend and what to install."""
    for table in (hardware(report), precisions(report), engines(report), packages(report)):
        console.print(table)
    for kind, heading in HEADINGS.items():
        chosen = [finding for finding in findings if finding.kind == kind]
        if not chosen:
            continue
        colour = {"problem": "red", "warning": "yellow", "more": "bold"}[kind]
        console.print(f"\n[{colour}]{heading}[/]")
        for finding in chosen:  # a command is one line, whole, to be copied
            console.print(f"  {escape(finding.what)}\n      {escape(finding.command)}", soft_wrap=True)
    if not any(finding.kind == "problem" for finding in findings):
        console.print("\n[green]The default (torch engine, CPU) finds all it needs.[/]")


def hardware(report: dict[str, Any]) -> Table:
    """Processor, GPUs, memory, and the places that runs write to."""
    table = Table(title="Hardware", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a long path is broken, never cut
    cores, memory, results, store = report["cores"], report["memory"], report["results"], report["mlflow"]
    units = report["cpu"]["units"]
    table.add_row("system", escape(report["platform"]))
    table.add_row("processor", escape(report["cpu"]["name"]))
    table.add_row("vector units", ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in units.items()))
    quota = f", quota of {cores['quota']:g}" if cores["quota"] else ""
    table.add_row("cores", f"{cores['usable']} usable of {cores['total']}{quota}")
    load = "?" if cores["load"] is None else f"{cores['load']:.2f}"
    table.add_row("load", f"{load} on {cores['total']} cores{', busy' if cores['busy'] else ''}")
    limited = " (a container's limit)" if memory["limited"] else ""
    table.add_row("memory", f"{size(memory['available'])} available of {size(memory['total'])}{limited}")
    for gpu in report["gpus"]:
        capability = ".".join(map(str, gpu["capability"]))
        room = f"{size(gpu['memory_free'])} free of {size(gpu['memory_total'])}"
        table.add_row(gpu["device"], escape(f"{gpu['name']}, compute capability {capability}, {room}"))
    if not report["gpus"]:
        table.add_row("GPU", "none")
    state = f"{size(results['free'])} free, {'writable' if results['writable'] else 'NOT WRITABLE'}"
    table.add_row("results", escape(f"{results['path']}: {state}"))
    writable = {True: "writable", False: "NOT WRITABLE", None: "a server, not asked"}[store["writable"]]
    table.add_row("MLflow store", escape(f"{store['uri']}: {writable}"))
    return table


def precisions(report: dict[str, Any]) -> Table:
    """A row a format, trainer and rollout on each kind of device; GPUs of one name share their columns."""
    names = {"cpu": ["cpu"]}
    for gpu in report["gpus"]:
        names.setdefault(gpu["name"], []).append(gpu["device"])
    table = Table("format", title="Arithmetic", title_justify="left")
    cells = {(row["device"], row["format"]): row for row in report["precisions"]}
    for devices in names.values():
        table.add_column(f"trainer\n{together(devices)}")
        table.add_column(f"rollout\n{together(devices)}")
    if report["gpus"]:
        table.caption, table.caption_justify = "fp8 on a GPU is real with vLLM (rollout) and torchao (trainer)", "left"
    labels = {"fp8": "fp8 weights, activations", "fp8_kv": "fp8 KV cache"}
    for name in dict.fromkeys(row["format"] for row in report["precisions"]):
        rows = [cells[devices[0], name] for devices in names.values()]
        table.add_row(labels.get(name, name), *(row[side] or "-" for row in rows for side in ("trainer", "rollout")))
    return table


def together(devices: list[str]) -> str:
    """cuda:0-3 for neighbours, cuda:0,2 for others."""
    numbers = [device.removeprefix("cuda:") for device in devices]
    neighbours = len(numbers) > 1 and int(numbers[-1]) - int(numbers[0]) == len(numbers) - 1
    return devices[0] + (f"-{numbers[-1]}" if neighbours else "".join(f",{number}" for number in numbers[1:]))


def engines(report: dict[str, Any]) -> Table:
    """The rollout engines."""
    table = Table("engine", "state", title="Engines", title_justify="left")
    for engine in report["engines"]:
        broken = f"; broken by {', '.join(engine['broken_by'])}" if engine["broken_by"] else ""
        table.add_row(engine["name"], f"{', '.join(engine['installed']) or 'not installed'}{broken}")
    return table


def packages(report: dict[str, Any]) -> Table:
    """Versions; `-` for what is not installed."""
    table = Table("package", "version", "needs", "for", title="Packages", title_justify="left")
    for row in report["packages"]:
        version = row["version"] or "-"
        bad = row["state"] == "out_of_bounds" or (row["state"] == "missing" and row["needed"])
        table.add_row(row["name"], f"[red]{version} !![/]" if bad else version, row["bounds"], row["purpose"])
    return table
