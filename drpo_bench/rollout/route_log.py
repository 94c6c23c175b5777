"""The experts chosen at each position of each sampled sequence, gathered while the torch engine decodes."""

from __future__ import annotations

import torch
from torch import Tensor


class RouteLog:
    """Prompt routes [P, T, layers, experts] of left-padded prompts, and those of every later position of their samples.

    In a dense model there are none, and `of` returns None.
    """

    def __init__(self, prompts: Tensor | None, mask: Tensor, repeat: Tensor, max_new_tokens: int) -> None:
        self.prompts, self.repeat, self.lengths = prompts, repeat.tolist(), mask.sum(1).tolist()
        if prompts is not None:
            shape = (len(repeat), max_new_tokens, *prompts.shape[2:])
            self.samples = torch.zeros(shape, dtype=prompts.dtype, device=prompts.device)

    def store(self, rows: Tensor, step: int, routes: Tensor | None) -> None:
        """Routes [rows, layers, experts] of the token sampled at `step`, which has just been fed."""
        if routes is not None:
            self.samples[rows, step] = routes

    def of(self, row: int, length: int) -> Tensor | None:
        """Routes of the prompt and of a response of this length but its last token, which was never fed."""
        if self.prompts is None:
            return None
        prompt = self.repeat[row]
        return torch.cat([self.prompts[prompt, -self.lengths[prompt] :], self.samples[row, : length - 1]]).cpu()
