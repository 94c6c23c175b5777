"""Number formats: the grids are torch's own, emulation rounds where it says."""

from __future__ import annotations

import copy

import pytest
import torch

from drpo_bench import precision
from drpo_bench.config import ModelConfig
from drpo_bench.models import Policy, build_model, response_logits

CPU = torch.device("cpu")


def all_e4m3() -> torch.Tensor:
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    return values[~values.isnan()]


def test_e4m3_grid_is_torchs_on_all_values_and_all_midpoints():
    grid = all_e4m3().unique()
    assert torch.equal(precision.round_e4m3(grid), grid)
    middle = (grid[1:] + grid[:-1]) / 2
    for values in (middle, torch.nextafter(middle, torch.tensor(1e9)), torch.nextafter(middle, torch.tensor(-1e9))):
        assert torch.equal(precision.round_e4m3(values), values.to(torch.float8_e4m3fn).float())


def test_e4m3_rounding_is_torchs_over_eleven_binades():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(100_000, generator=generator) * torch.logspace(-5, 2, 100_000)
    values = values.clamp(-448, 448)
    assert torch.equal(precision.round_e4m3(values), values.to(torch.float8_e4m3fn).float())


def test_all_fp16_values_are_on_the_fp16_grid():
    values = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    values = values[torch.isfinite(values)].float()
    assert torch.equal(precision.round_to(values, "fp16"), values)
    assert precision.round_to(torch.tensor(1e6), "fp16").isinf()


def test_row_quantisation_maps_each_rows_largest_value_to_itself():
    rows = torch.tensor([[1.0, -3.0, 0.5], [1000.0, 10.0, -1.0], [0.0, 0.0, 0.0]])
    quantised = precision.quantise_e4m3(rows)
    torch.testing.assert_close(quantised.abs().amax(1), rows.abs().amax(1))
    assert ((quantised - rows).abs() <= rows.abs() / 16 + rows.abs().amax(1, keepdim=True) * 2**-10 / 448).all()


@pytest.fixture(scope="module")
def model():
    return build_model(ModelConfig(), vocab_size=50, seed=0)


def logits_of(model) -> torch.Tensor:
    ids = torch.arange(24).reshape(2, 12) + 4
    return response_logits(model, ids, torch.arange(24))


@pytest.mark.parametrize(("dtype", "low", "high"), [("bf16", 1e-4, 0.1), ("fp16", 1e-5, 0.01)])
def test_emulation_is_close_to_the_real_format_and_different_from_fp32(model, dtype, low, high):
    exact = logits_of(model)
    emulated = copy.deepcopy(model)
    precision.emulate_compute(emulated, dtype)
    with torch.no_grad():
        for parameter in emulated.parameters():
            parameter.copy_(precision.round_to(parameter, dtype))
    native = copy.deepcopy(model).to(precision.DTYPES[dtype])
    scale = exact.std()
    difference = (logits_of(emulated) - exact).abs().mean() / scale
    assert low < difference < high
    assert (logits_of(emulated) - logits_of(native)).abs().mean() / scale < 2 * difference


def test_emulation_rounds_activation_gradients(model):
    emulated = copy.deepcopy(model)
    precision.emulate_compute(emulated, "bf16")
    seen = []
    layer = emulated.model.layers[0].mlp.down_proj
    layer.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append(grad_output[0]))
    logits_of(emulated).square().sum().backward()
    assert torch.equal(seen[0], precision.round_to(seen[0], "bf16"))


def test_policy_gathers_gradients_into_fp32_masters_and_publishes_rounded_weights(model):
    policy = Policy(copy.deepcopy(model), "bf16", CPU)
    logits_of(policy.model).square().sum().backward()
    policy.gather_gradients()
    assert all(master.grad is not None and compute.grad is None for master, compute in policy.pairs())
    with torch.no_grad():
        for master in policy.master.parameters():
            master.add_(1e-4)
    policy.publish()
    for master, compute in policy.pairs():
        assert torch.equal(compute.float(), precision.round_to(master, "bf16"))


def test_fp8_covers_the_decoders_linear_layers_only(model):
    linears = precision.decoder_linears(model)
    assert len(linears) == 2 * 7  # q, k, v, o, gate, up, down of two layers
    assert model.get_output_embeddings() not in linears


def test_a_native_format_casts_parameters_and_leaves_rotary_frequencies_alone(model):
    native = copy.deepcopy(model)
    precision.cast_parameters(native, "bf16")
    assert native.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert native.model.rotary_emb.inv_freq.dtype == torch.float32
    assert native.lm_head.weight is native.model.embed_tokens.weight
