"""Policies: from-scratch models by size, Hugging Face checkpoints, and the trainer's two copies of the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drpo_bench import precision, precision_fp8
from drpo_bench.architectures import architecture_config
from drpo_bench.batching import MicroBatch
from drpo_bench.config import ModelConfig
from drpo_bench.packed.qwen3 import hidden_states
from drpo_bench.qwen3 import is_hooked, is_plain_qwen3

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}


def wrap_tokenizer(tokenizer: Any) -> PreTrainedTokenizerFast:
    """A task's `tokenizers.Tokenizer` as transformers loads and saves it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL_TOKENS)


def build_model(config: ModelConfig, vocab_size: int, seed: int) -> PreTrainedModel:
    """A freshly initialised fp32 model of one of the sizes; a pure function of its arguments."""
    from transformers import AutoModelForCausalLM

    model_config = architecture_config(config.architecture, config.name, vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)
    return model


def load_checkpoint(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A checkpoint directory or hub id, in fp32 with its tokenizer."""
    from transformers import AutoTokenizer

    return load_weights(name), AutoTokenizer.from_pretrained(name)


def load_weights(name: str | Path) -> PreTrainedModel:
    """The model of a checkpoint in fp32. Raises ValueError where weights are missing: they would be random."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    missing = sorted(set(info["missing_keys"]) | {str(key) for key in info["mismatched_keys"]})
    if missing:
        raise ValueError(f"{name}: weights are missing or of another shape: {', '.join(missing)}")
    loaded: PreTrainedModel = model
    return loaded


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Weights (safetensors), config and tokenizer, as `AutoModelForCausalLM.from_pretrained` reads them."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def response_hidden(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """What the head reads, [N, H], where it predicts the response tokens of the micro-batch.

    A plain Qwen3 on a CPU computes no padding and each prompt once; anything else its own padded forward pass.
    """
    if model.device.type == "cpu" and is_plain_qwen3(model) and not is_hooked(model):
        # `index_select`: its gradient is a sum in a fixed order, where a prompt's last token is read for every sample.
        return hidden_states(model, batch.packed).index_select(0, batch.packed.gather)
    return padded_hidden(model, batch.input_ids, batch.gather)


def padded_hidden(model: PreTrainedModel, input_ids: Tensor, gather: Tensor) -> Tensor:
    """What the head reads, [N, H], at the flattened positions `gather` of right-padded `input_ids` [B, T].

    Only the positions asked for will reach the head. No attention mask: padding stands on the right,
    where causal attention never looks.
    """
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[gather]  # type: ignore[no-any-return]


def padded_logits(model: PreTrainedModel, input_ids: Tensor, gather: Tensor) -> Tensor:
    """float32 logits [N, V] at the flattened positions `gather` of right-padded `input_ids` [B, T]."""
    return head_logits(model, padded_hidden(model, input_ids, gather))


def head_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The model's head in float32: [N, H] -> [N, V]."""
    return float32_head(model, hidden.dtype)(hidden)


def float32_head(model: PreTrainedModel, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The head as a function of hidden states of this dtype, whose weight is cast to float32 once.

    So the gradients of several calls add up in float32. In float32 it is the module itself, with its hooks.
    """
    head = model.get_output_embeddings()
    if dtype in (torch.float32, torch.float64):
        return head  # type: ignore[no-any-return]
    weight, bias = head.weight.float(), None if head.bias is None else head.bias.float()
    return lambda hidden: F.linear(hidden.float(), weight, bias)


class Policy:
    """The trained policy: fp32 master weights, and a model that computes in the trainer's precision.

    `model` and the masters are the same tensors in fp32. Otherwise the model holds the masters rounded,
    gradients are gathered into the masters in fp32, and `publish` rounds the updated masters again.
    """

    def __init__(self, master: PreTrainedModel, dtype: str, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.master = master.to(device)
        self.emulated = bool(precision.emulated_trainer(dtype, device))
        if dtype == "fp32":
            self.model = self.master
            return
        compute = precision.compute_format(dtype)
        native = precision.is_native(compute, device)
        self.grid = "fp32" if native else compute  # what weights and gradients are rounded onto, held in fp32
        self.model = copy.deepcopy(self.master)
        if native:
            precision.cast_parameters(self.model, compute)
        else:
            precision.emulate_compute(self.model, compute)
        if dtype == "fp8":
            precision_fp8.train_in_fp8(self.model, device)
        self.publish()

    def pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """(master, compute) parameters; tied ones once."""
        return zip(self.master.parameters(), self.model.parameters(), strict=True)

    @torch.no_grad()
    def gather_gradients(self) -> None:
        """Add the compute model's gradients to the masters', in fp32, and clear them."""
        if self.model is self.master:
            return
        for master, compute in self.pairs():
            if compute.grad is not None:
                grad = precision.round_to(compute.grad.float(), self.grid)
                master.grad = grad if master.grad is None else master.grad.add_(grad)
                compute.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the compute model."""
        if self.model is self.master:
            return
        for master, compute in self.pairs():
            compute.copy_(precision.round_to(master, self.grid))
