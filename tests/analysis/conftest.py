"""A results folder as the trainer writes it, without a trainer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from drpo_bench.config import RunConfig, canonical
from drpo_bench.records import RunDir, plain, write_json

LOSSES = ("pg_is", "grpo", "spo", "dppo_tv", "drpo")
RISING = (0.4, 0.5, 0.55, 0.6, 0.6, 0.6, 0.6)  # at steps 0, 10, ..., 60; the last fifth are two evaluations


def write_run(
    directory: Path,
    *,
    loss: str | dict[str, Any] = "drpo",
    precision: str = "bf16",
    seed: int = 0,
    accuracies: Sequence[float] = RISING,
    state: str = "finished",
    emulated: bool = True,
    metrics: dict[str, float] | None = None,
    without: Sequence[str] = (),
    numerics_version: int = 1,
    changes: dict[str, Any] | None = None,
    **status: Any,
) -> RunDir:
    """One run directory, evaluated every 10 of 60 steps; `metrics` are those of every training batch."""
    config = RunConfig.model_validate(
        {
            "experiment": {"name": directory.name},
            "loss": {"id": loss} if isinstance(loss, str) else loss,
            "precision": {"preset": precision},
            "seed": seed,
            "rollout": {"lag": 2},
            "train": {"steps": 60},
            "eval": {"problems": 512},
        }
        | (changes or {})
    )
    run_dir = RunDir(directory / "runs" / config.run_id)
    run_dir.path.mkdir(parents=True)
    header = {"run_id": config.run_id, "schema_version": 1, "numerics_version": numerics_version}
    write_json(run_dir.config, canonical(config.model_dump()) | header | {"warmstart_sha256": None})
    sides = {"trainer": emulated, "rollout": emulated}
    env = {"emulated": sides, "commit": "c0ffee", "cpu": "a cpu", "gpu": None, "threads": 1}
    write_json(run_dir.env, env | {"versions": {"python": "3.11.7"}})
    batch = {
        "reward/mean": 0.5,
        "mismatch/k3": 1e-3,
        "offpolicy/tv_mean": 0.02,
        "offpolicy/ratio_max": 4.0,
        "offpolicy/lowprob_frac": 0.08,
        "policy/entropy": 0.9,
        "optim/grad_norm": 0.3,
        "response/length_mean": 28.0,
    } | (metrics or {})
    for name in without:
        del batch[name]
    lines = []
    for step in range(10 * (len(accuracies) - 1) + 1):
        record: dict[str, Any] = {"step": step, "time_s": 0.5 * step} | (batch if step else {})
        if step % 10 == 0:
            record[f"eval/{config.task.name}/accuracy"] = accuracies[step // 10]
        lines.append(json.dumps({key: plain(value) for key, value in record.items()}) + "\n")
    run_dir.metrics.write_text("".join(lines))
    run_dir.set_status(state, **({"step": 60, "steps": 60, "seconds": 30.0} | status))  # type: ignore[arg-type]
    return run_dir


def write_study(directory: Path) -> None:
    """5 losses x 2 precisions x 3 seeds with one of everything that can go wrong."""
    for precision in ("bf16", "fp8_rollout"):
        for loss in LOSSES:
            for seed in range(3):
                write_run(directory, **study_run(precision, loss, seed))
    owner = {"name": directory.name, "question": "Which losses hold?", "file": "study.toml"}
    write_json(directory / "experiment.json", owner)


def study_run(precision: str, loss: str, seed: int) -> dict[str, Any]:
    """pg_is collapses, spo ends non-finite, grpo fails, dppo_tv is short, and some of drpo has no entropy."""
    run: dict[str, Any] = {"precision": precision, "loss": loss, "seed": seed}
    run["accuracies"] = [value + 0.1 * seed if value > 0.4 else value for value in RISING]
    run["metrics"] = {"optim/grad_norm": 0.1 * (seed + 1)}
    case = (precision, loss, seed)
    if case == ("fp8_rollout", "pg_is", 0):
        run |= {"accuracies": (0.4, 0.5, 0.2, 0.1, 0.0, 0.0, 0.0), "metrics": {"optim/grad_norm": 9.0}}
        run |= {"state": "collapsed", "collapse_step": 30, "reason": "accuracy"}
    elif case == ("fp8_rollout", "spo", 1):
        run |= {"accuracies": (0.4, 0.5, 0.55), "state": "collapsed", "collapse_step": 25, "reason": "non_finite"}
    elif case == ("fp8_rollout", "grpo", 2):
        run |= {"accuracies": (0.4, 0.5, 0.7), "state": "failed", "step": 20, "reason": "MemoryError: no | more"}
    elif case == ("bf16", "dppo_tv", 2):
        run |= {"accuracies": (0.4, 0.5, 0.55, 0.6)}
    elif case == ("bf16", "drpo", 1):
        run |= {"without": ["policy/entropy"]}
    return run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunDir]:
    """Writes one run into the folder `study` of tmp_path."""
    return lambda **options: write_run(tmp_path / "study", **options)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, written once; read only."""
    directory = tmp_path_factory.mktemp("results") / "study"
    write_study(directory)
    return directory
