"""The alarm hears every way of wiring an engine wrongly, and does not take for it what training does to a policy."""

from __future__ import annotations

import pytest
import torch

from drpo_bench.config import ModelConfig
from drpo_bench.models import Policy, build_model
from drpo_bench.precision_configs import PrecisionConfig
from drpo_bench.records import RunDir
from drpo_bench.rollout import alarm
from drpo_bench.rollout.alarm import MismatchAlarm, find_mismatch
from drpo_bench.rollout.engine import Response, Sampling, sample_seeds
from drpo_bench.rollout.handover import HandoverFailed
from drpo_bench.rollout.torch_engine import TorchEngine
from drpo_bench.scoring import score
from drpo_bench.trainer import Trainer, train
from drpo_bench.types import Rollout

CPU = torch.device("cpu")
PROMPTS = [[4 + i, 5 + i, 6 + 2 * i, 7] for i in range(32)]
PRESETS = ("fp32", "bf16", "fp16", "fp8_rollout", "fp8_e2e")


@pytest.fixture(scope="module")
def model():
    """Random, but sharp: its entropy is that of a policy that has learned something."""
    model = build_model(ModelConfig(), vocab_size=200, seed=0)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(3)
    return model


def mismatch(model, preset, temperature=1.0, change=lambda engine: None, alter=lambda response, prompt: response):
    """What the alarm says of an engine after `change`, whose responses went through `alter`."""
    config = PrecisionConfig.model_validate(preset)
    engine = TorchEngine(model, config.rollout, CPU)
    change(engine)
    seeds = sample_seeds(0, "test", 0, len(PROMPTS), 4)
    groups = engine.generate(PROMPTS, 4, seeds, Sampling(temperature, 24, stop_ids=()))
    responses = [(p, alter(r, p)) for p, row in zip(PROMPTS, groups, strict=True) for r in row]
    rollouts = [Rollout(i, tuple(p), r.token_ids, r.logprobs, True, 0) for i, (p, r) in enumerate(responses)]
    old = score(Policy(model, config.trainer, CPU), rollouts, temperature, 16384).logprobs
    return find_mismatch(old, torch.cat([r.mu_logprobs for r in rollouts]), config)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("preset", PRESETS)
def test_an_engine_that_is_wired_right_sets_off_nothing(model, preset, temperature):
    assert mismatch(model, preset, temperature) is None


@pytest.mark.parametrize("preset", PRESETS)
def test_stale_weights_are_heard(model, preset):
    stale = build_model(ModelConfig(), vocab_size=200, seed=1)
    assert mismatch(model, preset, change=lambda engine: engine.load_weights(stale))


@pytest.mark.parametrize("preset", ["fp32", "bf16", "fp16"])
def test_weights_one_small_update_old_are_heard_where_rounding_is_smaller_than_the_update(model, preset):
    """fp8 rounds by more than such an update changes; there the check of the hand-over has to find them."""
    older = build_model(ModelConfig(), vocab_size=200, seed=0)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        older.get_input_embeddings().weight.mul_(3)
        for parameter in older.parameters():
            parameter.add_(parameter.std() * 0.2 * torch.randn(parameter.shape, generator=noise))
    assert mismatch(model, preset, change=lambda engine: engine.load_weights(older))


@pytest.mark.parametrize(
    ("preset", "cool"), [("fp32", 0.99), ("bf16", 0.9), ("fp16", 0.9), ("fp8_rollout", 0.5), ("fp8_e2e", 0.4)]
)
def test_another_temperature_is_heard(model, preset, cool):
    """The coarser the format, the larger the error that its rounding hides."""

    def cooler(engine):
        real = engine.generate
        engine.generate = lambda prompts, size, seeds, sampling: real(prompts, size, seeds, Sampling(cool, 24, ()))

    assert mismatch(model, preset, change=cooler)


def rescored(model, temperature):
    """Replaces the engine's logprobs by the fp32 model's at a temperature."""

    def alter(response, prompt):
        rollout = Rollout(0, tuple(prompt), response.token_ids, response.logprobs, True, 0)
        logprobs = score(Policy(model, "fp32", CPU), [rollout], temperature, 16384).logprobs
        return Response(response.token_ids, logprobs, True)

    return alter


@pytest.mark.parametrize("preset", PRESETS)
def test_raw_instead_of_processed_logprobs_are_heard(model, preset):
    assert mismatch(model, preset, temperature=0.6, alter=rescored(model, 1.0))


@pytest.mark.parametrize("preset", PRESETS)
def test_logprobs_shifted_by_one_token_are_heard(model, preset):
    def shift(response, prompt):
        return Response(response.token_ids, response.logprobs.roll(1), True)

    assert mismatch(model, preset, alter=shift)


@pytest.mark.parametrize("preset", ["fp32", "bf16", "fp16", "fp8_rollout"])
def test_top_p_left_on_is_heard(model, preset, monkeypatch):
    """mu is renormalised by the kept mass: by 0.07 nats on average, a third of what fp8 rounds, but one-sided."""
    from drpo_bench.rollout import torch_engine

    real = torch_engine.sample

    def nucleus(logits, random, temperature):
        log_probs = (logits / temperature).log_softmax(-1)
        ordered, order = log_probs.sort(descending=True)
        mass_before = ordered.exp().cumsum(-1) - ordered.exp()
        drop = torch.zeros_like(log_probs, dtype=torch.bool).scatter(-1, order, mass_before >= 0.9)
        return real(logits.masked_fill(drop, -torch.inf), random, temperature)

    monkeypatch.setattr(torch_engine, "sample", nucleus)
    problem = mismatch(model, preset)
    assert problem and (preset != "fp8_rollout" or "on average" in problem)


