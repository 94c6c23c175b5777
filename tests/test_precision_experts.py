"""fp8 and emulated formats reach the experts of a mixture, whose weights are no linear layers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from drpo_bench import precision
from drpo_bench.config import MIXTURES, ModelConfig
from drpo_bench.models import Policy, build_model, padded_logits
from drpo_bench.precision import quantise_e4m3
from drpo_bench.precision_configs import RolloutPrecision
from drpo_bench.precision_experts import compute_experts_with, expert_modules, quantised_input_product
from drpo_bench.rollout.torch_engine import TorchEngine

CPU = torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(0)
HIDDEN = torch.randn(9, 96, generator=GENERATOR)
CHOSEN = torch.stack([torch.randperm(8, generator=GENERATOR)[:2] for _ in range(9)])
SHARES = torch.rand(9, 2, generator=GENERATOR)


@pytest.fixture(params=MIXTURES)
def model(request):
    return build_model(ModelConfig(architecture=request.param), vocab_size=50, seed=0)


def by_hand(experts, product):
    """The mixture's definition, expert by expert and token by token."""
    result = torch.zeros_like(HIDDEN)
    transposed = experts.is_transposed
    for token in range(len(HIDDEN)):
        for choice, share in zip(CHOSEN[token].tolist(), SHARES[token], strict=True):
            up, down = experts.gate_up_proj[choice], experts.down_proj[choice]
            up, down = (up.T, down.T) if transposed else (up, down)
            both = product(HIDDEN[token], up)
            if transposed:
                inner = experts._apply_gate(both + experts.gate_up_proj_bias[choice])
                result[token] += share * (product(inner, down) + experts.down_proj_bias[choice])
            else:
                gate, upper = both.chunk(2)
                result[token] += share * product(F.silu(gate) * upper, down)
    return result


def test_every_layer_has_one_module_of_experts(model):
    assert len(expert_modules(model)) == 2


def test_products_of_experts_take_quantised_inputs(model):
    experts = expert_modules(model)[0]
    plain = experts(HIDDEN, CHOSEN, SHARES)
    torch.testing.assert_close(plain, by_hand(experts, F.linear))
    compute_experts_with(model, quantised_input_product)
    quantised = experts(HIDDEN, CHOSEN, SHARES)
    expected = by_hand(experts, lambda inputs, weight: F.linear(quantise_e4m3(inputs), weight))
    torch.testing.assert_close(quantised, expected)
    assert (quantised - plain).abs().max() > 1e-3


def test_expert_weights_lie_on_the_e4m3_grid_with_a_scale_an_output_channel(model):
    engine = TorchEngine(model, RolloutPrecision(dtype="fp32", fp8_weights=True), CPU)
    for ours, theirs in zip(expert_modules(model), expert_modules(engine.model), strict=True):
        for name in ("gate_up_proj", "down_proj"):
            source, rounded = getattr(ours, name), getattr(theirs, name)
            if ours.is_transposed:
                source, rounded = source.mT, rounded.mT
            scale = source.abs().amax(-1, keepdim=True) / 448
            expected = (source / scale).to(torch.float8_e4m3fn).float() * scale
            torch.testing.assert_close(rounded, expected)
            assert not torch.equal(rounded, source)


def test_fp8_activations_change_what_the_engine_computes_in_its_experts(model):
    with torch.no_grad():
        weights = RolloutPrecision(dtype="fp32", fp8_weights=True)
        both = RolloutPrecision(dtype="fp32", fp8_weights=True, fp8_activations=True)
        outputs = [expert_modules(TorchEngine(model, p, CPU).model)[0](HIDDEN, CHOSEN, SHARES) for p in (weights, both)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_the_fp8_trainer_reaches_the_experts_and_their_gradient(model):
    exact, fp8 = (Policy(copy.deepcopy(model), dtype, CPU) for dtype in ("bf16", "fp8"))
    gradients = []
    for policy in (exact, fp8):
        experts = expert_modules(policy.model)[1]
        hidden = HIDDEN.to(experts.gate_up_proj.dtype).requires_grad_()
        experts(hidden, CHOSEN, SHARES.to(hidden.dtype)).float().square().sum().backward()
        policy.gather_gradients()
        masters = expert_modules(policy.master)[1]
        gradients.append(torch.cat([masters.gate_up_proj.grad.flatten(), masters.down_proj.grad.flatten()]))
    difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert 0.02 < difference < 0.3  # e4m3 has three bits after the first; bf16 alone differs by 1e-3


def test_emulated_bf16_rounds_what_goes_into_the_experts_and_out_of_them(model, monkeypatch):
    ids = torch.randint(4, 50, (2, 12), generator=GENERATOR)
    native = Policy(copy.deepcopy(model), "bf16", CPU)
    monkeypatch.setattr(precision, "is_native", lambda dtype, device: dtype == "fp32")
    emulated = Policy(copy.deepcopy(model), "bf16", CPU)
    seen = []
    experts = expert_modules(emulated.model)[0]
    experts.register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
    with torch.no_grad():
        logits = [padded_logits(m, ids, torch.arange(24)) for m in (model, native.model, emulated.model)]
    assert all(torch.equal(values, precision.round_to(values, "bf16")) for values in seen)
    exact, real, ours = logits
    assert 1e-4 < (ours - exact).abs().mean() < 2 * (real - exact).abs().mean()
