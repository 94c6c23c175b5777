"""Sweeps in the background, gone after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.executors.sweeps import Sweep


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Sweep]]:
    """Start `small.toml` of the test's folder."""
    sweeps: list[Sweep] = []

    def start(*options: str, **changes: str) -> Sweep:
        sweeps.append(Sweep(tmp_path, *options, **changes))
        return sweeps[-1]

    yield start
    for sweep in sweeps:
        sweep.end()
