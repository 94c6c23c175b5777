"""Every architecture: engine and trainer agree, training reaches every tensor; others work or are refused."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from drpo_bench.architectures import ARCHITECTURES, SIZES
from drpo_bench.config import MIXTURES, Architecture, ModelConfig
from drpo_bench.config import SIZES as SIZE_NAMES
from drpo_bench.model_check import check_model
from drpo_bench.models import Policy, build_model, load_checkpoint
from drpo_bench.precision_configs import PrecisionConfig
from drpo_bench.precision_experts import expert_modules
from drpo_bench.records import RunDir, read_records
from drpo_bench.rollout.decoder import CacheDecoder
from drpo_bench.rollout.engine import Sampling, sample_seeds
from drpo_bench.rollout.torch_engine import TorchEngine
from drpo_bench.routing import routers
from drpo_bench.scoring import score
from drpo_bench.trainer import Trainer
from drpo_bench.types import Rollout

CPU = torch.device("cpu")
ALL = sorted(ARCHITECTURES)
LAYERS = 2  # of a nano


def sharp(architecture):
    model = build_model(ModelConfig(architecture=architecture), vocab_size=60, seed=0)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    return model


def test_the_config_knows_every_architecture_and_size():
    assert set(get_args(Architecture)) == set(ARCHITECTURES)
    assert tuple(SIZES) == SIZE_NAMES


@pytest.mark.parametrize("architecture", ALL)
def test_mixtures_are_those_with_experts(architecture):
    model = build_model(ModelConfig(architecture=architecture), vocab_size=60, seed=0)
    count = LAYERS if architecture in MIXTURES else 0
    assert (len(routers(model)), len(expert_modules(model))) == (count, count)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("architecture", ALL)
def test_every_size_can_be_built(architecture, size):
    with torch.device("meta"):
        model = build_model(ModelConfig(name=size, architecture=architecture), vocab_size=60, seed=0)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("architecture", ALL)
def test_engine_and_trainer_give_the_same_logprobs_in_fp32(architecture):
    """Ragged prompts padded on the left, a cache of its own kind, rows that leave; longer than a sliding window.

    A gated delta net sums in chunks in the trainer and token by token in the engine: a rare token differs by 2e-5.
    """
    model = build_model(ModelConfig(architecture=architecture), vocab_size=60, seed=0)
    engine = TorchEngine(model, PrecisionConfig.model_validate("fp32").rollout, CPU)
    prompts = [list(range(4 + i, 8 + 3 * i)) for i in range(6)]
    seeds = sample_seeds(0, "test", 0, len(prompts), 4)
    groups = engine.generate(prompts, 4, seeds, Sampling(0.8, 48, stop_ids=tuple(range(2, 5))))
    rollouts = [
        Rollout(i, tuple(prompt), r.token_ids, r.logprobs, r.truncated, 0)
        for i, (prompt, row) in enumerate(zip(prompts, groups, strict=True))
        for r in row
    ]
    lengths = [len(r.response_ids) for r in rollouts]
    assert min(lengths) < 20 and max(lengths) > 40
    trainer = score(Policy(model, "fp32", CPU), rollouts, 0.8, 16384).logprobs
    mu = torch.cat([r.mu_logprobs for r in rollouts])
    difference = (trainer - mu).abs()
    assert difference.mean() < 2e-6
    assert difference.max() < (5e-5 if architecture == "qwen3_next" else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ALL)
def test_twenty_steps_of_rl_change_every_tensor(architecture, tiny_config, tmp_path, warmstart_cache):
    """Without weight decay, which would change them all by itself."""
    config = tiny_config(
        model={"architecture": architecture},
        train={"steps": 20, "weight_decay": 0.0, "lr": 1e-3},
        eval={"every": 20},
        checkpoint={"every": 20},
    )
    trainer = Trainer(config, RunDir(tmp_path / "run"), warmstart_cache)
    before = {name: value.clone() for name, value in trainer.policy.master.named_parameters()}
    trainer.train()
    unchanged = [name for name, value in trainer.policy.master.named_parameters() if torch.equal(value, before[name])]
    assert not unchanged
    for layer, module in enumerate(expert_modules(trainer.policy.master)):
        old = expert_modules(load_checkpoint(trainer.source)[0])[layer]
        moved = (module.gate_up_proj != old.gate_up_proj).flatten(1).any(1)
        assert moved.sum() >= 6, f"experts {(~moved).nonzero().flatten().tolist()} of layer {layer} did not move"
    records = list(read_records(trainer.run_dir.metrics))[1:]
    assert max(record["optim/grad_norm"] for record in records) > 0
    assert all(math.isfinite(record["optim/grad_norm"]) for record in records)
    assert all(record["mismatch/k3"] < 1e-9 for record in records)
    assert all(("mismatch/router_flip_frac" in record) == (architecture in MIXTURES) for record in records)


@pytest.mark.parametrize("architecture", ALL)
def test_its_own_architectures_pass_the_check_of_checkpoints(architecture):
    check_model(sharp(architecture), architecture)


OTHERS = {
    "qwen2": {},
    "mistral": {"sliding_window": None},
    "olmo2": {},
    "phi3": {},
    "qwen3_5_text": {"full_attention_interval": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                     "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
}  # fmt: skip


def other(model_type, **fields):
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    sizes = {"vocab_size": 60, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": 128, "pad_token_id": 0}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**sizes | fields), dtype=torch.float32)


@pytest.mark.parametrize("model_type", sorted(OTHERS))
def test_other_causal_models_work(model_type):
    check_model(other(model_type, **OTHERS[model_type]), model_type)


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("gemma2", {"head_dim": 16}),
        ("gemma2", {"head_dim": 16, "final_logit_softcapping": 2.0}),
        ("granite", {"logits_scaling": 4.0}),
    ],
)
def test_capped_or_scaled_logits_are_refused_with_the_reason(model_type, fields):
    """A cap of 30, gemma2's default, shows in no logit of a random model: its config tells."""
    with pytest.raises(ValueError, match=r"model\.name: mine: \w+ = \d+ caps or scales the logits of its head"):
        check_model(other(model_type, **fields), "mine")


def test_logits_that_are_more_than_the_heads_are_refused_whatever_the_config_says(monkeypatch):
    model = other("qwen2")
    real = type(model).forward

    def doubled(self, *args, **kwargs):
        output = real(self, *args, **kwargs)
        output.logits = 2 * output.logits
        return output

    monkeypatch.setattr(type(model), "forward", doubled)
    with pytest.raises(ValueError, match=r"mine: \w+ scales or caps the logits of its head"):
        check_model(model, "mine")


def test_a_model_that_looks_ahead_is_refused(monkeypatch):
    model = other("qwen2")
    real = type(model.model).forward

    def peek(self, *args, **kwargs):
        output = real(self, *args, **kwargs)
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(1, keepdim=True)
        return output

    monkeypatch.setattr(type(model.model), "forward", peek)
    with pytest.raises(ValueError, match="lets later tokens change earlier ones"):
        check_model(model, "mine")


def test_a_cache_that_mixes_up_its_rows_is_refused(monkeypatch):
    def select(self, rows):
        self.cache.reorder_cache(rows.flip(0))
        self.mask = self.mask[rows]

    monkeypatch.setattr(CacheDecoder, "select", select)
    with pytest.raises(ValueError, match="decodes other logits with left padding and a cache"):
        check_model(other("qwen2"), "mine")
