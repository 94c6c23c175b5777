"""A recorded run, read from its directory once and checked; nothing is written there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from drpo_bench.config import NUMERICS_VERSION, SCHEMA_VERSION, RunConfig, load_run_config
from drpo_bench.errors import UserError, explain
from drpo_bench.records import DamagedFile, RunDir, extent, read_json, read_records
from drpo_bench.reproduce.compare import Record
from drpo_bench.sweep.plan import Experiment
from drpo_bench.sweep.preflight import preflight


@dataclass(frozen=True)
class Recorded:
    """What a run's files say. The run may still be going on; what it writes later does not count."""

    run_dir: RunDir
    config: RunConfig
    warmstart_sha256: str | None
    records: list[Record]
    environments: list[dict[str, Any]]  # the last one, then those that the run moved away from; none if not recorded
    status: dict[str, Any]
    was_altered: bool  # metrics.jsonl, after the run had ended

    @property
    def last_step(self) -> int:
        """The step of the last record."""
        return max(int(record["step"]) for record in self.records)


def read_run(path: Path) -> Recorded:
    """The run in `path`. Raises UserError for what cannot be replayed, and says why."""
    if not path.is_dir():
        raise UserError(f"{path}: no such directory")
    run_dir = RunDir(path)
    if not run_dir.config.exists():
        hint = "; name one of its runs/<run_id>" if (path / "runs").is_dir() else ""
        raise UserError(f"{path}: not a run directory: config.json is missing{hint}")
    data = read_json(run_dir.config)
    config = replayable_config(run_dir, data)
    preflight(Experiment(config.experiment, str(run_dir.config), (config,), ()))
    check_checkpoint(config, run_dir.config)
    records = list(read_records(run_dir.metrics))
    if not records:
        raise UserError(f"{run_dir.metrics}: no records yet, so there is nothing to compare")
    status = run_dir.status()
    altered = "records" in status and extent(run_dir.metrics) != status["records"][run_dir.metrics.name]
    return Recorded(run_dir, config, data.get("warmstart_sha256"), records, read_environments(run_dir), status, altered)


def replayable_config(run_dir: RunDir, data: Any) -> RunConfig:
    """The config of a config.json of this version that nobody has edited."""
    path = run_dir.config
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a file that drpo-bench wrote")
    schema, numerics = data.get("schema_version", 0), data.get("numerics_version", 0)
    if schema > SCHEMA_VERSION:
        raise UserError(f"{path}: written by a newer drpo-bench (schema {schema}, this one knows {SCHEMA_VERSION})")
    if numerics != NUMERICS_VERSION:
        raise UserError(
            f"{path}: computed with numerics version {numerics}, this drpo-bench computes {NUMERICS_VERSION}: "
            f"their numbers differ by design{writer(run_dir)}"
        )
    try:
        config = load_run_config(data)
    except ValidationError as error:
        raise explain(error, str(path), RunConfig) from None
    if config.run_id != data.get("run_id"):
        raise UserError(
            f"{path}: edited since the run began: its run_id is {data.get('run_id')}, its fields give {config.run_id}"
        )
    return config


def check_checkpoint(config: RunConfig, source: Path) -> None:
    """Raise UserError where the model is neither a size nor a directory, and the hub cannot give it either."""
    if config.model.from_scratch or Path(config.model.name).is_dir():
        return
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(config.model.name)
    except OSError:
        raise UserError(
            f"{source}: model.name: {config.model.name} is no directory here, and the hub cannot be asked or has none"
        ) from None


def read_environments(run_dir: RunDir) -> list[dict[str, Any]]:
    """The environments that the run was computed in; none where env.json is missing or damaged."""
    try:
        last = read_json(run_dir.env)
    except (DamagedFile, FileNotFoundError):
        return []
    return [last, *last.pop("earlier", [])] if isinstance(last, dict) else []


def writer(run_dir: RunDir) -> str:
    """`; replay it with commit ...`, where env.json tells it."""
    found = read_environments(run_dir)
    return f"; replay it with commit {found[0]['commit']}" if found and found[0].get("commit") else ""
