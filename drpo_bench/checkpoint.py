"""Checkpoints: everything a run continues from, as safetensors and json, written whole or not at all.

Sampling, data order and minibatch order are pure functions of (seed, step), so no random state is stored.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from drpo_bench.models import Policy, load_weights, save_model
from drpo_bench.optim import LossScaler, Optimizer
from drpo_bench.records import read_json, sync_file, write_json
from drpo_bench.rollout.batch import RolloutBatch
from drpo_bench.text import TextCodec
from drpo_bench.types import Rollout

TOPK_FIELDS = ("topk_ids", "topk_mu_logprobs")  # of rollouts, where the loss asks for them
STATE_FILE = "state.json"  # written last: a directory without it is no checkpoint


def checkpoint_steps(directory: Path) -> list[int]:
    """Steps of the complete checkpoints in `checkpoints/`, oldest first."""
    found = [path for path in directory.glob("step_*") if (path / STATE_FILE).exists()]
    return sorted(int(path.name.removeprefix("step_")) for path in found)


def save_checkpoint(
    directory: Path,
    step: int,
    policy: Policy,
    optimizer: Optimizer,
    codec: TextCodec,
    queue: Sequence[RolloutBatch],
    state: dict[str, Any],
    keep: int,
) -> None:
    """Write `step_<n>/`, then drop all but the last `keep` checkpoints."""
    unfinished = directory / f"unfinished_{step}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_model(policy.master, codec.tokenizer, unfinished)
    save_file(_optimizer_tensors(optimizer), unfinished / "optimizer.safetensors")
    tensors, queue_state = _pack_queue(queue)
    save_file(tensors, unfinished / "queue.safetensors")
    scaler = asdict(optimizer.scaler) if optimizer.scaler else None
    state = {"step": step, "scaler": scaler, "queue": queue_state} | state
    write_json(unfinished / STATE_FILE, state)
    for path in unfinished.iterdir():
        sync_file(path)
    final = directory / f"step_{step}"
    shutil.rmtree(final, ignore_errors=True)
    os.replace(unfinished, final)
    sync_file(directory)
    for old in checkpoint_steps(directory)[:-keep]:
        shutil.rmtree(directory / f"step_{old}")


def load_checkpoint(
    directory: Path, step: int, policy: Policy, optimizer: Optimizer
) -> tuple[dict[str, Any], list[RolloutBatch]]:
    """Restore weights and optimizer in place; return the stored state and the queued rollout batches."""
    path = directory / f"step_{step}"
    state = read_json(path / STATE_FILE)
    policy.master.load_state_dict(load_weights(path).state_dict())
    policy.publish()
    _restore_optimizer(optimizer, load_file(path / "optimizer.safetensors"))
    if optimizer.scaler:
        optimizer.scaler = LossScaler(**state["scaler"])
    return state, _unpack_queue(load_file(path / "queue.safetensors"), state["queue"])


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


def _pack_queue(queue: Sequence[RolloutBatch]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Rollout batches as tensors (logprobs, rewards) and json (token ids, versions)."""
    tensors: dict[str, Tensor] = {}
    states = []
    for number, batch in enumerate(queue):
        tensors[f"{number}.mu_logprobs"] = batch.mu_logprobs
        tensors[f"{number}.rewards"] = batch.rewards
        if batch.old_logprobs is not None:
            tensors[f"{number}.old_logprobs"] = batch.old_logprobs
        for name in TOPK_FIELDS:
            parts = [value for rollout in batch.rollouts if (value := getattr(rollout, name)) is not None]
            if parts:
                tensors[f"{number}.{name}"] = torch.cat(parts)
        for name, routes in (("routes", [r.routes for r in batch.rollouts]), ("old_routes", batch.old_routes or [])):
            if parts := [part for part in routes if part is not None]:
                tensors[f"{number}.{name}"] = torch.cat(parts)
        rows = [
            [r.group, list(r.prompt_ids), list(r.response_ids), r.truncated, r.policy_version] for r in batch.rollouts
        ]
        states.append({"step": batch.step, "metrics": batch.metrics, "rollouts": rows})
    return tensors, states


def _unpack_queue(tensors: dict[str, Tensor], states: list[dict[str, Any]]) -> list[RolloutBatch]:
    queue = []
    for number, state in enumerate(states):
        lengths = [len(row[2]) for row in state["rollouts"]]
        logprobs = tensors[f"{number}.mu_logprobs"].split(lengths)
        stored = [tensors[key].split(lengths) for name in TOPK_FIELDS if (key := f"{number}.{name}") in tensors]
        topk = list(zip(*stored, strict=True)) or [()] * len(lengths)
        positions = [len(row[1]) + len(row[2]) - 1 for row in state["rollouts"]]
        routes, old_routes = (
            [part.clone() for part in tensors[key].split(positions)] if (key := f"{number}.{name}") in tensors else None
            for name in ("routes", "old_routes")
        )
        rollouts = [
            Rollout(group, tuple(prompt), tuple(response), mu.clone(), truncated, version, *map(torch.clone, likeliest))
            for (group, prompt, response, truncated, version), mu, likeliest in zip(
                state["rollouts"], logprobs, topk, strict=True
            )
        ]
        if routes:
            rollouts = [replace(rollout, routes=route) for rollout, route in zip(rollouts, routes, strict=True)]
        old = tensors.get(f"{number}.old_logprobs")
        rewards = tensors[f"{number}.rewards"]
        queue.append(RolloutBatch(state["step"], rollouts, rewards, state["metrics"], old, old_routes))
    return queue
