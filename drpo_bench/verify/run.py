"""`drpo-bench losses verify`: every check, a line each, and whether all of them hold."""

from __future__ import annotations

import json
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from drpo_bench.config import canonical
from drpo_bench.losses import LOSSES
from drpo_bench.verify.checks import Check, checks_of
from drpo_bench.verify.limits import limits
from drpo_bench.verify.shared import shared


def all_checks() -> Iterator[Check]:
    """Every check of the library, in the order of the registry."""
    for loss_id in track(LOSSES, "losses", console=Console(stderr=True), transient=True):
        yield from checks_of(loss_id)
    yield from limits()
    yield from shared()


def verify(as_json: bool) -> bool:
    """Run and print every check; True if all hold."""
    console = Console(highlight=False)
    checks = []
    for check in all_checks():
        checks.append(check)
        if not as_json:
            mark = "[green]ok   [/green]" if check.ok else "[red]FAILS[/red]"
            numbers = f"{check.error:.1e} of {check.tolerance:.0e}"
            console.print(f"{mark} {escape(check.name):<76} {numbers}", soft_wrap=True)
    failed = [check for check in checks if not check.ok]
    if as_json:
        rows = [
            {"check": c.name, "error": canonical(float(c.error)), "tolerance": c.tolerance, "ok": c.ok} for c in checks
        ]
        console.print_json(json.dumps(rows))
    else:
        console.print(
            f"{len(checks)} checks of {len(LOSSES)} losses, {len(failed)} fail (largest error of allowed error)"
        )
    return not failed
