"""The registry of losses in words: what each is, from its docstring, its table and its presets."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drpo_bench.config import canonical
from drpo_bench.errors import UserError, did_you_mean
from drpo_bench.loss_configs import LossBase
from drpo_bench.loss_presets import PRESETS, SCALE, WITHOUT, Preset
from drpo_bench.losses import LOSSES

NOTATION = (
    "x = log pi, m = log mu (or the policy of train.anchor), p = exp x, u = exp m, r = p / u, A = advantage; "
    "docs/losses.md has the rest."
)
SECTIONS = ("Objective", "Gradient", "Boundary", "Source", "Defaults")


@dataclass(frozen=True)
class LossDoc:
    """A loss in words. `sections` holds each of SECTIONS, a paragraph each."""

    id: str
    summary: str
    sections: dict[str, str]
    scope: str
    needs: list[str]
    reads: str
    zero_advantage_zero_gradient: bool
    parameters: dict[str, Any]
    descriptions: dict[str, str]
    presets: dict[str, Preset]


def describe(loss_id: str) -> LossDoc:
    """What the registry knows of a loss. Raises UserError for an unknown id."""
    if loss_id not in LOSSES:
        raise UserError(f"unknown loss {loss_id!r}{did_you_mean(loss_id, LOSSES)}; `drpo-bench losses list` has all")
    spec = LOSSES[loss_id]
    summary, sections = parse_docstring(inspect.getdoc(spec.formula) or "")
    config = spec.config()
    parameters = canonical(config.model_dump(exclude={"id", "preset"}))
    fields = spec.config.model_fields
    return LossDoc(
        loss_id,
        summary,
        sections,
        config.scope,
        sorted(config.needs),
        reads(config),
        config.zero_advantage_zero_gradient,
        parameters,
        {name: fields[name].description or "" for name in parameters},
        PRESETS.get(loss_id, {}),
    )


def reads(config: LossBase) -> str:
    """Which logprobs beside pi's a loss reads, in words."""
    anchor = ["the ratio's anchor (train.anchor)"] if config.uses_anchor else []
    others = ["mu's top-k" if need == "topk" else need for need in sorted(config.needs)]
    return ", ".join([*anchor, *others]) or "pi alone"


def parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The first line of a formula's docstring, and its sections `Name: ...` with their continuation lines."""
    summary, *lines = text.splitlines()
    sections: dict[str, str] = {}
    current = ""
    for line in lines:
        name, colon, rest = line.partition(": ")
        if colon and name in SECTIONS:
            current, sections[name] = name, rest
        elif line.strip() and current:
            sections[current] += " " + line.strip()
    return summary, sections


def registry_rows() -> list[dict[str, Any]]:
    """One object a loss, as `losses list --json` prints it."""
    docs = [describe(loss_id) for loss_id in LOSSES]
    return [
        {
            "id": doc.id,
            "summary": doc.summary,
            "scope": doc.scope,
            "needs": doc.needs,
            "zero_advantage_zero_gradient": doc.zero_advantage_zero_gradient,
            "parameters": doc.parameters,
            "presets": sorted(doc.presets),
        }
        | {name.lower(): doc.sections[name] for name in SECTIONS}
        for doc in docs
    ]


def parameter_text(parameters: dict[str, Any]) -> str:
    """`delta=0.15, kind=k3`."""
    return ", ".join(f"{name}={'none' if value is None else value}" for name, value in parameters.items()) or "-"


def print_losses(as_json: bool) -> None:
    """Print the registry to standard output."""
    rows, console = registry_rows(), Console()
    if as_json:
        console.print_json(json.dumps(rows))
        return
    table = Table(show_lines=True)
    table.add_column("id", no_wrap=True)
    table.add_column("gradient g = d(-L)/dx; parameters and defaults")
    table.add_column("scope", no_wrap=True)
    for row in rows:
        words = f"{escape(row['gradient'])}\n[dim]{escape(parameter_text(row['parameters']))}[/dim]"
        table.add_row(row["id"], words, row["scope"])
    console.print(table)
    console.print(NOTATION, highlight=False)


def print_loss(loss_id: str) -> None:
    """Print one loss: formula, gradient, boundary, source, parameters, presets."""
    doc, console = describe(loss_id), Console(highlight=False)
    console.print(f"[bold]{doc.id}[/bold]  {escape(doc.summary)}\n")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True, style="bold")
    for name in SECTIONS:
        facts.add_row(name.lower(), escape(doc.sections[name]))
    facts.add_row("scope", doc.scope)
    facts.add_row("reads", doc.reads)
    facts.add_row("A = 0", "no gradient" if doc.zero_advantage_zero_gradient else "has a gradient")
    for name, preset in doc.presets.items():
        settings = [f"loss.{key} = {value}" for key, value in preset.parameters.items() if value is not None]
        settings += [f"{key} = {value}" for key, value in preset.fields.items() if WITHOUT.get(key) != value]
        missing = "; ".join((*preset.missing, SCALE))
        facts.add_row(f"preset {name}", f"{preset.source}: {'; '.join(settings)} (not reproduced: {missing})")
    console.print(facts)
    if doc.parameters:
        console.print()
        table = Table("parameter", "default", "meaning")
        for name, value in doc.parameters.items():
            table.add_row(name, "none" if value is None else str(value), doc.descriptions[name])
        console.print(table)
    console.print(NOTATION)
