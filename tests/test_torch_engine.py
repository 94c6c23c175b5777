"""The torch engine: its logprobs are the trainer's, its samples a pure function of their seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drpo_bench.config import ModelConfig
from drpo_bench.models import Policy, build_model
from drpo_bench.precision_configs import PrecisionConfig
from drpo_bench.rollout.engine import Response, Sampling, sample_seeds, uniforms
from drpo_bench.rollout.torch_engine import TorchEngine, sample
from drpo_bench.scoring import score
from drpo_bench.types import Rollout

CPU = torch.device("cpu")
PROMPTS = [[10, 11, 12], [20, 21, 22, 23, 24, 25], [30]]
FP8_KV = {"trainer": "fp32", "rollout": {"dtype": "fp32", "fp8_kv": True}}
SEEDS = sample_seeds(0, "train", 0, len(PROMPTS), 4)


@pytest.fixture(scope="module")
def model():
    """A random model that is far from uniform, so that mistakes in position or mask show."""
    built = build_model(ModelConfig(), vocab_size=60, seed=0)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2)
    return built


def sampling(temperature=1.0, max_new_tokens=24, stop_ids=(2, 3, 4, 5)):
    return Sampling(temperature, max_new_tokens, stop_ids)


def rollouts_of(groups):
    return [
        Rollout(i, tuple(PROMPTS[i]), r.token_ids, r.logprobs, r.truncated, 0)
        for i, group in enumerate(groups)
        for r in group
    ]


def mismatch(model, preset, temperature=1.0):
    """|old - mu| of every sampled token, engine against trainer at the same weights."""
    precision = PrecisionConfig.model_validate(preset)
    engine = TorchEngine(model, precision.rollout, CPU)
    rollouts = rollouts_of(engine.generate(PROMPTS, 4, SEEDS, sampling(temperature)))
    logprobs = score(Policy(model, precision.trainer, CPU), rollouts, temperature, max_tokens=64).logprobs
    return (logprobs - torch.cat([r.mu_logprobs for r in rollouts])).abs()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_fp32_logprobs_equal_the_trainers(model, temperature):
    assert mismatch(model, "fp32", temperature).max() < 1e-5


@pytest.mark.parametrize(
    ("preset", "low", "high"),
    [("bf16", 0.0, 0.05), ("fp16", 0.0, 0.02), ("fp8_rollout", 3e-3, 0.4), ("fp8_e2e", 3e-3, 0.4), (FP8_KV, 3e-3, 0.4)],
    ids=str,
)
def test_lower_precisions_differ_by_what_their_rounding_explains(model, preset, low, high):
    assert low <= mismatch(model, preset).mean() < high


def test_wrong_temperature_would_be_seen(model):
    engine = TorchEngine(model, PrecisionConfig.model_validate("fp32").rollout, CPU)
    rollouts = rollouts_of(engine.generate(PROMPTS, 4, SEEDS, sampling(0.6)))
    logprobs = score(Policy(model, "fp32", CPU), rollouts, 1.0, max_tokens=64).logprobs
    assert (logprobs - torch.cat([r.mu_logprobs for r in rollouts])).abs().mean() > 0.05


def test_responses_stop_once_and_keep_their_stop_token(model):
    engine = TorchEngine(model, PrecisionConfig.model_validate("fp32").rollout, CPU)
    responses = [r for group in engine.generate(PROMPTS, 4, SEEDS, sampling()) for r in group]
    assert any(not r.truncated for r in responses)
    for response in responses:
        stops = [token in sampling().stop_ids for token in response.token_ids]
        assert not any(stops[:-1])
        assert stops[-1] != response.truncated
        assert len(response.token_ids) == len(response.logprobs)
        assert response.truncated == (len(response.token_ids) == 24 and not stops[-1])


def test_a_response_depends_on_its_seed_and_not_on_its_neighbours(model):
    engine = TorchEngine(model, PrecisionConfig.model_validate("fp32").rollout, CPU)
    together = engine.generate(PROMPTS, 4, SEEDS, sampling())
    again = engine.generate(PROMPTS, 4, SEEDS, sampling())
    alone = engine.generate(PROMPTS[1:2], 4, SEEDS[1:2], sampling())
    ids = lambda groups: [[r.token_ids for r in group] for group in groups]  # noqa: E731
    assert ids(together) == ids(again)
    assert ids(alone)[0] == ids(together)[1]
    assert ids(engine.generate(PROMPTS, 4, SEEDS + np.uint64(1), sampling())) != ids(together)


def test_seeds_differ_by_run_purpose_step_problem_and_sample():
    seeds = [
        sample_seeds(run, purpose, step, 4, 4) for run in (0, 1) for purpose in ("train", "eval") for step in (0, 1)
    ]
    assert len(np.unique(np.stack(seeds))) == 8 * 16
    assert (sample_seeds(0, "train", 0, 4, 4) == seeds[0]).all()


def test_sampled_frequencies_are_the_probabilities():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(40_000, 1)
    random = torch.from_numpy(np.random.default_rng(0).random(40_000))
    chosen, log_probs = sample(logits, random, 1.0)
    frequencies = torch.bincount(chosen, minlength=4) / 40_000
    torch.testing.assert_close(frequencies, logits[0].exp(), atol=0.01, rtol=0)
    torch.testing.assert_close(log_probs, logits, atol=1e-6, rtol=0)


def test_impossible_tokens_are_never_sampled_and_greedy_takes_the_likeliest():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0]]).repeat(3, 1)
    chosen, _ = sample(logits, torch.tensor([0.0, 0.5, 1 - 1e-12], dtype=torch.float64), 1.0)
    assert set(chosen.tolist()) <= {1, 3}
    assert sample(logits, torch.zeros(3, dtype=torch.float64), 0.0)[0].tolist() == [3, 3, 3]


def test_new_weights_change_the_samples_and_old_ones_restore_them(model):
    engine = TorchEngine(model, PrecisionConfig.model_validate("fp8_rollout").rollout, CPU)
    before = engine.generate(PROMPTS, 2, SEEDS[:, :2], sampling())
    engine.load_weights(build_model(ModelConfig(), vocab_size=60, seed=1))
    changed = engine.generate(PROMPTS, 2, SEEDS[:, :2], sampling())
    engine.load_weights(model)
    after = engine.generate(PROMPTS, 2, SEEDS[:, :2], sampling())
    assert [r.token_ids for g in before for r in g] == [r.token_ids for g in after for r in g]
    assert [r.token_ids for g in before for r in g] != [r.token_ids for g in changed for r in g]


def test_a_responses_random_numbers_are_those_of_its_own_generator():
    seeds = np.array([0, 7, 2**64 - 1], dtype=np.uint64)
    rows = uniforms(seeds, 5)
    for row, seed in zip(rows, seeds.tolist(), strict=True):
        assert (row == np.random.Generator(np.random.Philox(key=seed)).random(5)).all()
    assert (uniforms(seeds[1:2], 5) == rows[1:2]).all()


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("preset", ["fp32", "bf16", "fp16", "fp8_rollout"])
def test_a_sampled_response_scores_exactly_as_it_did_while_it_was_sampled(model, preset, temperature):
    engine = TorchEngine(model, PrecisionConfig.model_validate(preset).rollout, CPU)
    how = Sampling(temperature, 24, (2, 3, 4, 5), topk=3)
    groups = engine.generate(PROMPTS, 4, SEEDS, how)
    lengths = {len(r.token_ids) for group in groups for r in group}
    assert len(lengths) > 1 or temperature == 0.0  # rows leave the batch on the way
    scored = engine.score_responses(PROMPTS, groups, how)
    pairs = [pair for row in zip(groups, scored, strict=True) for pair in zip(*row, strict=True)]
    assert len(pairs) == SEEDS.size
    for before, after in pairs:
        assert (before.token_ids, before.truncated) == (after.token_ids, after.truncated)
        for field in ("logprobs", "topk_ids", "topk_logprobs"):
            assert torch.equal(getattr(before, field), getattr(after, field))


def test_anothers_responses_score_as_the_trainer_scores_them(model):
    """Tokens that this engine would not have sampled, one response of them a truncated one of other length."""
    engine = TorchEngine(model, PrecisionConfig.model_validate("fp32").rollout, CPU)
    given = [[Response((7, 8, 2), torch.zeros(3), False)], [Response((9,), torch.zeros(1), True)]]
    scored = engine.score_responses(PROMPTS[:2], given, sampling())
    rollouts = rollouts_of(scored)
    assert [r.response_ids for r in rollouts] == [(7, 8, 2), (9,)]
    logprobs = score(Policy(model, "fp32", CPU), rollouts, 1.0, max_tokens=64).logprobs
    torch.testing.assert_close(torch.cat([r.mu_logprobs for r in rollouts]), logprobs, atol=1e-5, rtol=0)
