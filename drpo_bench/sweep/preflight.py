"""Checks before anything is written: datasets can be read, models exist, the machine has what is asked for."""

from __future__ import annotations

from pathlib import Path

from drpo_bench.config import SIZES, RunConfig
from drpo_bench.errors import UserError, did_you_mean
from drpo_bench.sweep.plan import Experiment
from drpo_bench.tasks import make_task


def preflight(experiment: Experiment) -> None:
    """Raise UserError for what would make every run of the sweep fail at its start."""
    for run in {run.model.name: run for run in experiment.runs}.values():
        check_model(run, experiment.source)
    for run in {run.task.model_dump_json(): run for run in experiment.runs}.values():
        try:
            make_task(run.task).problem("train", run.seed, 0)
        except ValueError as error:
            raise UserError(f"{experiment.source}: {error}") from None


def check_model(run: RunConfig, source: str) -> None:
    """A size, an existing directory, or a hub id with its owner."""
    name = run.model.name
    if run.model.from_scratch or Path(name).is_dir():
        return
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        hint = did_you_mean(name, SIZES)
        raise UserError(f"{source}: model.name: {name!r} is no size, directory or hub id (owner/name){hint}")
