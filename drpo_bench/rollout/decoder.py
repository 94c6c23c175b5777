"""The decoder protocol: a model and its KV cache, one token a row at a time; and the one for any architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from drpo_bench.routing import routers, routing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Decoder(Protocol):
    """The state of one `generate` call. Hidden states are those the head reads, after the final norm.

    `routes` are the experts of the last forward pass, as `prefill` and `step` order its positions: [P, T, layers,
    experts] or [rows, layers, experts]; None in a dense model.
    """

    routes: Tensor | None

    def prefill(self, ids: Tensor, mask: Tensor, max_new_tokens: int) -> Tensor:
        """Left-padded prompts `ids` [P, T], 1 in `mask` where they are: last hidden state [P, H]."""

    def expand(self, repeat: Tensor) -> None:
        """From prompts to their samples: row i continues prompt `repeat[i]`."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows only; indices ascend."""

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Append a token to every row: tokens and their positions [rows] to hidden states [rows, H]."""


class CacheDecoder:
    """The module's own forward with a transformers cache: any architecture, whatever hooks it carries."""

    routes: Tensor | None = None

    def __init__(self, model: PreTrainedModel, fp8_kv: bool = False) -> None:
        self.model, self.routers = model, routers(model)
        self.cache: Any = None  # the module makes its own
        if fp8_kv:
            from drpo_bench.rollout.fp8_cache import Fp8Cache

            self.cache = Fp8Cache(config=model.config)

    def prefill(self, ids: Tensor, mask: Tensor, max_new_tokens: int) -> Tensor:
        self.mask, self.length = mask.new_ones(len(ids), ids.shape[1] + max_new_tokens), ids.shape[1]
        self.mask[:, : self.length] = mask
        hidden = self._forward(ids, prompt_positions(mask))
        if self.routes is not None:
            self.routes = self.routes.unflatten(0, ids.shape)
        return hidden

    def expand(self, repeat: Tensor) -> None:
        self.select(repeat)

    def select(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)  # recurrent states too, which `batch_select_indices` does not know
        self.mask = self.mask[rows]

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        self.length += 1
        return self._forward(tokens[:, None], positions[:, None])

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        with routing(self.routers) as recorder:
            output = self.model.base_model(
                input_ids=ids,
                attention_mask=self.mask[:, : self.length],
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
            )
        self.routes = recorder.take()
        self.cache = output.past_key_values
        return output.last_hidden_state[:, -1]  # type: ignore[no-any-return]


def prompt_positions(mask: Tensor) -> Tensor:
    """Positions [P, T] in left-padded prompts; 0 in the padding."""
    return (mask.cumsum(1) - 1).clamp_(min=0)


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [P, T] of prompts that end in the same column."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
