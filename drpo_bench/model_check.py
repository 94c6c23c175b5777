"""Does a checkpoint's architecture compute what trainer and torch engine take for granted?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from drpo_bench.limits import changes_logits
from drpo_bench.models import head_logits, padded_logits
from drpo_bench.rollout.decoder import CacheDecoder, left_padded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-3  # of the largest logit: what float32 leaves between two orders of summation
ROWS, LENGTH, PREFIX = 2, 12, 7


@torch.no_grad()
def check_model(model: PreTrainedModel, name: str) -> None:
    """Raise ValueError if an fp32 causal language model cannot be trained or sampled here, with the reason.

    Its config may tell already: a cap acts on large logits only, and may not show at the first weights.

    Three questions on random tokens. Are its logits its head's, of its decoder's last hidden states? Does what follows
    a token leave the token alone? And do left padding and a cache, one token at a time, give the same logits?
    """
    if problem := changes_logits(model.config.to_dict()):
        raise ValueError(f"model.name: {name}: {problem}")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, model.config.vocab_size, (ROWS, LENGTH), generator=generator)
    ids = ids.to(next(model.parameters()).device)
    was_training = model.training
    model.eval()
    try:
        compare(model, ids, f"model.name: {name}: {type(model).__name__}")
    finally:
        model.train(was_training)


def compare(model: PreTrainedModel, ids: Tensor, kind: str) -> None:
    """`check_model`'s questions of token ids [B, T]; `kind` begins the message."""
    expected = model(input_ids=ids, use_cache=False).logits
    ours = logits_of(model, ids)
    if differs(ours, expected):
        raise ValueError(f"{kind} scales or caps the logits of its head, which trainer and engine here do not")
    if differs(logits_of(model, ids[:, :PREFIX]), ours[:, :PREFIX]):
        raise ValueError(f"{kind} lets later tokens change earlier ones: right padding would change its logprobs")
    if differs(cached_logits(model, ids), ours[:, PREFIX - 1 : -1]):
        raise ValueError(f"{kind} decodes other logits with left padding and a cache, which the engine needs")


def differs(ours: Tensor, expected: Tensor) -> bool:
    """Whether logits differ by more than float32 does."""
    return not float((ours - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


def logits_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits [B, T, V] as the trainer computes them, in the padded pass."""
    rows, width = ids.shape
    return padded_logits(model, ids, torch.arange(rows * width, device=ids.device)).view(rows, width, -1)


def cached_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits [B, T - PREFIX, V] as the engine computes them, from the prefix's last token to the last but one.

    The first row is prefilled beside a longer prompt, and so padded on the left.
    """
    decoder = CacheDecoder(model)
    prompts = [ids[0, :PREFIX].tolist(), ids[1, :PREFIX].tolist(), ids[1].tolist()]
    padded, mask = left_padded(prompts, ids.device)
    hidden = decoder.prefill(padded, mask, ids.shape[1])
    keep = torch.arange(ROWS, device=ids.device)
    decoder.select(keep)
    steps = [head_logits(model, hidden[keep])]
    for position in range(PREFIX, ids.shape[1] - 1):
        steps.append(head_logits(model, decoder.step(ids[:, position], torch.full_like(keep, position))))
    return torch.stack(steps, 1)
