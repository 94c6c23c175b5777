"""What a model's config.json tells of what cannot run, here or in vLLM 0.32; neither is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drpo_bench.architectures import CONTEXT
from drpo_bench.config import MIXTURES, RunConfig

NO_CPU_KERNEL = {  # model_type: why vLLM's CPU backend does not run it
    "deepseek_v3": "vLLM 0.32 does not load what transformers 5.19 saves",
    "qwen3_5_text": "its vLLM classes need torchvision, which has no build for a CPU torch here",
    "qwen3_5_moe_text": "its vLLM classes need torchvision, which has no build for a CPU torch here",
}

NO_FP16 = ("gemma2", "gemma3", "gemma3_text", "glm4", "plamo2")  # by vLLM's own decision


def vllm_misfit(run: RunConfig) -> str | None:
    """Why vLLM cannot take this run's formats or architecture, and the remedy; None if it can."""
    rollout, architecture = run.precision.rollout, model_type(run)
    if rollout.fp8_weights != rollout.fp8_activations:
        return "precision.rollout: vLLM quantises weights and activations together; set fp8_weights and fp8_activations"
    longest = run.rollout.vllm.max_prompt_tokens + run.rollout.max_new_tokens
    if run.model.from_scratch and longest > CONTEXT:
        return (
            f"rollout.vllm.max_prompt_tokens and rollout.max_new_tokens together ({longest}) are more than the "
            f"{CONTEXT} positions of a from-scratch model; lower one"
        )
    if architecture in NO_FP16 and rollout.dtype == "fp16":
        return f"precision.rollout.dtype: vLLM refuses fp16 for {architecture}, as unstable; set it to 'bf16'"
    if run.runtime.device != "cpu":
        return None  # what the GPU can do is asked where torch is at hand: see check_formats
    if rollout.fp8_weights and rollout.dtype == "fp32":
        return "precision.rollout.dtype: vLLM's fp8 on a CPU starts from bf16 or fp16, not from fp32"
    if rollout.fp8_weights and (architecture in MIXTURES or has_experts(run)):
        return f"precision.rollout: vLLM's CPU backend has no fp8 for the experts of {architecture}; set another preset"
    if architecture == "qwen3_next" and rollout.dtype != "bf16":
        return "precision.rollout.dtype: vLLM's CPU kernels compute qwen3_next in bf16 only; set it to 'bf16'"
    if reason := NO_CPU_KERNEL.get(architecture):
        return f"model: vLLM's CPU backend does not run {architecture}: {reason}"
    return None


def changes_logits(fields: dict[str, Any]) -> str | None:
    """Why a model of this config is refused: its logits are not its head's, which trainer and engine here take."""
    for field in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if fields.get(field) not in (None, 1, 1.0):
            return f"{field} = {fields[field]:g} caps or scales the logits of its head, which trainer and engine do not"
    return None


def model_type(run: RunConfig) -> str:
    """The architecture: of a checkpoint directory what its config.json says; of a hub id nothing is known yet."""
    if run.model.from_scratch:
        return run.model.architecture
    config = Path(run.model.name) / "config.json"
    return str(json.loads(config.read_text()).get("model_type", "")) if config.exists() else ""


def has_experts(run: RunConfig) -> bool:
    """Whether a checkpoint directory's config.json tells of experts."""
    config = Path(run.model.name) / "config.json"
    if run.model.from_scratch or not config.exists():
        return False
    fields = json.loads(config.read_text())
    return any(fields.get(name) for name in ("num_experts_per_tok", "num_local_experts", "n_routed_experts"))
