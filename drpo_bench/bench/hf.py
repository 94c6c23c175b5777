"""Peer `hf`: transformers' `generate` on the same weights, prompts and lengths, in this process."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from drpo_bench.bench.machine import rollouts
from drpo_bench.bench.shapes import STOPS, Shape, random_model
from drpo_bench.bench.timing import Comparison, Work, take_turns
from drpo_bench.precision import DTYPES, is_native
from drpo_bench.precision_configs import PrecisionConfig
from drpo_bench.rollout.torch_engine import TorchEngine, response_lengths

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "HF generate"


def compare(size: str, precision: PrecisionConfig, shape: Shape, repeats: int) -> list[Comparison]:
    """Rollouts of equal lengths, and ragged ones, whose finished rows HF keeps computing."""
    dtype, device = precision.rollout.dtype, torch.device("cpu")
    whats = ["rollout, equal lengths", "rollout, ragged"]
    if precision.rollout.has_fp8 or not is_native(dtype, device):
        reason = f"transformers has no emulated {precision.name} to compare with"
        return [Comparison(what, None, NAME, not_measured=reason) for what in whats]
    model = random_model(size)
    ours = TorchEngine(model, precision.rollout, device)
    theirs = copy.deepcopy(model).to(DTYPES[dtype]).eval()
    comparisons = []
    for what, ragged in zip(whats, (False, True), strict=True):
        measured = take_turns([rollouts(ours, shape, ragged), generation(theirs, shape, ragged)], repeats)
        comparisons.append(Comparison(what, measured[0], NAME, measured[1]))
    return comparisons


def generation(model: PreTrainedModel, shape: Shape, ragged: bool) -> Work:
    """One rollout batch by `generate`; only the tokens up to a stop token count."""
    ids = torch.tensor(shape.prompts()).repeat_interleave(shape.group_size, 0)
    stop_ids = torch.tensor(shape.sampling(ragged).stop_ids, dtype=torch.long)
    options: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    options["pad_token_id"] = STOPS[0]
    if ragged:
        options["eos_token_id"] = list(STOPS)
    else:
        options["min_new_tokens"], options["eos_token_id"] = shape.response, None

    @torch.inference_mode()
    def work() -> int:
        mask = torch.ones_like(ids)
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=shape.response, **options)
        lengths, _ = response_lengths(out[:, shape.prompt :], stop_ids)
        return int(lengths.sum())

    return work
