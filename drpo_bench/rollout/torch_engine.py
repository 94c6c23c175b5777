"""The torch engine: batched sampling with a KV cache on any device, in any precision, real or emulated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from drpo_bench import precision
from drpo_bench.models import head_logits
from drpo_bench.ops import scale_logits
from drpo_bench.precision_configs import RolloutPrecision
from drpo_bench.precision_experts import compute_experts_with, expert_weights, quantised_input_product
from drpo_bench.rollout.decoder import CacheDecoder, Decoder, left_padded
from drpo_bench.rollout.decoder_qwen3 import Qwen3Decoder, Rounding, supports
from drpo_bench.rollout.engine import Response, Sampling, uniforms
from drpo_bench.rollout.route_log import RouteLog

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# (rows [N], position, logits [N, V]) to the rows' next tokens [N], log softmax [N, V], and which rows end there [N].
Choose = Callable[[Tensor, int, Tensor], tuple[Tensor, Tensor, Tensor]]
COMPACT_BELOW = 0.8  # rows that finished leave the batch once fewer than this share of its rows are active


class TorchEngine:
    """Samples with a model of its own; `shared` engines sample from the model they were given, as it is."""

    description = "torch"
    version = 0

    def __init__(self, model: PreTrainedModel, config: RolloutPrecision, device: torch.device) -> None:
        self.config, self.device = config, device
        native = precision.is_native(config.dtype, device)
        self.emulated = bool(precision.emulated_rollout(config, device))
        self.model = copy.deepcopy(model).to(device).eval().requires_grad_(False)
        if native:
            precision.cast_parameters(self.model, config.dtype)
        else:
            precision.emulate_compute(self.model, config.dtype)
        linears = precision.decoder_linears(self.model)
        if config.fp8_activations:
            precision.quantise_inputs(linears)
            compute_experts_with(self.model, quantised_input_product)
        summed = {id(linear.weight): -1 for linear in linears} | expert_weights(self.model)
        fp8_dims = summed if config.fp8_weights else {}
        self._fp8_dims = [fp8_dims.get(id(parameter)) for parameter in self.model.parameters()]
        self.rounding = Rounding("fp32" if native else config.dtype, config.fp8_activations, config.fp8_kv)
        self.load_weights(model)

    @classmethod
    def shared(cls, model: PreTrainedModel, device: torch.device, dtype: str = "fp32") -> TorchEngine:
        """An engine that samples from `model` itself, whatever its weights and hooks are at that moment.

        `dtype` is the format that `model` computes in, as `Policy` sets it up: by hooks where it is emulated.
        """
        engine = cls.__new__(cls)
        engine.model, engine.device = model, device
        engine.emulated = bool(precision.emulated_trainer(dtype, device))
        compute = precision.compute_format(dtype)
        grid = "fp32" if precision.is_native(compute, device) else compute
        engine.rounding = Rounding(grid, fp8_training=dtype == "fp8")
        return engine

    @torch.no_grad()
    def load_weights(self, model: PreTrainedModel, version: int = 0) -> None:
        """Take over the weights of an fp32 model, cast to this engine's formats."""
        self.version = version
        for target, source, dim in zip(self.model.parameters(), model.parameters(), self._fp8_dims, strict=True):
            target.copy_(precision.cast_weights(source, self.config.dtype, dim))

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], group_size: int, seeds: np.ndarray, sampling: Sampling
    ) -> list[list[Response]]:
        """`group_size` responses for each of the P prompts; `seeds` [P, G], one a response."""
        randoms = uniforms(seeds.reshape(-1), sampling.max_new_tokens)
        random = torch.from_numpy(randoms).to(self.device)  # [rows, max_new_tokens]
        stop_ids = torch.tensor(sampling.stop_ids, device=self.device, dtype=torch.long)

        def choose(rows: Tensor, position: int, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            chosen, log_probs = sample(logits, random[rows, position], sampling.temperature)
            return chosen, log_probs, torch.isin(chosen, stop_ids)

        tokens, logprobs, likeliest, routes = self._decode(prompts, group_size, sampling, choose)
        lengths, stopped = response_lengths(tokens, stop_ids)
        finished = zip(
            tokens.tolist(), logprobs.cpu(), likeliest.rows(), lengths.tolist(), stopped.tolist(), strict=True
        )
        responses = [
            Response(tuple(ids[:length]), values[:length].clone(), not stop, *topk.cut(length), routes.of(row, length))
            for row, (ids, values, topk, length, stop) in enumerate(finished)
        ]
        return [responses[start : start + group_size] for start in range(0, len(responses), group_size)]

    @torch.no_grad()
    def score_responses(
        self, prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Response]], sampling: Sampling
    ) -> list[list[Response]]:
        """The same loop, its tokens given: exactly the logprobs that the engine reports while it samples them.

        Bit for bit where the batch is the same, since the shape of a product can change the order of its sum.
        """
        given = [response for group in groups for response in group]
        lengths = torch.tensor([len(response.token_ids) for response in given], device=self.device)
        forced = torch.zeros(len(given), sampling.max_new_tokens, dtype=torch.long, device=self.device)
        for row, response in enumerate(given):
            forced[row, : len(response.token_ids)] = torch.tensor(response.token_ids, device=self.device)

        def choose(rows: Tensor, position: int, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            log_probs = scale_logits(logits, sampling.temperature or 1.0).log_softmax(-1)
            return forced[rows, position], log_probs, position + 1 >= lengths[rows]

        _, logprobs, likeliest, routes = self._decode(prompts, len(groups[0]), sampling, choose)
        scored = []
        for row, (response, values, topk) in enumerate(zip(given, logprobs.cpu(), likeliest.rows(), strict=True)):
            length = len(response.token_ids)
            parts = *topk.cut(length), routes.of(row, length)
            scored.append(Response(response.token_ids, values[:length].clone(), response.truncated, *parts))
        return [scored[start : start + len(groups[0])] for start in range(0, len(scored), len(groups[0]))]

    def _decode(
        self, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling, choose: Choose
    ) -> tuple[Tensor, Tensor, TopK, RouteLog]:
        """Tokens and their logprobs [rows, max_new_tokens], the likeliest at each position, and the experts chosen.

        What stands past a row's end means nothing. The prompt is prefilled once for all its samples;
        rows that finish are dropped.
        """
        was_training = self.model.training
        self.model.eval()
        decoder = self._decoder()
        prompt_ids, prompt_mask = left_padded(prompts, self.device)
        hidden = decoder.prefill(prompt_ids, prompt_mask, sampling.max_new_tokens)
        rows = len(prompts) * group_size
        repeat = torch.arange(len(prompts), device=self.device).repeat_interleave(group_size)
        routes = RouteLog(decoder.routes, prompt_mask, repeat, sampling.max_new_tokens)
        decoder.expand(repeat)
        positions = prompt_mask.sum(1)[repeat]  # [rows], of the next token

        tokens = torch.zeros(rows, sampling.max_new_tokens, dtype=torch.long, device=self.device)
        logprobs = torch.zeros(rows, sampling.max_new_tokens, device=self.device)
        likeliest = TopK.allocate(self.model, rows, sampling, self.device)
        alive = torch.arange(rows, device=self.device)  # rows still in the batch
        active = torch.ones(rows, dtype=torch.bool, device=self.device)  # of these, which have not ended
        logits = head_logits(self.model, hidden)[repeat]
        for step in range(sampling.max_new_tokens):
            chosen, log_probs, ends = choose(alive, step, logits)
            tokens[alive, step] = chosen
            logprobs[alive, step] = log_probs.gather(-1, chosen[:, None]).squeeze(1)
            likeliest.store(alive, step, log_probs)
            active &= ~ends
            num_active = int(active.sum())
            if num_active == 0 or step + 1 == sampling.max_new_tokens:
                break
            if num_active < COMPACT_BELOW * len(alive):
                keep = active.nonzero().squeeze(1)
                decoder.select(keep)
                alive, active, chosen, positions = alive[keep], active[keep], chosen[keep], positions[keep]
            logits = head_logits(self.model, decoder.step(chosen, positions + step))
            routes.store(alive, step, decoder.routes)
        self.model.train(was_training)
        return tokens, logprobs, likeliest, routes

    def close(self) -> None:
        """Nothing to give back that Python does not."""

    def _decoder(self) -> Decoder:
        """The fastest decoder that computes what the model computes."""
        if supports(self.model, self.rounding):
            return Qwen3Decoder(self.model, self.rounding)
        return CacheDecoder(self.model, self.rounding.fp8_kv)


def response_lengths(tokens: Tensor, stop_ids: Tensor) -> tuple[Tensor, Tensor]:
    """How far each row of sampled tokens [N, T] counts, to its first stop token, and whether there is one."""
    is_stop = torch.isin(tokens, stop_ids)
    stopped = is_stop.any(1)
    return torch.where(stopped, is_stop.int().argmax(1) + 1, tokens.shape[1]), stopped


def sample(logits: Tensor, random: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Token ids [N] and the float32 logprobs [N, V] they come from, by the inverse of the distribution function.

    `random` [N] in [0, 1). The sum runs in float64: in float32 the tail of a large vocabulary would be lost.
    """
    if temperature == 0.0:
        log_probs = scale_logits(logits, 1.0).log_softmax(-1)
        chosen = log_probs.argmax(-1)
    else:
        log_probs = scale_logits(logits, temperature).log_softmax(-1)
        cumulative = log_probs.exp().cumsum(-1, dtype=torch.float64)
        threshold = random[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, threshold, right=True).squeeze(1)
        chosen = chosen.clamp_(max=logits.shape[-1] - 1)
    return chosen, log_probs


@dataclass(frozen=True)
class TopK:
    """Ids and logprobs of the likeliest tokens at each position of each row; K may be 0."""

    ids: Tensor  # [rows, positions, K], or [positions, K] of one row
    logprobs: Tensor

    @classmethod
    def allocate(cls, model: PreTrainedModel, rows: int, sampling: Sampling, device: torch.device) -> TopK:
        """Room for `sampling.topk` tokens at each position, or for the whole vocabulary where that is smaller."""
        shape = (rows, sampling.max_new_tokens, min(sampling.topk, model.config.vocab_size))
        return cls(torch.zeros(shape, dtype=torch.long, device=device), torch.zeros(shape, device=device))

    def store(self, rows: Tensor, position: int, log_probs: Tensor) -> None:
        """Keep the likeliest tokens of the distributions log_probs [rows, V]."""
        if count := self.ids.shape[2]:
            self.logprobs[rows, position], self.ids[rows, position] = log_probs.topk(count)

    def rows(self) -> list[TopK]:
        """One for each row, on the CPU."""
        return [TopK(*pair) for pair in zip(self.ids.cpu(), self.logprobs.cpu(), strict=True)]

    def cut(self, length: int) -> tuple[Tensor | None, Tensor | None]:
        """The fields of a response of this length; None where K is 0."""
        return (self.ids[:length].clone(), self.logprobs[:length].clone()) if self.ids.shape[-1] else (None, None)
