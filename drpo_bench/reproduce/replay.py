"""A run trained again, in a folder of its own."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from drpo_bench.records import DamagedFile, RunDir, read_json, read_records
from drpo_bench.reproduce.compare import Record
from drpo_bench.reproduce.following import following
from drpo_bench.reproduce.recorded import Recorded
from drpo_bench.rollout.alarm import MismatchAlarm
from drpo_bench.rollout.handover import HandoverFailed
from drpo_bench.sweep.runner import WARMSTARTS
from drpo_bench.trainer import Trainer
from drpo_bench.warmstart import DESCRIPTION, TargetMissed, cache_damage


@dataclass(frozen=True)
class Replay:
    """What the replay left; `failure` is what stopped it before the recorded run."""

    run_dir: RunDir
    records: list[Record]
    environment: dict[str, Any]
    warmstart_sha256: str | None
    warmstart_from: str | None  # "cache" or "training"; None for a checkpoint
    status: dict[str, Any]
    failure: str | None


def replay(recorded: Recorded, steps: int, out: Path) -> Replay:
    """Train the first `steps` batches from config.json alone, under the results directory `out`."""
    config = recorded.config
    torch.set_num_threads(config.runtime.threads)
    transformers_logging.disable_progress_bar()
    cache = out / WARMSTARTS
    source = None
    if config.model.from_scratch:
        source = "cache" if copy_warmstart(recorded, cache) else "training"
    run_dir = RunDir(out / config.experiment.name / "runs" / config.run_id)
    failure = None
    with following(run_dir, steps):
        try:
            trainer = Trainer(config, run_dir, cache)
            try:
                trainer.train(until=steps)
            finally:
                trainer.close()
        except (MismatchAlarm, HandoverFailed, TargetMissed) as error:
            failure = f"{type(error).__name__}: {error}"
    status = run_dir.status()
    if status["state"] == "running":  # our process is about to end, and nobody is to wait for it
        run_dir.set_status("pending", step=status["step"], steps=config.train.steps, reason=f"replayed to step {steps}")
    environment = read_json(run_dir.env) if run_dir.env.exists() else {}
    sha256 = read_json(run_dir.config)["warmstart_sha256"]
    return Replay(run_dir, list(read_records(run_dir.metrics)), environment, sha256, source, status, failure)


def copy_warmstart(recorded: Recorded, cache: Path) -> bool:
    """Copy the warm start that the run began with from the cache in its results directory; False if it is not there.

    A copy, so that nothing is written beside the run, not even a lock.
    """
    folders = recorded.run_dir.path.resolve().parents  # runs, <experiment>, <out>
    if len(folders) < 3:
        return False
    key = recorded.config.warmstart_key()
    cached = folders[2] / WARMSTARTS / key
    if not cached.is_dir() or cache_damage(cached):
        return False
    try:
        sha256 = read_json(cached / DESCRIPTION)["files"]["model.safetensors"]
    except (DamagedFile, FileNotFoundError, KeyError):
        return False
    if recorded.warmstart_sha256 not in (None, sha256):
        return False
    shutil.copytree(cached, cache / key)
    return True
