"""Which experts a mixture chose: recorded from any forward pass, and replayed in the trainer's.

A router picks its experts with `torch.topk`; everything after that follows from the indices. So recording reads the
indices of that call, and replay answers it with given ones, gathering the router's own scores, which keep their
gradient. R2 replays the trainer's routes at the sampling weights, R3 the rollout engine's (arXiv 2507.18071 section
5.3; arXiv 2510.11370).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from drpo_bench.batching import MicroBatch


def routers(model: nn.Module) -> list[nn.Module]:
    """The routers of a model's layers, in order; none in a dense model, nor where they choose in another way.

    Only those are taken that call `torch.topk` once: DeepSeek's choose among groups first, Phi's draw.
    """
    named = [module for module in model.modules() if type(module).__name__.endswith("TopKRouter")]
    return [module for module in named if chooses_by_topk(type(module))]  # type: ignore[arg-type]


@cache
def chooses_by_topk(router: Any) -> bool:
    """Whether the forward pass of a class of modules has one `torch.topk`."""
    return inspect.getsource(router.forward).count("torch.topk(") == 1


class TopKChoice(TorchFunctionMode):
    """Inside the block, `torch.topk` takes `indices` instead of the largest values, if there are any.

    `chosen` is what it would have taken by itself.
    """

    def __init__(self, indices: Tensor | None) -> None:
        super().__init__()
        self.indices, self.chosen = indices, torch.empty(0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not torch.topk:
            return result
        self.chosen = result.indices
        if self.indices is None:
            return result
        return torch.return_types.topk((args[0].gather(-1, self.indices), self.indices))


class RouteRecorder:
    """What the routers of a model would choose by themselves, since the last `take`."""

    def __init__(self, num_routers: int) -> None:
        self.chosen: list[list[Tensor]] = [[] for _ in range(num_routers)]

    def take(self) -> Tensor | None:
        """Experts [tokens, layers, experts] int16 of one forward pass; None in a dense model."""
        if not self.chosen:
            return None
        routes = torch.stack([calls.pop() for calls in self.chosen], 1)
        assert not any(self.chosen), "more than one forward pass since the last take"
        return routes.to(torch.int16)


@contextmanager
def routing(found: Sequence[nn.Module], replay: Tensor | None = None) -> Iterator[RouteRecorder]:
    """Record the routes of a forward pass in the block; with `replay` [tokens, layers, experts], take those.

    `found` are the model's `routers`.
    """
    if replay is not None and replay.shape[1] != len(found):
        raise ValueError(f"routes of {replay.shape[1]} layers to replay in a model with {len(found)} routers")
    recorder = RouteRecorder(len(found))

    def watched(forward: Callable[..., Any], layer: int) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            choice = TopKChoice(None if replay is None else replay[:, layer])
            with choice:
                output = forward(*args, **kwargs)
            recorder.chosen[layer].append(choice.chosen.detach())
            return output

        return run

    for layer, router in enumerate(found):
        router.forward = watched(router.forward, layer)
    try:
        yield recorder
    finally:
        for router in found:
            del router.forward  # the class's own again


def padded_routes(routes: Sequence[Tensor] | None, padded: MicroBatch) -> Tensor | None:
    """Routes of each rollout [its positions, layers, experts] as those of the padded positions [B * T, ...].

    Padding takes experts 0, 1, ...: whatever they compute there, nobody reads it.
    """
    if routes is None:
        return None
    rows, width = padded.input_ids.shape
    layers, experts = routes[padded.order[0]].shape[1:]
    filled = torch.arange(experts).expand(rows, width, layers, experts).clone()
    for row, index in enumerate(padded.order):
        filled[row, : len(routes[index])] = routes[index].long()
    return filled.flatten(0, 1).to(padded.input_ids.device)


def unpadded_routes(routes: Tensor, padded: MicroBatch, lengths: Sequence[int]) -> list[Tensor]:
    """The reverse: routes [B * T, layers, experts] to those of each rollout of the batch, in the order of its rows."""
    rows = routes.cpu().unflatten(0, padded.input_ids.shape)
    return [row[:length].clone() for row, length in zip(rows, lengths, strict=True)]
