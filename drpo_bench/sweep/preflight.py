"""Checks before anything is written: datasets can be read, models exist, the machine has what is asked for."""

from __future__ import annotations

from pathlib import Path

from drpo_bench.config import SIZES, RunConfig
from drpo_bench.errors import UserError, did_you_mean
from drpo_bench.limits import changes_logits, model_type
from drpo_bench.sweep.engine_checks import check_engine, check_gpu_memory
from drpo_bench.sweep.plan import Experiment
from drpo_bench.tasks import distinct_problems, make_task


def preflight(experiment: Experiment, elsewhere: bool = False) -> None:
    """Raise UserError for what would make every run of the sweep fail at its start.

    What only the machines tell that train is left to them where those are `elsewhere`.
    """
    for run in {run.model.name: run for run in experiment.runs}.values():
        check_model(run, experiment.source)
    for run in {(run.task.model_dump_json(), run.eval.problems): run for run in experiment.runs}.values():
        try:
            task = make_task(run.task)
            distinct_problems(task, "eval", 0, run.eval.problems, "eval.problems")
            if run.model.from_scratch:
                distinct_problems(task, "train", 0, run.warmstart.eval_problems, "warmstart.eval_problems")
        except ValueError as error:
            raise UserError(f"{experiment.source}: {error}") from None
    if elsewhere:
        return
    for run in experiment.runs:
        check_engine(run, experiment.source)
    on_gpu = {(run.model.name, run.rollout): run for run in experiment.runs if run.runtime.device == "cuda"}
    if on_gpu:
        memory = check_cuda(experiment.source)
        for run in on_gpu.values():
            check_gpu_memory(run, experiment.source, memory)
    for run in {(run.precision, run.rollout.engine, run.runtime): run for run in experiment.runs}.values():
        check_formats(run, experiment.source)


def check_formats(run: RunConfig, source: str) -> None:
    """The device has the run's number formats, or may emulate them; torch is imported only where that is in doubt."""
    has_gpu_fp8 = run.runtime.device == "cuda" and (run.precision.trainer == "fp8" or run.precision.rollout.has_fp8)
    if run.runtime.allow_emulation and not has_gpu_fp8:
        return
    import torch

    from drpo_bench.precision import is_native, refuse_emulation
    from drpo_bench.precision_fp8 import require_torchao
    from drpo_bench.rollout.vllm_setup import quantization

    device = torch.device(run.runtime.device)
    try:
        if run.precision.trainer == "fp8" and is_native("fp8", device):
            require_torchao()
        if run.rollout.engine == "vllm":
            quantization(run.precision.rollout, device)
        if not run.runtime.allow_emulation:
            refuse_emulation(run.precision, run.rollout.engine, device)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None


def check_cuda(source: str) -> int:
    """A GPU that torch can use, and its memory in bytes; torch is imported only where one is asked for."""
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"{source}: runtime.device: cuda, but torch {torch.__version__} finds no GPU here")
    return int(torch.cuda.get_device_properties(0).total_memory)


def check_model(run: RunConfig, source: str) -> None:
    """A size, an existing directory, or a hub id with its owner."""
    name = run.model.name
    if run.model.from_scratch:
        return
    if Path(name).is_dir():
        if (Path(name) / "status.json").exists():
            raise UserError(f"{source}: model.name: {name} is a run; name one of its checkpoints/step_<n>")
        if not (Path(name) / "config.json").exists():
            raise UserError(f"{source}: model.name: {name} has no config.json, so it is no checkpoint")
        check_architecture(run, source)
        return
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        hint = did_you_mean(name, SIZES)
        raise UserError(f"{source}: model.name: {name!r} is no size, directory or hub id (owner/name){hint}")


def check_architecture(run: RunConfig, source: str) -> None:
    """A checkpoint of a causal language model that transformers knows; transformers is imported only for one."""
    from transformers import AutoConfig, __version__
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    architecture = model_type(run)
    if architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        hint = did_you_mean(architecture, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise UserError(
            f"{source}: model.name: {run.model.name} is of type {architecture!r}, which is no causal language model of "
            f"transformers {__version__}{hint}"
        )
    fields = AutoConfig.from_pretrained(run.model.name).to_dict()
    problem = changes_logits(fields)
    if architecture in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not fields.get("is_decoder"):
        problem = f"type {architecture!r} is an encoder: it looks ahead"
    if problem:
        raise UserError(f"{source}: model.name: {run.model.name}: {problem}")
