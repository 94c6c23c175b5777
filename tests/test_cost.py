"""What a plan says a sweep will cost."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from drpo_bench.sweep.cost import estimate, parameters_of
from drpo_bench.sweep.session import disk_text
from drpo_bench.trainer import train


def test_parameters_of_a_checkpoint_are_counted_from_its_headers(tmp_path):
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}, tmp_path / "model-1.safetensors")
    save_file({"c": torch.zeros(2, 2, 2)}, tmp_path / "model-2.safetensors", metadata={"format": "pt"})
    assert parameters_of(str(tmp_path)) == 15 + 7 + 8
    assert parameters_of("nano") == 0.22e6
    assert parameters_of("owner/name") is None


def test_the_disk_is_a_bound_and_no_wild_one(tiny_config, tmp_path, warmstart_cache):
    config = tiny_config(train={"steps": 4}, rollout={"lag": 2}, checkpoint={"every": 1, "keep": 2})
    train(config, tmp_path, warmstart_cache)
    used = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) / 1e6
    promised = estimate(config).megabytes
    assert used < promised < 3 * used


@pytest.mark.parametrize(("megabytes", "says"), [(3.0, "at most 3 MB"), (1e15, "has only")])
def test_a_disk_too_small_is_told_in_the_plan(megabytes, says, tmp_path):
    assert says in disk_text(megabytes, tmp_path / "results")
    assert not list(tmp_path.iterdir())
