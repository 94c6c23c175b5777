"""Number formats: the grids are torch's own, emulation rounds where it says."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drpo_bench import precision
from drpo_bench.config import ModelConfig
from drpo_bench.models import Policy, build_model, padded_logits

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


def test_all_256_e4m3_patterns_are_fixed_points():
    patterns = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    rounded = precision.round_e4m3(patterns)
    assert patterns.isnan().sum() == 2 and patterns.nan_to_num().abs().max() == precision.E4M3_MAX
    torch.testing.assert_close(rounded, patterns, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_all_65536_patterns_are_fixed_points_and_midpoints_go_to_even(dtype):
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(precision.DTYPES[dtype])
    values = patterns.float()
    torch.testing.assert_close(precision.round_to(values, dtype), values, rtol=0, atol=0, equal_nan=True)
    positive = values[:32768][values[:32768].isfinite()]  # ascending; the last one's neighbour is infinity
    upper = torch.cat([positive[1:], torch.tensor([torch.inf])])
    ahead = torch.where(upper.isinf(), 2 * positive.double() - positive.roll(1), upper)  # where infinity begins
    middle = ((positive + ahead) / 2).float()
    even = torch.where(torch.arange(len(positive)) % 2 == 0, positive, upper)
    for sign in (1, -1):
        above, below = (torch.nextafter(middle, torch.tensor(end)) for end in (torch.inf, 0.0))
        for value, expected in ((middle, even), (above, upper), (below, positive)):
            assert torch.equal(precision.round_to(sign * value, dtype), sign * expected)
            leaf = torch.zeros_like(value).requires_grad_()
            precision.round_to(leaf, dtype).backward(sign * value)
            assert torch.equal(leaf.grad, sign * expected)  # gradients are rounded alike


ROWS = st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=4, max_size=4), min_size=1, max_size=8)


@given(ROWS)
def test_row_quantisation_is_torchs_cast_of_the_scaled_row(rows):
    values = torch.tensor(rows)
    scale = values.abs().amax(1, keepdim=True).clamp(min=1e-12) / 448
    cast = (values / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
    assert torch.equal(precision.quantise_e4m3(values), cast)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_row_quantisation_makes_no_number_of_what_is_none(value):
    rows = torch.ones(3, 4)
    rows[1, 2] = value
    quantised = precision.quantise_e4m3(rows)
    assert quantised[1].isnan().all() and torch.equal(quantised[[0, 2]], rows[[0, 2]])


def test_row_quantisation_of_nothing_and_of_almost_nothing_is_zero():
    rows = torch.tensor([[0.0, -0.0, 0.0], [1e-42, -1e-45, 0.0], [1e-20, 0.0, 1e-30]])
    assert torch.equal(precision.quantise_e4m3(rows), torch.zeros(3, 3))


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
    return padded_logits(model, ids, torch.arange(24))


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


@pytest.mark.skipif(not precision.is_native("bf16", CPU), reason="this processor has no bf16 to compare with")
def test_emulated_bf16_is_as_far_from_fp32_as_the_hardwares(model, monkeypatch):
    """Relative to |hardware - fp32|: how far the emulation is from fp32, and from the hardware."""
    sharp = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in sharp.parameters():
            parameter.mul_(1.5 if parameter.dim() > 1 else 1)
    ids = torch.randint(4, 50, (8, 48), generator=torch.Generator().manual_seed(0))
    signs = torch.randn(ids.numel(), generator=torch.Generator().manual_seed(1))

    def measure(dtype: str, native: bool) -> tuple[torch.Tensor, torch.Tensor]:
        monkeypatch.setattr(precision, "is_native", lambda dtype, device: dtype == "fp32" or native)
        policy = Policy(copy.deepcopy(sharp), dtype, CPU)
        logprobs = padded_logits(policy.model, ids, torch.arange(ids.numel())).log_softmax(-1)
        chosen = logprobs.gather(-1, ids.flatten()[:, None]).squeeze(1)
        (chosen * signs).mean().backward()
        policy.gather_gradients()
        return chosen.detach(), torch.cat([p.grad.flatten() for p in policy.master.parameters()])

    for exact, emulated, native in zip(
        measure("fp32", True), measure("bf16", False), measure("bf16", True), strict=True
    ):
        size = (native - exact).norm()
        assert 0.8 < (emulated - exact).norm() / size < 1.1
        assert 0.3 < (emulated - native).norm() / size < 1.0  # errors that have nothing in common would give 1.4
