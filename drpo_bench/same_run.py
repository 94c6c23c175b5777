"""Is what lies in a run's directory the beginning of this very run? Asked before anything is written there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from drpo_bench.config import (
    CHECKPOINT_VERSION,
    NUMERICS_VERSION,
    SCHEMA_VERSION,
    RunConfig,
    flat_items,
    load_run_config,
)
from drpo_bench.errors import UserError, explain
from drpo_bench.records import EXPERIMENT_FILE, DamagedFile, RunDir, read_json


def check_same_run(run_dir: RunDir, config: RunConfig) -> None:
    """Raise UserError for a run of another version or config. A damaged file is no evidence: it is written anew."""
    try:
        if run_dir.config.exists():
            check_config(run_dir.config, read_json(run_dir.config), config)
        for path in sorted(run_dir.checkpoints.glob("step_*/state.json")):
            check_checkpoint_version(path, read_json(path))
    except DamagedFile:
        return


def check_schema(experiment_dir: Path) -> None:
    """Raise UserError for an experiment's folder of a newer drpo-bench; a damaged experiment.json is no evidence."""
    path = experiment_dir / EXPERIMENT_FILE
    try:
        schema = read_json(path).get("schema_version", 0) if path.exists() else 0
    except (DamagedFile, AttributeError):
        return
    if schema > SCHEMA_VERSION:
        raise UserError(f"{path}: written by a newer drpo-bench (schema {schema}, this one knows {SCHEMA_VERSION})")


def check_config(path: Path, found: dict[str, Any], config: RunConfig) -> None:
    """Raise UserError where a run's config.json is of another version, or says something else than `config`."""
    check_versions(path, found)
    try:
        then = load_run_config(found)
    except ValidationError as error:
        raise explain(error, str(path), RunConfig) from None
    if changes := changed_fields(then, config):
        what = ", ".join(changes.values())
        raise UserError(f"{path}: the run was begun with {what}; undo the change to resume it, or use --out")


def check_versions(path: Path, found: dict[str, Any]) -> None:
    """Raise UserError for a config.json whose fields or numbers are those of another drpo-bench."""
    schema, numerics = found.get("schema_version", 0), found.get("numerics_version", 0)
    if schema > SCHEMA_VERSION or numerics > NUMERICS_VERSION:
        raise UserError(
            f"{path}: written by a newer drpo-bench (schema {schema}, numerics {numerics}; this one knows "
            f"{SCHEMA_VERSION} and {NUMERICS_VERSION}); update it, or use --out"
        )
    if numerics < NUMERICS_VERSION:
        raise UserError(
            f"{path}: written with numerics version {numerics}, this drpo-bench has {NUMERICS_VERSION}: the two would "
            "not be one run; use --out, or move the folder away (its row stays in summary.csv)"
        )


def check_checkpoint_version(path: Path, state: dict[str, Any]) -> None:
    """Raise UserError for a checkpoint that this version does not read."""
    version = state.get("checkpoint_version", 1)
    if version != CHECKPOINT_VERSION:
        newer = "; update drpo-bench" if version > CHECKPOINT_VERSION else ""
        raise UserError(
            f"{path}: a checkpoint of version {version}, this drpo-bench reads {CHECKPOINT_VERSION}{newer}; use "
            "--out to start anew, or remove the run's folder"
        )


def changed_fields(then: RunConfig, now: RunConfig) -> dict[str, str]:
    """The fields of a run's identity that differ, each as `train.lr = 0.0003 (now 0.0004)`."""
    old, new = dict(flat_items(then.identity())), dict(flat_items(now.identity()))
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return {name: f"{name} = {old.get(name)} (now {new.get(name)})" for name in names}
