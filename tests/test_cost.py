"""What a plan says a sweep will cost."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from drpo_bench.sweep.cost import estimate, parameters_of
from drpo_bench.sweep.session import disk_warnings
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


def test_a_disk_too_small_is_warned_of(tiny_config, tmp_path, monkeypatch):
    runs = [tiny_config(seed=0), tiny_config(seed=1)]
    needed = 2 * estimate(runs[0]).megabytes
    for free, warnings in ((needed + 1, 0), (needed - 1, 1)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free * 1e6))
        found = disk_warnings(runs, tmp_path / "results")
        assert len(found) == warnings
    assert found == [
        f"the runs leave up to {needed:.0f} MB of checkpoints and records; {tmp_path} has only {needed - 1:.0f} MB free"
    ]
    assert not list(tmp_path.iterdir())
