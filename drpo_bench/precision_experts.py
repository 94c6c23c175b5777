"""Number formats inside a mixture's experts, whose weights are 3-D parameters of one module and no linear layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from drpo_bench.precision import quantise_e4m3

Product = Callable[[Tensor, Tensor], Tensor]  # inputs [..., I] and a weight [O, I] to [..., O]
MATMULS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
EXPERT_WEIGHTS = ("gate_up_proj", "down_proj")


def expert_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that hold all experts of a layer; none in a dense model."""
    return [
        m for m in model.modules() if all(getattr(getattr(m, name, None), "ndim", 0) == 3 for name in EXPERT_WEIGHTS)
    ]


def expert_weights(model: nn.Module) -> dict[int, int]:
    """By id of each expert weight the dimension that its product sums over: -1, or -2 where it is stored [I, O]."""
    dims: dict[int, int] = {}
    for module in expert_modules(model):
        dim = -2 if getattr(module, "is_transposed", False) else -1
        dims |= {id(getattr(module, name)): dim for name in EXPERT_WEIGHTS}
    return dims


class ExpertProducts(TorchFunctionMode):
    """Inside the block, products of inputs and weights are computed by `product`."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.product = product

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            assert len(args) == 2 and not kwargs, "an expert's product with a bias"
            return self.product(args[0], args[1])
        if func in MATMULS:
            return self.product(args[0], args[1].mT)
        return func(*args, **(kwargs or {}))


def compute_experts_with(model: Any, product: Product) -> None:
    """Make every product of inputs and expert weights of a transformers model be `product`'s."""
    modules = expert_modules(model)
    if modules:
        model.set_experts_implementation("eager")  # one expert after another: products that can be told apart
    for module in modules:
        module.forward = partial(with_products, module.forward, product)


def with_products(forward: Callable[..., Tensor], product: Product, *args: Any, **kwargs: Any) -> Tensor:
    """`forward(...)` whose products are `product`'s."""
    with ExpertProducts(product):
        return forward(*args, **kwargs)


def quantised_input_product(inputs: Tensor, weight: Tensor) -> Tensor:
    """The product with inputs in e4m3, one dynamic scale a token."""
    return F.linear(quantise_e4m3(inputs.float()).to(inputs.dtype), weight)
