"""Checkpoints: everything a run continues from, as safetensors and json, written whole or not at all."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from drpo_bench import random_state
from drpo_bench.config import CHECKPOINT_VERSION, NUMERICS_VERSION, content_hash
from drpo_bench.manifest import damage, describe_files
from drpo_bench.models import Policy, load_weights, save_model
from drpo_bench.optim import LossScaler, Optimizer
from drpo_bench.records import DamagedFile, begins_with, extent, read_json, sync_file, write_json
from drpo_bench.rollout.batch import RolloutBatch
from drpo_bench.rollout.packing import pack_queue, unpack_queue
from drpo_bench.text import TextCodec

STATE_FILE = "state.json"  # written last, before the directory has its name


def checkpoint_steps(directory: Path) -> list[int]:
    """Steps of the checkpoints in `checkpoints/`, oldest first."""
    return sorted(int(path.name.removeprefix("step_")) for path in directory.glob("step_*"))


def save_checkpoint(
    directory: Path,
    step: int,
    policy: Policy,
    optimizer: Optimizer,
    codec: TextCodec,
    queue: Sequence[RolloutBatch],
    records: Sequence[Path],
    state: dict[str, Any],
    keep: int,
) -> None:
    """Write `step_<n>/`, then drop all but the last `keep` checkpoints.

    `records` are the files of records beside it: how far they reach now is part of the checkpoint.
    """
    for path in filter(Path.exists, records):
        sync_file(path)  # a checkpoint never outlives the records before it
    unfinished = directory / f"unfinished_{step}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_model(policy.master, codec.tokenizer, unfinished)
    save_file(_optimizer_tensors(optimizer), unfinished / "optimizer.safetensors")
    queue_tensors, queue_state = pack_queue(queue)
    save_file(queue_tensors, unfinished / "queue.safetensors")
    random_tensors, random_values = random_state.capture()
    save_file(random_tensors, unfinished / "random.safetensors")
    for path in unfinished.iterdir():
        sync_file(path)
    everything = {
        "checkpoint_version": CHECKPOINT_VERSION,
        "numerics_version": NUMERICS_VERSION,
        "step": step,
        "scaler": asdict(optimizer.scaler) if optimizer.scaler else None,
        "queue": queue_state,
        "random": random_values,
        "records": {path.name: extent(path) for path in records},
        "files": describe_files(unfinished),
    }
    everything |= state
    write_json(unfinished / STATE_FILE, everything | {"sha256": content_hash(everything)})
    sync_file(unfinished)
    os.replace(unfinished, directory / f"step_{step}")
    sync_file(directory)
    for old in checkpoint_steps(directory)[:-keep]:
        discard(directory / f"step_{old}")


def discard(path: Path) -> None:
    """Remove a checkpoint; killed half-way, what is left is no checkpoint."""
    unfinished = path.with_name(path.name.replace("step_", "unfinished_"))
    shutil.rmtree(unfinished, ignore_errors=True)
    os.replace(path, unfinished)
    shutil.rmtree(unfinished)


def newest_checkpoint(directory: Path, records: Sequence[Path]) -> tuple[Path, dict[str, Any]] | None:
    """The last checkpoint that is whole, and its state; a damaged one after it is told of and removed."""
    for unfinished in directory.glob("unfinished_*"):
        shutil.rmtree(unfinished)
    for step in reversed(checkpoint_steps(directory)):
        path = directory / f"step_{step}"
        try:
            return path, check_checkpoint(path, records)
        except DamagedFile as problem:
            warnings.warn(f"{problem}: the run goes on from before it", stacklevel=2)
            discard(path)
    return None


def check_checkpoint(path: Path, records: Sequence[Path]) -> dict[str, Any]:
    """The state of a checkpoint that is whole, with the records before it. Raises DamagedFile."""
    if not (path / STATE_FILE).exists():
        raise DamagedFile(f"{path}: {STATE_FILE} is missing")
    state: dict[str, Any] = read_json(path / STATE_FILE)
    rest = {key: value for key, value in state.items() if key != "sha256"}
    if content_hash(rest) != state.get("sha256"):
        raise DamagedFile(f"{path}: {STATE_FILE} is damaged")
    if problem := damage(path, state["files"]):
        raise DamagedFile(f"{path}: {problem}")
    for file in records:
        if not begins_with(file, state["records"][file.name]):
            raise DamagedFile(f"{path}: {file.name} is not what it was then")
    return state


def load_checkpoint(path: Path, state: dict[str, Any], policy: Policy, optimizer: Optimizer) -> list[RolloutBatch]:
    """Restore weights, optimizer and random states in place; return the queued rollout batches."""
    policy.master.load_state_dict(load_weights(path).state_dict())
    policy.publish()
    _restore_optimizer(optimizer, load_file(path / "optimizer.safetensors"))
    if optimizer.scaler:
        optimizer.scaler = LossScaler(**state["scaler"])
    random_state.restore(load_file(path / "random.safetensors"), state["random"])
    return unpack_queue(load_file(path / "queue.safetensors"), state["queue"])


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for index, parameter in enumerate(optimizer.parameters):
        for name, value in optimizer.adamw.state.get(parameter, {}).items():
            tensors[f"{index}.{name}"] = value.contiguous()
    return tensors


def _restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    for key, value in tensors.items():
        index, name = key.split(".")
        parameter = optimizer.parameters[int(index)]
        optimizer.adamw.state[parameter][name] = value.to(parameter.device)
