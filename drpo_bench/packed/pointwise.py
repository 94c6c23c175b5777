"""RMSNorm, rotation and SwiGLU with their gradients by hand: half the passes over memory of autograd's.

Norms and their gradients are computed in float32 or wider, as the module's norms are; the gate in its own format.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def wide(values: Tensor) -> Tensor:
    """In float32, or as they are where that is wider."""
    return values if values.dtype == torch.float64 else values.float()


def normalise(values: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Values over their root mean square along the last dimension, and 1 over that, in float32 or wider."""
    values = wide(values)
    squares = torch.linalg.vector_norm(values, dim=-1, keepdim=True).square_()
    inverse = squares.div_(values.shape[-1]).add_(eps).rsqrt_()
    return values * inverse, inverse


def normalise_backward(grad: Tensor, normed: Tensor, inverse: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the values and of `weight`, the last dimensions, from that of normed * weight.

    dw = sum g n,   dx = (g w - n mean(g w n)) / rms
    """
    product = grad * normed
    mean = torch.einsum("n...c,...c->n...", product, weight).div_(weight.shape[-1])
    return (grad * weight).addcmul_(normed, mean[..., None], value=-1).mul_(inverse), product.sum(0)


class RmsNorm(torch.autograd.Function):
    """`rms_norm`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, inverse = normalise(values, eps)
        ctx.save_for_backward(normed, inverse, weight)
        return normed.to(values.dtype) * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, inverse, weight = ctx.saved_tensors
        d_values, d_weight = normalise_backward(wide(grads[0]), normed, inverse, wide(weight))
        return d_values.to(weight.dtype), d_weight.to(weight.dtype), None


def rms_norm(values: Tensor, weight: Tensor, eps: float) -> Tensor:
    """values [N, H] over their root mean square, times weight [H]."""
    return RmsNorm.apply(values, weight, eps)  # type: ignore[no-untyped-call, no-any-return]


def rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of values [..., D]; the sign of the first half is in `sin`. Undone by `-sin`."""
    half = values.shape[-1] // 2
    swapped = torch.cat([values[..., half:], values[..., :half]], -1)
    return torch.addcmul(values * cos, swapped, sin)


class SwiGlu(torch.autograd.Function):
    """`swiglu`."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        result = torch.empty_like(gate_up)
        d_gate, d_up = result.chunk(2, -1)
        torch.mul(F.silu(gate), grads[0], out=d_up)
        torch.ops.aten.silu_backward.grad_input(grads[0] * up, gate, grad_input=d_gate)
        return result


def swiglu(gate_up: Tensor) -> Tensor:
    """[gate, up] [N, 2 F] to silu(gate) * up [N, F]."""
    return SwiGlu.apply(gate_up)  # type: ignore[no-untyped-call, no-any-return]
