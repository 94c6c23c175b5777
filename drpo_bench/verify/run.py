"""`drpo-bench losses verify`: every check, a line each, and whether all of them hold."""

from __future__ import annotations

import json
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from drpo_bench.losses import LOSSES
from drpo_bench.verify.checks import Check, checks_of
from drpo_bench.verify.limits import limits
from drpo_bench.verify.shared import shared


def all_checks() -> Iterator[Check]:
    """Every check of the library, in the order of the registry."""
    for loss_id in LOSSES:
        yield from checks_of(loss_id)
    yield from limits()
    yield from shared()


def verify(as_json: bool) -> bool:
    """Run and print every check; True if all hold."""
    console = Console()
    checks = []
    table = Table("check", "largest error", "allowed", "", title="losses verify")
    for check in all_checks():
        checks.append(check)
        mark = "[green]ok[/green]" if check.ok else "[red]FAILS[/red]"
        table.add_row(check.name, f"{check.error:.1e}", f"{check.tolerance:.0e}", mark)
    failed = [check for check in checks if not check.ok]
    if as_json:
        rows = [{"check": c.name, "error": str(c.error), "tolerance": c.tolerance, "ok": c.ok} for c in checks]
        console.print_json(json.dumps(rows))
    else:
        console.print(table)
        console.print(f"{len(checks)} checks, {len(failed)} fail")
    return not failed
