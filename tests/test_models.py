"""From-scratch models: sizes, purity, and the two ways to a logit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from drpo_bench.config import SIZES, ModelConfig
from drpo_bench.models import build_model, load_weights, padded_logits
from drpo_bench.sweep.cost import PARAMETERS


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_what_the_plan_counts_with(size):
    model = build_model(ModelConfig(name=size), vocab_size=300, seed=0)
    embedding = model.get_input_embeddings().weight.numel()
    body = sum(parameter.numel() for parameter in model.parameters()) - embedding
    assert body == pytest.approx(PARAMETERS[size], rel=0.05)


def test_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second, other = (build_model(ModelConfig(), 50, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_gathered_logits_are_those_of_the_whole_model_and_padding_changes_nothing():
    model = build_model(ModelConfig(), 50, seed=0)
    ids = torch.arange(10)[None] + 4
    whole = model(input_ids=ids).logits[0]
    padded = torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], dim=1)
    torch.testing.assert_close(padded_logits(model, padded, torch.tensor([3, 9])), whole[[3, 9]])


def test_a_checkpoint_without_a_weight_is_an_error_and_never_random(tmp_path):
    build_model(ModelConfig(), vocab_size=50, seed=0).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights are missing .*: model\.layers\.1\.mlp\.up_proj\.weight$"):
        load_weights(tmp_path)


def test_a_checkpoint_gives_the_same_weights_back_bit_for_bit(tmp_path):
    """Experts too, which are stored one by one and held together."""
    model = build_model(ModelConfig(architecture="qwen3_moe"), vocab_size=50, seed=0)
    model.save_pretrained(tmp_path)
    loaded = load_weights(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
