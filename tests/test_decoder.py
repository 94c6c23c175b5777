"""The hand-written decoder computes what the module computes, in every precision, at the weights of the moment."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3NextConfig

from drpo_bench import precision
from drpo_bench.config import ModelConfig
from drpo_bench.models import Policy, build_model, head_logits
from drpo_bench.precision_configs import PrecisionConfig
from drpo_bench.rollout import torch_engine
from drpo_bench.rollout.decoder import CacheDecoder, left_padded
from drpo_bench.rollout.decoder_qwen3 import Qwen3Decoder, Rounding, supports
from drpo_bench.rollout.engine import Sampling, sample_seeds
from drpo_bench.rollout.fp8_cache import Fp8Cache
from drpo_bench.rollout.torch_engine import TorchEngine
from drpo_bench.scoring import score
from drpo_bench.types import Rollout

CPU = torch.device("cpu")
RAGGED = [[10, 11, 12], [20, 21, 22, 23, 24, 25], [30]]
EVEN = [[10, 11, 12], [20, 21, 22], [30, 31, 32]]
SEEDS = sample_seeds(0, "train", 0, 3, 4)
NEW_TOKENS = 20
KEPT = {7: [0, 1, 2, 4, 8, 9, 10, 11], 12: [3, 4, 6, 7], 16: [0, 3]}  # of 12 rows, 4 a prompt, by step
BF16_KV = {"rollout": {"dtype": "bf16", "fp8_kv": True}}
FP8_ALL = {"rollout": {"dtype": "bf16", "fp8_weights": True, "fp8_activations": True, "fp8_kv": True}}
FP8_KV = {"trainer": "fp32", "rollout": {"dtype": "fp32", "fp8_kv": True}}


def sharpened(model):
    """Far from uniform, norms of every scale: mistakes in position, mask, head or norm show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            wide = parameter.dim() > 1
            parameter.mul_(2 if wide else torch.rand(parameter.shape, generator=generator) + 0.5)
    return model


def small(kind, model_class, **changes):
    """Shapes that differ in every dimension: 6 heads on 2 of keys, heads wider than the hidden size."""
    shape = {"hidden_size": 36, "num_hidden_layers": 3, "intermediate_size": 40, "vocab_size": 60, "head_dim": 8}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "initializer_range": 0.1}
    torch.manual_seed(0)
    return sharpened(model_class(kind(max_position_embeddings=64, **(shape | heads | changes))))


def qwen3(**changes):
    return small(Qwen3Config, Qwen3ForCausalLM, **changes)


@pytest.fixture(scope="module")
def model():
    return sharpened(build_model(ModelConfig(), vocab_size=60, seed=0))


