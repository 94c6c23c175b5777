"""Shared fixtures: a tiny policy, a tiny run, and no network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Processes with unpinned threads slow each other down on a small machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def warmstart_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of warm starts for all tests of a process."""
    return tmp_path_factory.mktemp("warmstarts")


TINY: dict[str, Any] = {
    "experiment": {"name": "tiny"},
    "task": {"name": "arithmetic", "min_terms": 2, "max_terms": 2, "max_operand": 9},
    "warmstart": {"target": 0.0, "max_steps": 200, "eval_every": 200, "eval_problems": 16, "lr": 4e-3},
    "rollout": {"problems_per_batch": 4, "group_size": 4, "max_new_tokens": 24},
    "precision": {"preset": "fp32"},
    "train": {"steps": 2, "updates_per_batch": 2},
    "eval": {"every": 1, "problems": 8, "greedy": False},
}


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested tables merged; a loss or precision table replaces the other as a whole."""
    merged = dict(base)
    for key, value in changes.items():
        both_tables = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if both_tables and key not in ("loss", "precision") else value
    return merged


@pytest.fixture
def tiny_config() -> Callable[..., Any]:
    """A run of a few seconds; keyword arguments change its tables."""
    from drpo_bench.config import RunConfig

    def build(**changes: Any) -> RunConfig:
        return RunConfig.model_validate(merge(TINY, changes))

    return build
