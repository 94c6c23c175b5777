"""fp8 training: the recipe's scales, the three products, and where they apply."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from drpo_bench import precision, precision_fp8
from drpo_bench.config import ModelConfig
from drpo_bench.models import Policy, build_model, padded_logits
from drpo_bench.precision_fp8 import Fp8Linear, quantise_slices

CPU = torch.device("cpu")


def cast(values: torch.Tensor, dim: int) -> torch.Tensor:
    """The recipe in torch's own casts, in float64: 448 / amax rounded down to a power of two."""
    scale = 2.0 ** torch.log2(448 / values.double().abs().amax(dim, keepdim=True)).floor()
    return ((values.double() * scale).to(torch.float8_e4m3fn).double() / scale).to(values.dtype)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values * torch.logspace(-4, 3, shape[-1])


@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_slices_are_torchs_cast_of_the_scaled_slice(dim, dtype):
    values = random(64, 48).to(dtype)
    assert torch.equal(quantise_slices(values, dim), cast(values, dim))


def test_scales_are_powers_of_two_that_map_the_largest_value_into_the_upper_binade():
    rows = torch.tensor([[448.0, 1.0], [449.0, 1.0], [224.0, 0.3], [3.0, 2.0**-9]])
    # 448 stays; 449 needs scale 1/2 and rounds to 448; 0.3 is scaled by 2: 0.6 rounds to 0.625; 3 is scaled by 128.
    expected = torch.tensor([[448.0, 1.0], [448.0, 1.0], [224.0, 0.3125], [3.0, 2.0**-9]])
    assert torch.equal(quantise_slices(rows, -1), expected)


def test_zeros_stay_zero_and_what_is_not_finite_stays_so():
    rows = torch.zeros(4, 3)
    rows[1] = torch.tensor([1e-42, 0.0, -1e-45])  # denormal
    rows[2, 0], rows[3, 0] = torch.inf, torch.nan
    quantised = quantise_slices(rows, -1)
    assert torch.equal(quantised[:2], torch.zeros(2, 3))
    assert quantised[2].isnan().all() and quantised[3, 0].isnan()


@pytest.mark.parametrize("bias", [False, True])
def test_output_and_gradients_are_products_of_quantised_operands(bias):
    layer = nn.Linear(48, 32, bias=bias)
    with torch.no_grad():  # rows of every scale, the large ones where the gradient is small: each counts
        layer.weight.mul_(torch.logspace(3, -4, 32)[:, None])
    layer.__class__ = Fp8Linear
    inputs, grad = random(2, 5, 48).requires_grad_(), random(2, 5, 32, seed=1)
    output = layer(inputs)
    output.backward(grad)
    weight, tokens, per_token = layer.weight.detach(), inputs.detach().flatten(0, 1), grad.flatten(0, 1)
    expected = cast(tokens, -1) @ cast(weight, -1).T + (layer.bias.detach() if bias else 0)
    torch.testing.assert_close(output.flatten(0, 1), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(inputs.grad.flatten(0, 1), cast(per_token, -1) @ cast(weight, 0), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(layer.weight.grad, cast(per_token, 0).T @ cast(tokens, 0), rtol=1e-5, atol=1e-2)
    if bias:
        torch.testing.assert_close(layer.bias.grad, per_token.sum(0))


@pytest.fixture(scope="module")
def model():
    return build_model(ModelConfig(), vocab_size=50, seed=0)


def logits_and_gradient(policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(30).reshape(2, 15) + 4
    logits = padded_logits(policy.model, ids, torch.arange(30))
    logits.log_softmax(-1)[:, 5].sum().backward()
    policy.gather_gradients()
    gradient = torch.cat([p.grad.flatten() for p in policy.master.parameters()])
    policy.master.zero_grad()
    return logits.detach(), gradient


def test_fp8_is_about_ten_times_as_far_from_fp32_as_bf16(model):
    exact, half, fp8 = (logits_and_gradient(Policy(copy.deepcopy(model), d, CPU)) for d in ("fp32", "bf16", "fp8"))
    for a, b, c in zip(exact, half, fp8, strict=True):
        assert 5 < (c - a).norm() / (b - a).norm() < 20
        assert (c - a).norm() < 0.2 * a.norm()


@pytest.mark.parametrize("native", [False, True])
def test_masters_stay_fp32_and_only_the_decoders_layers_are_fp8(model, native, monkeypatch):
    monkeypatch.setattr(precision, "is_native", lambda dtype, device: dtype == "fp32" or native)
    policy = Policy(copy.deepcopy(model), "fp8", CPU)  # precision_fp8 has this CPU's own answer: emulated
    fp8 = [name for name, module in policy.model.named_modules() if isinstance(module, Fp8Linear)]
    assert len(fp8) == 2 * 7 and not [name for name in fp8 if "head" in name]
    assert not [module for module in policy.master.modules() if isinstance(module, Fp8Linear)]
    assert {p.dtype for p in policy.master.parameters()} == {torch.float32}
    assert policy.model.dtype == (torch.bfloat16 if native else torch.float32)
    for master, compute in policy.pairs():
        assert torch.equal(compute.float(), precision.round_to(master, "bf16"))


def test_hardware_fp8_without_torchao_names_the_extra(model, monkeypatch):
    monkeypatch.setattr(precision_fp8, "is_native", lambda dtype, device: True)
    monkeypatch.setattr(precision_fp8, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[fp8\]'"):
        Policy(copy.deepcopy(model), "fp8", CPU)
