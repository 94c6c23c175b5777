"""Where the compared weights come from: a checkpoint directory, a hub id, or the cached warm start of a size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from drpo_bench.config import SIZES, RunConfig, canonical
from drpo_bench.errors import UserError, did_you_mean, explain
from drpo_bench.model_check import check_model
from drpo_bench.models import load_checkpoint
from drpo_bench.records import read_json
from drpo_bench.warmstart import TargetMissed, ensure_warmstart

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def resolve(model: str, architecture: str | None, task: str | None, seed: int, threads: int, device: str) -> RunConfig:
    """The model and task as a run's config, so that a size finds the warm start that a run would train.

    A checkpoint of a run or a warm start brings its own task. Raises UserError; nothing is written or downloaded.
    """
    if model not in SIZES and not Path(model).is_dir() and "/" not in model:
        raise UserError(f"{model}: neither a checkpoint directory nor a size{did_you_mean(model, SIZES)}")
    if (Path(model) / "status.json").exists():
        raise UserError(f"{model}: is a run; name one of its checkpoints/step_<n>")
    if architecture and model not in SIZES:
        raise UserError(f"--architecture {architecture}: {model} is no size and has its own")
    recorded = recorded_task(Path(model)) if Path(model).is_dir() else None
    if task is None or (recorded and recorded["name"] == task):
        table = recorded or {"name": task or "arithmetic"}
    else:
        table = {"name": task}
    data = {
        "experiment": {"name": "mismatch"},
        "seed": seed,
        "model": {"name": model, "architecture": architecture or "qwen3"},
        "task": table,
        "runtime": {"threads": threads, "device": device},
    }
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise explain(error, "mismatch", RunConfig) from None


def recorded_task(directory: Path) -> dict[str, Any] | None:
    """The `[task]` table that a warm start or a run's checkpoint was trained on; None of other checkpoints."""
    for path in (directory / "warmstart.json", directory.parent.parent / "config.json"):
        data = read_json(path) if path.exists() else {}
        if isinstance(data.get("task"), dict):
            return dict(data["task"])
    return None


def load_weights(
    config: RunConfig, warmstarts: Path, report: Callable[[int, float], None]
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The fp32 model and its tokenizer; a size's warm start is trained now unless `warmstarts` has it."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # the command shows its own
    name = config.model.name
    try:
        if config.model.from_scratch:
            name = str(ensure_warmstart(config, warmstarts, report).directory)
        model, tokenizer = load_checkpoint(name)
        if not config.model.from_scratch:
            check_model(model, name)
    except TargetMissed as error:
        raise UserError(f"{config.model.name}: {error}; name a checkpoint instead") from None
    except ValueError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{name}: no checkpoint that can be loaded: {str(error).splitlines()[0]}") from None
    return model.eval(), tokenizer


def describe(config: RunConfig, model: PreTrainedModel) -> dict[str, Any]:
    """The model and task for mismatch.json."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    architecture = model.config.model_type
    return {
        "model": config.model.name,
        "architecture": architecture,
        "parameters": parameters,
        "task": canonical(config.task.model_dump()),
        "seed": config.seed,
        "threads": config.runtime.threads,
        "device": config.runtime.device,
    }
