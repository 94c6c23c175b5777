"""The registry of losses as a table or as JSON."""

from __future__ import annotations

import inspect
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from drpo_bench.config import canonical
from drpo_bench.losses import LOSSES


def registry_rows() -> list[dict[str, Any]]:
    """One object a loss: id, first line of its docstring, scope, parameters with defaults."""
    return [
        {
            "id": loss_id,
            "summary": (inspect.getdoc(spec.formula) or "").splitlines()[0],
            "scope": spec.scope,
            "zero_advantage_zero_gradient": spec.zero_advantage_zero_gradient,
            "parameters": canonical(spec.config().model_dump(exclude={"id"})),
        }
        for loss_id, spec in LOSSES.items()
    ]


def print_losses(as_json: bool) -> None:
    """Print the registry to standard output."""
    rows = registry_rows()
    console = Console()
    if as_json:
        console.print_json(json.dumps(rows))
        return
    table = Table("id", "parameters and defaults", "what it is")
    for row in rows:
        parameters = ", ".join(f"{name}={value}" for name, value in row["parameters"].items())
        table.add_row(row["id"], parameters or "-", row["summary"])
    console.print(table)
