"""Queued rollout batches as tensors and json, for a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from drpo_bench.records import plain
from drpo_bench.rollout.batch import RolloutBatch
from drpo_bench.types import Rollout

TOPK_FIELDS = ("topk_ids", "topk_mu_logprobs")  # of rollouts, where the loss asks for them


def pack_queue(queue: Sequence[RolloutBatch]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
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
        metrics = {name: plain(value) for name, value in batch.metrics.items()}
        states.append({"step": batch.step, "metrics": metrics, "rollouts": rows})
    return tensors, states


def unpack_queue(tensors: dict[str, Tensor], states: list[dict[str, Any]]) -> list[RolloutBatch]:
    """The batches that `pack_queue` packed, with the same bits."""
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
        metrics = {name: float(value) for name, value in state["metrics"].items()}
        queue.append(RolloutBatch(state["step"], rollouts, rewards, metrics, old, old_routes))
    return queue
