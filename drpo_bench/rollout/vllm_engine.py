"""The vLLM engine: in this process, weights handed over in memory, token ids in and out, processed logprobs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from drpo_bench.precision import emulated_rollout
from drpo_bench.precision_configs import RolloutPrecision
from drpo_bench.rollout.engine import Response, Sampling
from drpo_bench.rollout.vllm_routes import GATES, GateReader
from drpo_bench.rollout.vllm_setup import named_weights, start_llm, vllm_version
from drpo_bench.rollout_configs import VllmConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REBUILT = ("gpt_oss",)  # architectures whose experts vLLM cannot replace in place on a CPU


class VllmEngine:
    """Samples with vLLM's kernels from vLLM's own copy of the weights.

    Close it, or use it in a `with` block: vLLM gives its memory back only when it is told to. One at a time: closing an
    engine ends what all engines of the process share.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        precision: RolloutPrecision,
        config: VllmConfig,
        max_new_tokens: int,
        device: torch.device,
    ) -> None:
        self.description = vllm_version()
        self.emulated = bool(emulated_rollout(precision, device, "vllm"))
        self.precision, self.config, self.device = precision, config, device
        self.max_new_tokens = max_new_tokens
        self.shapes = {name: tuple(weight.shape) for name, weight in named_weights(model).items()}
        self.vocab_size = model.config.vocab_size
        self.version, self.asleep = 0, False
        self.sleeps = config.sleep and device.type == "cuda"
        self.rebuild = device.type == "cpu" and model.config.model_type in REBUILT
        self.experts = int(getattr(model.config, "num_experts_per_tok", None) or 0)
        self.reads_gates = model.config.model_type in GATES
        self._llm: Any = None
        self._start(model)

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self, model: PreTrainedModel) -> None:
        self._llm = start_llm(model, self.precision, self.config, self.max_new_tokens, self.device)
        self._finalizer = weakref.finalize(self, shut_down, self._llm)
        on_cpu = self.device.type == "cpu"
        self._gates = GateReader(self._llm, self.experts) if self.reads_gates and on_cpu else None

    def load_weights(self, model: PreTrainedModel, version: int = 0) -> None:
        """Take over the weights of an fp32 model, in memory; what was cached with the old ones is dropped.

        Raises ValueError where a tensor's name or shape is not what the engine was started with.
        """
        weights = named_weights(model)
        self._check_shapes(weights)
        self._wake()
        if self.rebuild:
            self.close()
            self._start(model)
        else:
            self._reload(weights)
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: rollouts would mix two policies")
        self.version = version

    def _reload(self, weights: dict[str, Tensor]) -> None:
        """vLLM's layerwise reload, with what its CPU backend leaves out: experts would be corrupt without a word."""
        if self.device.type == "cpu":
            self._llm.apply_model(unpack_experts)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})

    def generate(
        self, prompts: Sequence[Sequence[int]], group_size: int, seeds: np.ndarray, sampling: Sampling
    ) -> list[list[Response]]:
        """`group_size` responses for each of the P prompts; `seeds` [P, G], one a request."""
        self._check_lengths(prompts, sampling)
        self._wake()
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts for _ in range(group_size)]
        params = [self._params(sampling, int(seed)) for seed in seeds.reshape(-1)]
        topk = min(sampling.topk, self.vocab_size)
        outputs = self._llm.generate(requests, params, use_tqdm=False)
        assert len(outputs) == len(requests), f"vLLM returned {len(outputs)} of {len(requests)} responses"
        responses = [to_response(output.outputs[0], topk, self._routes(output)) for output in outputs]
        if self.sleeps:  # weights to the CPU's memory; level 2 would drop buffers too, which no hand-over renews
            self._llm.sleep(level=1)
            self.asleep = True
        return [responses[start : start + group_size] for start in range(0, len(responses), group_size)]

    def score_responses(
        self, prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Response]], sampling: Sampling
    ) -> list[list[Response]]:
        """vLLM's logprobs of given responses, from one prefill over prompt and response.

        These are the numbers of prefill. Where vLLM decodes with other kernels, it reported slightly different ones
        while it sampled (on a CPU the same, bit for bit). Cached prefixes are not read, for vLLM gives no logprobs of
        what it skips. Prompt logprobs are raw, so the temperature must be 1.
        """
        if sampling.temperature not in (0.0, 1.0):
            raise ValueError(f"temperature {sampling.temperature:g}: vLLM scores given responses at temperature 1 only")
        from vllm import SamplingParams

        given = [(prompt, r) for prompt, group in zip(prompts, groups, strict=True) for r in group]
        longest = max(len(prompt) + len(response.token_ids) for prompt, response in given)
        maximum = self._llm.model_config.max_model_len - 1  # vLLM has to sample a token after them
        if longest > maximum:
            raise ValueError(
                f"rollout.vllm.max_prompt_tokens: a sequence has {longest} tokens, {maximum} can be scored"
            )
        self._wake()
        topk = min(sampling.topk, self.vocab_size)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=topk,
            flat_logprobs=True,
            detokenize=False,
            skip_reading_prefix_cache=True,
        )
        requests = [{"prompt_token_ids": [*prompt, *response.token_ids]} for prompt, response in given]
        outputs = self._llm.generate(requests, params, use_tqdm=False)
        assert len(outputs) == len(requests), f"vLLM returned {len(outputs)} of {len(requests)} scores"
        scored = []
        for output, (prompt, response) in zip(outputs, given, strict=True):
            routes = self._routes(output)  # also of the response's last token, which was fed here
            own = None if routes is None else routes[:-1]
            scored.append(to_scored(output.prompt_logprobs, len(prompt), response, topk, own))
        return [scored[start : start + len(groups[0])] for start in range(0, len(scored), len(groups[0]))]

    def _params(self, sampling: Sampling, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_new_tokens,
            seed=seed >> 1,  # vLLM's seeds are signed
            stop_token_ids=list(sampling.stop_ids),
            ignore_eos=True,  # only the task's own stop tokens stop
            logprobs=min(sampling.topk, self.vocab_size),
            flat_logprobs=True,
            detokenize=False,
        )

    def _routes(self, output: Any) -> Tensor | None:
        """The experts chosen at each position of a finished request but the last, which is never fed."""
        length = len(output.prompt_token_ids) + len(output.outputs[0].token_ids) - 1
        if self._gates:
            return self._gates.take(output.request_id, length)
        routed = output.outputs[0].routed_experts  # vLLM's own report, on a GPU
        return None if routed is None else torch.from_numpy(routed)[:length].to(torch.int16)

    def _check_lengths(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        longest = max(len(prompt) for prompt in prompts)
        if longest > self.config.max_prompt_tokens:
            maximum = self.config.max_prompt_tokens
            raise ValueError(f"rollout.vllm.max_prompt_tokens: a prompt has {longest} tokens, {maximum} are allowed")
        if sampling.max_new_tokens > self.max_new_tokens:
            raise ValueError(f"max_new_tokens {sampling.max_new_tokens} is above the engine's {self.max_new_tokens}")

    def _check_shapes(self, weights: dict[str, Tensor]) -> None:
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        for name in sorted(shapes.keys() | self.shapes.keys()):
            ours, theirs = shapes.get(name), self.shapes.get(name)
            if ours != theirs:
                raise ValueError(f"weight {name}: the trainer's shape is {ours}, the engine was started with {theirs}")

    def _wake(self) -> None:
        if self.asleep:
            self._llm.wake_up()
            self.asleep = False

    def close(self) -> None:
        """Give the memory back; the engine is gone."""
        if self._llm is not None:
            self._llm = self._gates = None
            self._finalizer()


def shut_down(llm: Any) -> None:
    """End an engine that runs in this process."""
    llm.llm_engine.engine_core.shutdown()
    gc.collect()


def unpack_experts(model: Any) -> None:
    """Before a reload on a CPU: make vLLM pack the experts' weights again, which it does only while there is no
    kernel."""
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def to_response(output: Any, topk: int, routes: Tensor | None) -> Response:
    """vLLM's completion as a Response."""
    token_ids = tuple(output.token_ids)
    logprobs, ids, likeliest = read_flat(output.logprobs, 0, token_ids, topk)
    return Response(token_ids, logprobs, output.finish_reason == "length", ids, likeliest, routes)


def to_scored(flat: Any, prompt_length: int, response: Response, topk: int, routes: Tensor | None) -> Response:
    """A given response with vLLM's prompt logprobs, which begin with those of the prompt."""
    logprobs, ids, likeliest = read_flat(flat, prompt_length, response.token_ids, topk)
    return Response(response.token_ids, logprobs, response.truncated, ids, likeliest, routes)


def read_flat(
    flat: Any, first: int, token_ids: tuple[int, ...], topk: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Logprobs [n], ids and logprobs [n, K] of the likeliest, from position `first` of vLLM's flat logprobs.

    They hold at each position the token of the sequence, then the likeliest.
    """
    starts = flat.start_indices[first:]
    assert [flat.token_ids[start] for start in starts] == list(token_ids), "logprobs of other tokens"
    logprobs = torch.tensor([flat.logprobs[start] for start in starts])
    if not topk:
        return logprobs, None, None
    ids = torch.tensor([flat.token_ids[start + 1 : start + 1 + topk] for start in starts])
    likeliest = torch.tensor([flat.logprobs[start + 1 : start + 1 + topk] for start in starts])
    return logprobs, ids, likeliest
