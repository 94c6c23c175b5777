"""Our fp8 linear layer against torchao 0.18's Float8Linear: the recipe "rowwise", output and both gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchao.float8 import Float8LinearConfig
from torchao.float8.float8_linear import Float8Linear

from drpo_bench import precision, precision_fp8
from drpo_bench.config import ModelConfig
from drpo_bench.models import Policy, build_model, padded_logits
from drpo_bench.precision_fp8 import Fp8Linear

CPU = torch.device("cpu")
ROWWISE = Float8LinearConfig.from_recipe_name("rowwise")
# The products' sums are in another order: in float32 a rounding error of it, in bf16 the last bit.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}


def results(layer: nn.Linear, inputs: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    """Output, gradient of the inputs, gradient of the weight, gradient of the bias."""
    inputs = inputs.clone().requires_grad_()
    output = layer(inputs)
    output.backward(grad)
    grads = [inputs.grad, layer.weight.grad, *([] if layer.bias is None else [layer.bias.grad])]
    layer.zero_grad()
    return [output.detach(), *(g.clone() for g in grads)]


def pair(bias: bool, dtype: torch.dtype) -> tuple[nn.Linear, nn.Linear]:
    """The same layer as ours and as torchao's emulated one."""
    torch.manual_seed(0)
    ours = nn.Linear(48, 80, bias=bias).to(dtype)
    theirs = Float8Linear.from_float(nn.Linear(48, 80, bias=bias).to(dtype), config=replace(ROWWISE, emulate=True))
    theirs.load_state_dict(ours.state_dict())
    ours.__class__ = Fp8Linear
    return ours, theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [1.0, 1e-6, 1e4])
def test_output_and_gradients_are_torchaos(dtype, bias, size):
    ours, theirs = pair(bias, dtype)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(3, 7, 48, generator=generator) * torch.logspace(-3, 3, 48) * size  # columns of every scale
    grad = torch.randn(3, 7, 80, generator=generator) * torch.logspace(-4, 1, 7)[:, None] / size
    inputs, grad = inputs.to(dtype), grad.to(dtype)
    exact = nn.Linear(48, 80, bias=bias).to(dtype)
    exact.load_state_dict(ours.state_dict())
    for a, b, plain in zip(*(results(layer, inputs, grad) for layer in (ours, theirs, exact)), strict=True):
        scale = b.abs().amax()
        torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=float(scale) * TOLERANCE[dtype])
        if not bias:  # which dwarfs the product of small inputs
            assert (a - plain).float().norm() > 1e-2 * plain.float().norm()  # fp8 it is


def test_zeros_stay_zero_and_no_infinity_becomes_a_number():
    ours, theirs = pair(False, torch.float32)
    inputs = torch.zeros(4, 48)
    inputs[1, 0], inputs[2, 0] = torch.inf, torch.nan
    outputs = [layer(inputs) for layer in (ours, theirs)]
    assert [output.isfinite().all(1).tolist() for output in outputs] == [[True, False, False, True]] * 2


def test_the_real_path_swaps_the_decoders_layers_and_gives_the_emulated_ones_gradients(monkeypatch):
    """torch multiplies fp8 on a CPU too, slowly: what runs on Hopper, but for its sums."""
    model = build_model(ModelConfig(), vocab_size=48, seed=0)
    ids = torch.arange(30).reshape(2, 15) + 4  # 30 tokens, which 16 does not divide

    def step(policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
        logits = padded_logits(policy.model, ids, torch.arange(30))
        logits.log_softmax(-1)[:, 5].sum().backward()
        policy.gather_gradients()
        gradient = torch.cat([p.grad.flatten() for p in policy.master.parameters()])
        policy.master.zero_grad()
        return logits.detach(), gradient

    exact, emulated = (step(Policy(model, dtype, CPU)) for dtype in ("fp32", "fp8"))
    monkeypatch.setattr(precision_fp8, "is_native", lambda dtype, device: True)
    real = Policy(model, "fp8", CPU)
    kinds = {name: type(module) for name, module in real.model.named_modules() if isinstance(module, nn.Linear)}
    assert [name for name, kind in kinds.items() if kind is not Float8Linear] == ["lm_head"]
    assert len(precision.decoder_linears(real.model)) == len(kinds) - 1
    for a, b, c in zip(step(real), emulated, exact, strict=True):
        assert (a - b).norm() < 0.5 * (a - c).norm()  # nearer to the emulation than to float32


def test_a_width_that_hardware_does_not_take_is_an_error():
    with pytest.raises(ValueError, match=r"precision\.trainer: fp8 needs layers with widths that 16 divides.*\[24\]"):
        precision_fp8.use_torchao(nn.Module(), [nn.Linear(32, 24)])