def teacher_forced(decoder, model, prompts):
    """Logprobs [rows, steps, V] of fixed tokens; rows leave on the way, of each prompt others, of one all."""
    ids, mask = left_padded(prompts, CPU)
    repeat = torch.arange(len(prompts)).repeat_interleave(4)
    tokens = torch.randint(4, 60, (len(repeat), NEW_TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = decoder.prefill(ids, mask, NEW_TOKENS)
        decoder.expand(repeat)
        positions, seen = mask.sum(1)[repeat], [head_logits(model, hidden)[repeat]]
        for step in range(NEW_TOKENS):
            if step in KEPT:
                keep = torch.tensor(KEPT[step])
                decoder.select(keep)
                tokens, positions = tokens[keep], positions[keep]
            seen.append(head_logits(model, decoder.step(tokens[:, step], positions + step)))
    return torch.cat([logits.log_softmax(-1).flatten() for logits in seen])


def difference(engine, prompts=RAGGED):
    """|fast - plain| of every logprob."""
    assert supports(engine.model, engine.rounding)
    fast = teacher_forced(Qwen3Decoder(engine.model, engine.rounding), engine.model, prompts)
    plain = teacher_forced(CacheDecoder(engine.model, engine.rounding.fp8_kv), engine.model, prompts)
    assert fast.std() > 0.5
    return (fast - plain).abs()


def engine_of(model, preset):
    return TorchEngine(model, PrecisionConfig.model_validate(preset).rollout, CPU)


@pytest.fixture
def emulating(monkeypatch):
    """This processor multiplies fp32 only, whatever it really has."""
    monkeypatch.setattr(precision, "is_native", lambda dtype, device: dtype == "fp32")


def ids(groups):
    return [[r.token_ids for r in group] for group in groups]


@pytest.mark.parametrize("prompts", [RAGGED, EVEN], ids=["ragged", "even"])
@pytest.mark.parametrize("tied", [True, False])
def test_fp32_equals_the_module(prompts, tied):
    assert difference(engine_of(qwen3(tie_word_embeddings=tied), "fp32"), prompts).max() < 1e-5


@pytest.mark.parametrize("preset", ["bf16", "fp16", "fp8_rollout", FP8_ALL], ids=str)
def test_emulated_precisions_equal_the_module_but_for_flipped_roundings(model, preset, emulating):
    engine = engine_of(model, preset)
    assert engine.rounding.needs_hooks
    fast = difference(engine)
    assert fast.mean() < 2e-3
    engine.rounding = Rounding()  # a decoder that forgets to round is told apart
    unrounded = teacher_forced(Qwen3Decoder(engine.model, engine.rounding), engine.model, RAGGED)
    plain = teacher_forced(CacheDecoder(engine.model), engine.model, RAGGED)
    assert (unrounded - plain).abs().mean() > 4 * fast.mean()


@pytest.mark.parametrize(
    ("preset", "bound"),
    [("bf16", 0.03), ("fp16", 0.004), (BF16_KV, 0.05)],
    ids=str,
)
def test_native_formats_run_the_same_code(model, preset, bound, monkeypatch):
    monkeypatch.setattr(precision, "is_native", lambda dtype, device: True)
    engine = engine_of(model, preset)
    assert engine.model.dtype == precision.DTYPES[engine.config.dtype] and not engine.rounding.needs_hooks
    assert difference(engine).mean() < bound


@pytest.mark.parametrize("prompts", [RAGGED, EVEN], ids=["ragged", "even"])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_the_samples_are_the_modules(model, prompts, temperature, monkeypatch):
    engine, sampling = engine_of(model, "fp32"), Sampling(temperature, 24, (2, 3, 4, 5))
    fast = engine.generate(prompts, 4, SEEDS, sampling)
    monkeypatch.setattr(torch_engine, "supports", lambda model, rounding: False)
    plain = engine.generate(prompts, 4, SEEDS, sampling)
    assert ids(fast) == ids(plain)
    for left, right in zip(chain(*fast), chain(*plain), strict=True):
        torch.testing.assert_close(left.logprobs, right.logprobs, atol=1e-5, rtol=0)
        assert left.truncated == right.truncated and not left.logprobs.is_inference()


def test_both_decoders_round_keys_and_values(model):
    engine = engine_of(model, FP8_KV)
    fast = difference(engine)
    assert fast.mean() < 2e-3
    engine.rounding = Rounding()
    unrounded = teacher_forced(Qwen3Decoder(engine.model, engine.rounding), engine.model, RAGGED)
    plain = teacher_forced(CacheDecoder(engine.model, fp8_kv=True), engine.model, RAGGED)
    assert (unrounded - plain).abs().mean() > 10 * fast.mean()
    bare = teacher_forced(CacheDecoder(engine.model), engine.model, RAGGED)
    assert (unrounded - bare).abs().max() < 1e-4


def test_another_architectures_cache_holds_e4m3_with_a_scale_a_token_and_head():
    engine = engine_of(small(LlamaConfig, LlamaForCausalLM), FP8_KV)
    decoder = engine._decoder()
    teacher_forced(decoder, engine.model, RAGGED)
    assert isinstance(decoder, CacheDecoder)
    for layer in decoder.cache.layers:
        for cached in (layer.keys, layer.values):  # [rows, heads, T, head_dim]
            assert cached.shape[1:] == (2, 26, 8)
            torch.testing.assert_close(precision.quantise_e4m3(cached), cached, rtol=1e-6, atol=0)
            on_the_grid = cached / cached.abs().amax(-1, keepdim=True) * 448
            torch.testing.assert_close(on_the_grid.to(torch.float8_e4m3fn).float(), on_the_grid, rtol=1e-5, atol=1e-6)


def test_states_of_linear_attention_are_left_alone():
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    cache = Fp8Cache(config=Qwen3NextConfig(**shape))
    values = torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cache.update_recurrent_state(values, 0), values)
    assert torch.equal(cache.update_conv_state(values[0], 0), values[0])
    keys, _ = cache.update(values, values, 1)
    assert torch.equal(keys, precision.quantise_e4m3(values)) and not torch.equal(keys, values)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp8"])
def test_a_shared_engine_sees_every_change_of_the_policy(dtype, emulating):
    policy = Policy(sharpened(build_model(ModelConfig(), vocab_size=60, seed=0)), dtype, CPU)
    engine, sampling = TorchEngine.shared(policy.model, CPU, policy.dtype), Sampling(1.0, 16, (2,))
    assert engine.emulated == policy.emulated
    assert difference(engine).mean() < 2e-3
    before = ids(engine.generate(RAGGED, 4, SEEDS, sampling))
    with torch.no_grad():
        for parameter in policy.master.parameters():
            parameter.mul_(1.2)
    policy.publish()
    changed = engine.generate(RAGGED, 4, SEEDS, sampling)
    assert ids(changed) != before
    fresh = TorchEngine.shared(policy.model, CPU, policy.dtype).generate(RAGGED, 4, SEEDS, sampling)
    assert ids(changed) == ids(fresh)
    assert difference(engine).mean() < 2e-3


def test_loaded_weights_are_seen(model):
    engine, other = engine_of(model, "fp32"), sharpened(build_model(ModelConfig(), vocab_size=60, seed=1))
    before = ids(engine.generate(RAGGED, 4, SEEDS, Sampling(1.0, 16, (2,))))
    engine.load_weights(other)
    changed = ids(engine.generate(RAGGED, 4, SEEDS, Sampling(1.0, 16, (2,))))
    assert changed == ids(engine_of(other, "fp32").generate(RAGGED, 4, SEEDS, Sampling(1.0, 16, (2,)))) != before


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"hidden_act": "gelu"},
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_kinds_of_qwen3_take_the_plain_path(changes):
    assert supports(qwen3(), Rounding())
    assert not supports(qwen3(**changes), Rounding())


