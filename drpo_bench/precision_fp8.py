"""fp8 training of linear layers by torchao's rowwise recipe: for real on Hopper, emulated elsewhere.

All three products of a layer take e4m3 operands, each with one scale a row of that product; a tensor that
two products read along different axes is quantised twice. The rest of the model computes in bf16.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drpo_bench.precision import E4M3_MAX, decoder_linears, is_native, round_e4m3
from drpo_bench.precision_experts import compute_experts_with, expert_modules

WIDTHS = 16  # a GPU's fp8 product takes layers whose widths are multiples of this


def quantise_slices(values: Tensor, dim: int) -> Tensor:
    """Values on the e4m3 grid, in their own dtype; one scale a slice along `dim`.

    The scale is 448 / amax rounded down to a power of two, as in torchao's recipe "rowwise", so that scaling is
    exact and bf16 holds the result. A slice with an infinity becomes NaN as a whole, and a NaN stays one.
    """
    wide = values.float()
    amax = wide.abs().amax(dim, keepdim=True).double().clamp_(min=1e-12)
    scale = ((E4M3_MAX / amax).float().view(torch.int32) & 0x7F800000).view(torch.float32)
    return round_e4m3((wide * scale).clamp_(-E4M3_MAX, E4M3_MAX)).div_(scale).to(values.dtype)


class Fp8Product(torch.autograd.Function):
    """inputs X [..., I] and weight W [O, I] to Y = X W^T [..., O].

        Y = q(X, tokens) q(W, outputs)^T,   dX = q(G, tokens) q(W, inputs),   dW = q(G, outputs)^T q(X, inputs)

    G is the gradient of Y; q(A, rows) is A in e4m3 with a scale for each of these.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return F.linear(quantise_slices(inputs, -1), quantise_slices(weight, -1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        inputs, weight = ctx.saved_tensors
        tokens, grad = inputs.flatten(0, -2), grads[0].flatten(0, -2)  # [N, I], [N, O]
        grad_inputs = quantise_slices(grad, -1) @ quantise_slices(weight, 0)
        grad_weight = quantise_slices(grad, 0).T @ quantise_slices(tokens, 0)
        return grad_inputs.view_as(inputs), grad_weight


class Fp8Linear(nn.Linear):
    """A linear layer whose products take e4m3 operands, emulated: quantised, then multiplied in its own dtype."""

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = Fp8Product.apply(inputs, self.weight)  # type: ignore[no-untyped-call]
        return output if self.bias is None else output + self.bias


def train_in_fp8(model: nn.Module, device: torch.device) -> None:
    """Make the decoder's linear layers of a bf16 model compute in fp8."""
    linears = decoder_linears(model)
    if is_native("fp8", device):
        use_torchao(model, linears)
        return
    for linear in linears:
        linear.__class__ = Fp8Linear  # the same layer, with its parameters, hooks and name
    compute_experts_with(model, Fp8Product.apply)


def use_torchao(model: nn.Module, linears: list[nn.Linear]) -> None:
    """Swap these layers for torchao's, which multiply in fp8."""
    require_torchao()
    if expert_modules(model):
        raise ValueError("precision.trainer: fp8 on this GPU does not cover the experts of a mixture; use bf16")
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    widths = {width for linear in linears for width in (linear.in_features, linear.out_features)}
    if odd := sorted(width for width in widths if width % WIDTHS):
        raise ValueError(f"precision.trainer: fp8 needs layers with widths that {WIDTHS} divides, this model has {odd}")
    covered = {id(linear) for linear in linears}
    recipe = replace(
        Float8LinearConfig.from_recipe_name("rowwise"),
        pad_inner_dim=True,  # the weight's gradient sums over tokens, which can be any number
    )
    convert_to_float8_training(model, module_filter_fn=lambda module, name: id(module) in covered, config=recipe)


def require_torchao() -> None:
    """Raise ValueError where the optional package is missing."""
    if find_spec("torchao") is None:
        raise ValueError("precision.trainer: fp8 on this GPU needs torchao: pip install -e '.[fp8]'")
