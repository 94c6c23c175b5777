"""Does an engine follow the trainer's weights? Every kind of weight is changed, handed over, and looked for.

Engines keep packed or fused copies, and one that is not renewed is stale without a word: vLLM's CPU backend did so
with tied heads and with experts. A loss would then be blamed for what the engine did.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from drpo_bench.models import padded_logits
from drpo_bench.rollout.engine import RolloutEngine, Sampling, sample_seeds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPTS, LENGTH = 8, 8  # of the probe: random prompts, and as many new tokens as the run's longest allows


class HandoverFailed(RuntimeError):
    """The engine went on with old weights."""


def weight_groups(model: PreTrainedModel) -> dict[str, list[Tensor]]:
    """Parameters by name without the layer's number: every kind of weight once."""
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(re.sub(r"\.\d+\.", ".*.", name), []).append(parameter)
    return groups


@torch.no_grad()
def check_handover(
    engine: RolloutEngine, model: PreTrainedModel, by_kind: bool = True, longest: tuple[int, int] = (LENGTH, LENGTH)
) -> dict[str, tuple[float, float]]:
    """Raise HandoverFailed if the engine keeps old weights of any kind; not `by_kind`, if it follows none at all.

    For each kind: change it in all layers, hand it over, sample, and compare the engine's logprobs with the model's. An
    engine that did not follow is off by the whole effect of the change; one that did by its rounding alone. A kind that
    is stale in few of many layers, and buffers, are not seen. `longest`: tokens of prompt and response that the engine
    takes. Returns (error, effect) of each kind in nats. The model's weights are the same afterwards, bit for bit, and
    the engine has them.
    """
    stale, measured = [], {}
    lengths = (min(LENGTH, longest[0]), min(LENGTH, longest[1]))
    groups = weight_groups(model)
    if not by_kind:
        groups = {"all weights": [parameter for group in groups.values() for parameter in group]}
    for number, (name, parameters) in enumerate(groups.items()):
        saved = [parameter.clone() for parameter in parameters]
        try:
            for index, parameter in enumerate(parameters):
                generator = torch.Generator().manual_seed(1000 * number + index)
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.add_(noise * strength(parameter))
            engine.load_weights(model)
            ids, theirs = sampled(engine, model.config.vocab_size, lengths)
            ours = logprobs_of(model, ids, lengths[0])
        finally:
            for parameter, values in zip(parameters, saved, strict=True):
                parameter.copy_(values)
        error = float((theirs - ours).abs().mean())
        effect = float((logprobs_of(model, ids, lengths[0]) - ours).abs().mean())
        measured[name] = (error, effect)
        if not error < max(effect / 2, 1e-5):
            stale.append(f"{name} (off by {error:.3g}, the change makes {effect:.3g})")
    engine.load_weights(model)
    if stale:
        raise HandoverFailed(
            f"{engine.description} did not take over changed weights of {model.config.model_type}: {', '.join(stale)}"
            + ("" if engine.description == "torch" else "; use rollout.engine = 'torch'")
        )
    return measured


def strength(parameter: Tensor) -> float:
    """Standard deviation of the change: half that of a matrix; of norms and biases at least 1, for they act little."""
    if parameter.dim() > 1:
        return float(parameter.std(correction=0)) / 2 + 1e-2
    return max(1.0, float(parameter.abs().mean()))


def sampled(engine: RolloutEngine, vocab_size: int, lengths: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Sequences [P, T] and the engine's logprobs [P, N] of the N sampled tokens at their end."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(vocab_size, (PROMPTS, lengths[0]), generator=generator)
    sampling = Sampling(1.0, lengths[1], stop_ids=())
    seeds = sample_seeds(0, "handover", 0, PROMPTS, 1)
    responses = [row[0] for row in engine.generate(prompts.tolist(), 1, seeds, sampling)]
    tokens = torch.tensor([response.token_ids for response in responses])
    return torch.cat([prompts, tokens], 1), torch.stack([response.logprobs for response in responses])


def logprobs_of(model: PreTrainedModel, ids: Tensor, prompt: int) -> Tensor:
    """The model's own logprobs [P, N] of the tokens of each row after its prompt."""
    ids = ids.to(next(model.parameters()).device)
    rows, width = ids.shape
    logits = padded_logits(model, ids, torch.arange(rows * width, device=ids.device)).view(rows, width, -1)
    log_probs = logits[:, prompt - 1 : -1].log_softmax(-1)
    return log_probs.gather(-1, ids[:, prompt:, None]).squeeze(-1).cpu()
