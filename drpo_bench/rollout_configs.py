"""The `[rollout]` table: how rollouts are sampled, and by which engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from drpo_bench.task_configs import Frozen


class VllmConfig(Frozen):
    """vLLM's own settings; they count only where `rollout.engine` is vllm."""

    max_num_seqs: int = Field(default=256, ge=1, description="Sequences decoded at a time.")
    max_prompt_tokens: int = Field(default=512, ge=1, description="A longer prompt is an error.")
    prefix_caching: bool = Field(
        default=True, description="Share the cache of equal prompts, where the architecture allows it."
    )
    gpu_memory_fraction: float = Field(
        default=0.4, gt=0, lt=1, description="Of the GPU's memory, which trainer and engine share."
    )
    sleep: bool = Field(default=True, description="On a GPU, give the engine's memory to the trainer between rollouts.")


class RolloutConfig(Frozen):
    """How rollouts are sampled."""

    engine: Literal["torch", "vllm"] = Field(default="torch", description="The engine that samples.")
    vllm: VllmConfig = VllmConfig()
    problems_per_batch: int = Field(default=64, ge=1, description="Problems a rollout batch.")
    group_size: int = Field(default=8, ge=2, description="Responses a problem.")
    max_new_tokens: int = Field(default=64, ge=1, description="A longer response is truncated.")
    temperature: float = Field(default=1.0, gt=0, description="Logits are divided by it, in engine and trainer.")
    top_p: float = Field(default=1.0, description="Only 1: below it the sampler renormalises mu.")
    lag: int = Field(default=0, ge=0, description="Batches between sampling and training on it.")
    dynamic_sampling: bool = Field(
        default=False, description="Replace groups that are all right or all wrong by further problems (DAPO)."
    )
    max_sampling_rounds: int = Field(
        default=4,
        ge=1,
        description="Rounds of dynamic sampling; what is missing then is filled with such groups.",
    )

    @field_validator("top_p")
    @classmethod
    def _unrestricted(cls, top_p: float) -> float:
        if top_p != 1.0:
            raise ValueError(f"is {top_p:g}, must be 1: below it mu is renormalised and pi is not")
        return top_p
