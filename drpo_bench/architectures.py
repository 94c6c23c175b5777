"""Architectures of from-scratch models: each a transformers config at the sizes of `SIZES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Sizes of from-scratch models; parameters of a Qwen3 without the embedding: 0.2 M, 1.1 M, 5.2 M, 29.5 M. Heads are as
# wide as vLLM's CPU kernels and their fp8 cache allow: multiples of 32.
SIZES: dict[str, dict[str, int]] = {
    "nano": {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256},
    "micro": {"hidden_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 432},
    "mini": {"hidden_size": 320, "num_hidden_layers": 5, "num_attention_heads": 10, "intermediate_size": 768},
    "small": {"hidden_size": 640, "num_hidden_layers": 8, "num_attention_heads": 10, "intermediate_size": 1280},
}
HEAD_DIM = {"nano": 32, "micro": 32, "mini": 32, "small": 64}
CONTEXT = 2048
EXPERTS, ACTIVE = 8, 2  # of a mixture: each expert a quarter of the dense MLP, so that two cost half of it
EXPERT_SHARE = 4


def common(size: str) -> dict[str, Any]:
    """What every architecture here is given: grouped queries, tied embedding, the project's special tokens."""
    fields = SIZES[size]
    return fields | {
        "num_key_value_heads": fields["num_attention_heads"] // 2,
        "head_dim": HEAD_DIM[size],
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "initializer_range": fields["hidden_size"] ** -0.5,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def mixture(size: str) -> dict[str, Any]:
    """Experts in every layer; the load-balancing loss is off, as in RL."""
    return common(size) | {
        "moe_intermediate_size": SIZES[size]["intermediate_size"] // EXPERT_SHARE,
        "num_experts": EXPERTS,
        "num_experts_per_tok": ACTIVE,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def hybrid(size: str) -> dict[str, Any]:
    """Gated delta net in all layers but each second one (each fourth where there are eight), which has attention.

    vLLM's CPU kernel takes linear heads of 64 or 128 only.
    """
    layers = SIZES[size]["num_hidden_layers"]
    return mixture(size) | {
        "full_attention_interval": 4 if layers >= 8 else 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "linear_conv_kernel_dim": 4,
        "shared_expert_intermediate_size": SIZES[size]["intermediate_size"] // EXPERT_SHARE,
    }


def sliding(size: str) -> dict[str, Any]:
    """Every second layer sees 32 tokens only."""
    layers = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(SIZES[size]["num_hidden_layers"])]
    return common(size) | {
        "sliding_window": 32,
        "layer_types": layers,
        "query_pre_attn_scalar": HEAD_DIM[size],
    }


def sinks(size: str) -> dict[str, Any]:
    """GPT-OSS: experts in every layer, attention sinks, every second layer's window 32 tokens."""
    fields = common(size)
    fields["intermediate_size"] //= EXPERT_SHARE
    return fields | {
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": ACTIVE,
        "sliding_window": 32,
        "rope_parameters": {
            "rope_type": "yarn",  # vLLM knows no other for this architecture
            "rope_theta": 10_000.0,
            "factor": 2.0,
            "original_max_position_embeddings": CONTEXT // 2,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    }


# model.architecture: (transformers' model_type, fields of its config for a size)
ARCHITECTURES: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
    "qwen3": ("qwen3", common),
    "llama": ("llama", common),
    "qwen3_moe": ("qwen3_moe", mixture),
    "qwen3_next": ("qwen3_next", hybrid),
    "gemma3": ("gemma3_text", sliding),
    "gpt_oss": ("gpt_oss", sinks),
}


def architecture_config(architecture: str, size: str, vocab_size: int) -> PreTrainedConfig:
    """The transformers config of a from-scratch model."""
    from transformers import CONFIG_MAPPING

    model_type, fields = ARCHITECTURES[architecture]
    config: PreTrainedConfig = CONFIG_MAPPING[model_type](vocab_size=vocab_size, **fields(size))
    return config
