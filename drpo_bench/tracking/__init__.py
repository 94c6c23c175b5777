"""MLflow as a replayable sink: fed from metrics.jsonl, never in the way of training (docs/tracking.md)."""

from __future__ import annotations

from drpo_bench.tracking.tracker import Sender, Tracker

__all__ = ["Sender", "Tracker"]