def test_a_stale_prefix_cache_is_heard(model):
    """The prompts' keys and values come from other weights than the rest."""
    stale = TorchEngine(
        build_model(ModelConfig(), vocab_size=200, seed=1), PrecisionConfig.model_validate("fp32").rollout, CPU
    )

    def cached(engine):
        fresh = engine._decoder

        def decoder():
            new, old = fresh(), stale._decoder()
            prefill = new.prefill

            def mixed(ids, mask, max_new_tokens):
                hidden = prefill(ids, mask, max_new_tokens)
                old.prefill(ids, mask, max_new_tokens)
                new.cache = old.cache
                return hidden

            new.prefill = mixed
            return new

        engine._decoder = decoder

    assert mismatch(model, "fp32", change=cached)


def test_nan_is_heard():
    values = torch.tensor([-1.0, float("nan")])
    assert "nan" in find_mismatch(values, values, PrecisionConfig.model_validate("bf16"))


def test_equal_logprobs_are_no_mismatch():
    values = -torch.rand(100)
    assert find_mismatch(values, values, PrecisionConfig.model_validate("fp32")) is None


def test_a_run_with_stale_weights_fails_before_its_first_update(tiny_config, tmp_path, warmstart_cache, monkeypatch):
    trainer = Trainer(tiny_config(), RunDir(tmp_path / "run"), warmstart_cache)
    with torch.no_grad():
        next(iter(trainer.policy.master.parameters())).mul_(1.3)
    monkeypatch.setattr(trainer.engine, "load_weights", lambda model, version=0: None)
    with pytest.raises(MismatchAlarm, match=r"step 0: mean .* stale engine weights"):
        trainer.train()


def test_a_later_hand_over_that_fails_is_an_error_and_no_result(tiny_config, tmp_path, warmstart_cache, monkeypatch):
    """The engine keeps the weights of the first update."""
    trainer = Trainer(tiny_config(train={"steps": 3, "lr": 0.02}), RunDir(tmp_path / "run"), warmstart_cache)
    real, calls = trainer.engine.load_weights, []

    def once_more(model, version=0):
        calls.append(version)
        if version < 2 and len(calls) < 4:
            real(model, version)

    monkeypatch.setattr(trainer.engine, "load_weights", once_more)
    with pytest.raises(HandoverFailed, match="did not take over"):
        trainer.train()


def test_an_engine_that_never_leaves_the_initial_weights_is_an_error_too(
    tiny_config, tmp_path, warmstart_cache, monkeypatch
):
    """At the initial weights it agrees with the trainer: that alone would look like a policy that drifted."""
    trainer = Trainer(tiny_config(train={"steps": 3, "lr": 0.02}), RunDir(tmp_path / "run"), warmstart_cache)
    monkeypatch.setattr(trainer.engine, "load_weights", lambda model, version=0: None)
    with pytest.raises(HandoverFailed, match="did not take over"):
        trainer.train()


def test_a_question_that_only_wrong_wiring_answers_does_not_end_a_run_that_is_wired_right(
    tiny_config, tmp_path, warmstart_cache, monkeypatch
):
    """A policy can be so sharp that its rounding grows with the logprob; that is asked once, and the run goes on."""
    asked = []

    def suspicious(old, mu, precision):
        asked.append(1)
        return None if len(asked) in (1, 3) else "mu - old grows"  # at step 0, and at the initial weights

    monkeypatch.setattr("drpo_bench.trainer.find_mismatch", suspicious)
    monkeypatch.setattr("drpo_bench.wiring.find_mismatch", suspicious)
    config = tiny_config(train={"steps": 4})
    train(config, tmp_path, warmstart_cache)
    assert RunDir(tmp_path / "runs" / config.run_id).status()["state"] == "finished"
    assert len(asked) == 3


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_a_few_tokens_of_rounding_set_off_nothing(count):
    generator, config = torch.Generator().manual_seed(0), PrecisionConfig.model_validate("bf16")
    for _ in range(500):
        old = -torch.rand(count, generator=generator)
        assert find_mismatch(old, old + 0.01 * torch.randn(count, generator=generator), config) is None


def test_a_policy_that_the_formats_cannot_follow_has_collapsed(tiny_config, tmp_path, warmstart_cache, monkeypatch):
    """Random weights differ by more in bf16 than is tolerated here; at the initial ones all is well."""
    real = Trainer.train_on

    def sharpen(self, batch):
        monkeypatch.setitem(alarm.TOLERANCE, "bf16", 2.2 * batch.metrics["mismatch/logprob_absdiff_mean"])
        record = real(self, batch)
        with torch.no_grad():
            for parameter in self.policy.master.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        self.policy.publish()
        return record

    monkeypatch.setattr(Trainer, "train_on", sharpen)
    config = tiny_config(precision={"trainer": "fp32", "rollout": {"dtype": "bf16"}}, train={"steps": 3})
    train(config, tmp_path, warmstart_cache)
    status = RunDir(tmp_path / "runs" / config.run_id).status()
    assert (status["state"], status["reason"], status["collapse_step"]) == ("collapsed", "mismatch", 2)
    assert "at the initial weights engine and trainer agree" in status["detail"]