def test_hooks_that_the_rounding_does_not_tell_of_take_the_plain_path(model, emulating):
    emulated = Policy(model, "bf16", CPU).model
    assert not supports(emulated, Rounding()) and supports(emulated, Rounding("bf16"))
    assert not supports(model, Rounding("bf16")) and supports(model, Rounding())


def test_fp8_layers_and_a_rounding_without_them_exclude_each_other(model):
    trained = Policy(model, "fp8", CPU).model
    plain = TorchEngine.shared(trained, CPU, "bf16").rounding
    fp8 = TorchEngine.shared(trained, CPU, "fp8").rounding
    assert supports(trained, fp8) and not supports(trained, plain)
    assert supports(Policy(model, "bf16", CPU).model, plain) and not supports(Policy(model, "bf16", CPU).model, fp8)


def test_another_architecture_takes_the_plain_path_and_its_logprobs_are_the_trainers():
    model = small(LlamaConfig, LlamaForCausalLM)
    engine = engine_of(model, "fp32")
    assert isinstance(engine._decoder(), CacheDecoder)
    groups = engine.generate(RAGGED, 4, SEEDS, Sampling(0.6, 24, (2, 3, 4, 5)))
    rollouts = [
        Rollout(i, tuple(RAGGED[i]), r.token_ids, r.logprobs, r.truncated, 0) for i in range(3) for r in groups[i]
    ]
    logprobs = score(Policy(model, "fp32", CPU), rollouts, 0.6, max_tokens=64).logprobs
    assert (logprobs - torch.cat([r.mu_logprobs for r in rollouts])).abs().max() < 1e-5
