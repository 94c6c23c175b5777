"""What is refused before anything is written: number formats that the machine lacks."""

from __future__ import annotations

import pytest
import torch

from drpo_bench import precision, precision_fp8
from drpo_bench.errors import UserError
from drpo_bench.precision_configs import PrecisionConfig
from drpo_bench.records import RunDir
from drpo_bench.sweep.plan import load_experiment
from drpo_bench.sweep.preflight import preflight
from drpo_bench.trainer import Trainer

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ALL_FP8 = {
    "trainer": "fp8",
    "rollout": {"dtype": "fp16", "fp8_weights": True, "fp8_activations": True, "fp8_kv": True},
}


@pytest.fixture
def plan(tmp_path):
    def load(preset: str, allow: bool, device: str = "cpu"):
        path = tmp_path / "study.toml"
        path.write_text(f"""
            [experiment]
            name = "study"
            [runtime]
            device = "{device}"
            allow_emulation = {str(allow).lower()}
            [precision]
            {preset}
        """)
        return load_experiment(str(path))

    return load


@pytest.fixture
def plain_cpu(monkeypatch):
    """A processor that multiplies fp32 only, whatever this one has."""
    monkeypatch.setattr(precision, "is_native", lambda dtype, device: dtype == "fp32")


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("preset = 'bf16'", "precision.trainer: this CPU can only emulate bf16; run on a GPU with compute"),
        ("preset = 'fp16'", "precision.trainer: this CPU can only emulate fp16; run on a GPU, or set"),
        ("preset = 'fp8_e2e'", "precision.trainer: this CPU can only emulate fp8; run on a GPU with compute"),
        (
            "trainer = 'fp32'\nrollout = { dtype = 'fp32', fp8_weights = true, fp8_kv = true }",
            "precision.rollout: this CPU can only emulate fp8 weights and fp8 keys and values; "
            "the torch engine multiplies fp8 on no device: set rollout.engine = 'vllm', whose kernels do, or set",
        ),
    ],
)  # fmt: skip
def test_emulation_that_is_not_allowed_is_refused_with_the_remedy(plan, plain_cpu, preset, message):
    preflight(plan(preset, allow=True))
    with pytest.raises(UserError) as error:
        preflight(plan(preset, allow=False))
    assert str(error.value).startswith(f"{plan(preset, allow=False).source}: {message}")
    assert str(error.value).endswith("or set runtime.allow_emulation = true")


def test_fp32_is_everywhere(plan, plain_cpu):
    preflight(plan("preset = 'fp32'", allow=False))


def test_a_worker_refuses_too(tiny_config, tmp_path, warmstart_cache, plain_cpu):
    config = tiny_config(precision={"preset": "bf16"}, runtime={"allow_emulation": False})
    with pytest.raises(ValueError, match=r"precision\.trainer: this CPU can only emulate bf16"):
        Trainer(config, RunDir(tmp_path / "run"), warmstart_cache)
    assert not (tmp_path / "run").exists()


def test_parts_on_this_cpu_and_on_gpus(monkeypatch):
    config = PrecisionConfig.model_validate(ALL_FP8)
    rollout = ["fp8 weights", "fp8 activations", "fp8 keys and values"]
    assert precision.emulated_parts(config, "torch", CPU) == {"trainer": ["fp8"], "rollout": ["fp16", *rollout]}
    for capability, trainer in (((8, 9), ["fp8"]), ((9, 0), []), ((10, 0), [])):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert precision.emulated_parts(config, "torch", GPU) == {"trainer": trainer, "rollout": rollout}
    assert set(precision.REMEDIES) == {"bf16", "fp16", "fp8", *rollout}


def test_real_fp8_without_torchao_is_told_before_the_first_run(plan, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(precision_fp8, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"study\.toml: precision\.trainer: fp8 on this GPU needs torchao"):
        preflight(plan("preset = 'fp8_e2e'", allow=True, device="cuda"))
