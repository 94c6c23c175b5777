"""Whether a ratio to a peer is lower than it was: ratios travel between machines, seconds do not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drpo_bench.errors import UserError

TOLERATED = 0.15  # by which a ratio may fall before it counts


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
    pairs = [(row, known.get((row["peer"], row["what"]))) for row in report["comparisons"] if "ratio" in row]
    if not any(before for _, before in pairs):
        return ["nothing was measured that the earlier bench measured too"]
    found = []
    for row, before in pairs:
        if before is None:
            continue
        apart = row["ratio_range"][1] < before["ratio_range"][0]
        if apart and row["ratio"] < (1 - TOLERATED) * before["ratio"]:
            found.append(f"{row['what']}: {row['ratio']:.2f} times {row['peer']}, was {before['ratio']:.2f}")
    return found
