"""The torch engine: batched sampling with a KV cache on any device, in any precision, real or emulated."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from drpo_bench import precision
from drpo_bench.models import head_logits
from drpo_bench.ops import scale_logits
from drpo_bench.precision_configs import RolloutPrecision
from drpo_bench.rollout.engine import Response, Sampling, uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPACT_BELOW = 0.8  # rows that finished leave the batch once fewer than this share of its rows are active


class TorchEngine:
    """Samples with a model of its own; `shared` engines sample from the model they were given, as it is."""

    def __init__(self, model: PreTrainedModel, config: RolloutPrecision, device: torch.device) -> None:
        self.config, self.device = config, device
        native = precision.is_native(config.dtype, device)
        self.emulated = not native or config.fp8_weights or config.fp8_activations
        self.model = copy.deepcopy(model).to(device).eval().requires_grad_(False)
        if native:
            self.model.to(precision.DTYPES[config.dtype])
        else:
            precision.emulate_compute(self.model, config.dtype)
        linears = precision.decoder_linears(self.model)
        if config.fp8_activations:
            precision.quantise_inputs(linears)
        fp8_names = {id(linear.weight) for linear in linears} if config.fp8_weights else set()
        self._fp8 = [id(parameter) in fp8_names for parameter in self.model.parameters()]
        self.load_weights(model)

    @classmethod
    def shared(cls, model: PreTrainedModel, device: torch.device) -> TorchEngine:
        """An engine that samples from `model` itself, whatever its weights and hooks are at that moment."""
        engine = cls.__new__(cls)
        engine.model, engine.device, engine.emulated = model, device, False
        return engine

    @torch.no_grad()
    def load_weights(self, model: PreTrainedModel) -> None:
        """Take over the weights of an fp32 model, cast to this engine's formats."""
        for target, source, fp8 in zip(self.model.parameters(), model.parameters(), self._fp8, strict=True):
            target.copy_(precision.cast_weights(source, self.config.dtype, fp8))

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], group_size: int, seeds: np.ndarray, sampling: Sampling
    ) -> list[list[Response]]:
        """`group_size` responses for each of the P prompts; `seeds` [P, G], one a response.

        The prompt is prefilled once and its cache copied to its samples; rows that finish are dropped.
        """
        was_training = self.model.training
        self.model.eval()
        prompt_mask, hidden, cache = self._prefill(prompts)
        rows = len(prompts) * group_size
        repeat = torch.arange(len(prompts), device=self.device).repeat_interleave(group_size)
        cache.batch_select_indices(repeat)
        mask = torch.ones(rows, prompt_mask.shape[1] + sampling.max_new_tokens, device=self.device, dtype=torch.long)
        mask[:, : prompt_mask.shape[1]] = prompt_mask[repeat]
        positions = prompt_mask.sum(1)[repeat]  # [rows], of the next token
        randoms = np.stack([uniforms(seed, sampling.max_new_tokens) for seed in seeds.reshape(-1)])
        random = torch.from_numpy(randoms).to(self.device)  # [rows, max_new_tokens]

        stop_ids = torch.tensor(sampling.stop_ids, device=self.device)
        tokens = torch.zeros(rows, sampling.max_new_tokens, dtype=torch.long, device=self.device)
        logprobs = torch.zeros(rows, sampling.max_new_tokens, device=self.device)
        lengths = torch.full((rows,), sampling.max_new_tokens, device=self.device)
        stopped = torch.zeros(rows, dtype=torch.bool, device=self.device)
        alive = torch.arange(rows, device=self.device)  # rows still in the batch
        logits = head_logits(self.model, hidden)[repeat]
        for step in range(sampling.max_new_tokens):
            chosen, chosen_logprobs = sample(logits, random[alive, step], sampling.temperature)
            tokens[alive, step], logprobs[alive, step] = chosen, chosen_logprobs
            done = torch.isin(chosen, stop_ids) & ~stopped[alive]
            lengths[alive[done]], stopped[alive[done]] = step + 1, True
            active = ~stopped[alive]
            num_active = int(active.sum())
            if num_active == 0 or step + 1 == sampling.max_new_tokens:
                break
            if num_active < COMPACT_BELOW * len(alive):
                keep = active.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                alive, chosen = alive[keep], chosen[keep]
            width = prompt_mask.shape[1] + step + 1
            output = self.model.base_model(
                input_ids=chosen[:, None],
                attention_mask=mask[alive, :width],
                position_ids=(positions[alive] + step)[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            logits = head_logits(self.model, output.last_hidden_state[:, -1])
        self.model.train(was_training)
        return _responses(tokens.cpu(), logprobs.cpu(), lengths.tolist(), stopped.tolist(), group_size)

    def _prefill(self, prompts: Sequence[Sequence[int]]):  # type: ignore[no-untyped-def]
        """Left-padded prompts through the model: mask [P, T], last hidden state [P, H], cache."""
        width = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        output = self.model.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
        )
        return mask, output.last_hidden_state[:, -1], output.past_key_values


def sample(logits: Tensor, random: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Token ids [N] and their float32 logprobs [N] from logits [N, V], by the inverse of the distribution function.

    `random` [N] in [0, 1). The sum runs in float64: in float32 the tail of a large vocabulary would be lost.
    """
    if temperature == 0.0:
        log_probs = scale_logits(logits, 1.0).log_softmax(-1)
        chosen = log_probs.argmax(-1)
    else:
        log_probs = scale_logits(logits, temperature).log_softmax(-1)
        cumulative = log_probs.double().exp_().cumsum(-1)
        threshold = random[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, threshold, right=True).squeeze(1)
        chosen = chosen.clamp_(max=logits.shape[-1] - 1)
    return chosen, log_probs.gather(-1, chosen[:, None]).squeeze(1)


def _responses(
    tokens: Tensor, logprobs: Tensor, lengths: list[int], stopped: list[bool], group_size: int
) -> list[list[Response]]:
    rows = [
        Response(tuple(ids[:length]), values[:length].clone(), not stop)
        for ids, values, length, stop in zip(tokens.tolist(), logprobs, lengths, stopped, strict=True)
    ]
    return [rows[start : start + group_size] for start in range(0, len(rows), group_size)]
