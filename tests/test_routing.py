"""Routing replay: the same routes give the same logits, other routes others, and the router still learns."""

from __future__ import annotations

import pytest
import torch

from drpo_bench.architectures import ACTIVE, EXPERTS
from drpo_bench.batching import micro_batch
from drpo_bench.config import MIXTURES, ModelConfig
from drpo_bench.metrics import routing_metrics
from drpo_bench.models import Policy, build_model, padded_logits
from drpo_bench.precision_configs import PrecisionConfig
from drpo_bench.rollout.engine import Sampling, sample_seeds
from drpo_bench.rollout.torch_engine import TorchEngine
from drpo_bench.routing import padded_routes, routers, routing
from drpo_bench.scoring import score
from drpo_bench.types import Rollout

CPU = torch.device("cpu")
IDS = torch.randint(4, 50, (3, 14), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=MIXTURES)
def model(request):
    return build_model(ModelConfig(architecture=request.param), vocab_size=50, seed=0)


def logits(model, replay=None):
    with routing(routers(model), replay) as recorder:
        values = padded_logits(model, IDS, torch.arange(IDS.numel()))
    return values, recorder.take()


def moved(model):
    """The same model after something like an update, so that its routes are others."""
    other = build_model(ModelConfig(architecture=model.config.model_type), vocab_size=50, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return other


def test_every_token_has_its_experts_in_every_layer(model):
    _, routes = logits(model)
    assert routes.shape == (IDS.numel(), 2, ACTIVE) and routes.dtype == torch.int16
    assert (routes < EXPERTS).all() and (routes[..., 0] != routes[..., 1]).all()


def test_recording_changes_nothing_and_leaves_nothing_behind(model):
    plain = padded_logits(model, IDS, torch.arange(IDS.numel()))
    assert torch.equal(logits(model)[0], plain)
    assert torch.equal(padded_logits(model, IDS, torch.arange(IDS.numel())), plain)
    assert not any("forward" in vars(router) for router in routers(model))


def test_replaying_its_own_routes_gives_the_same_logits_bit_for_bit(model):
    plain, routes = logits(model)
    assert torch.equal(logits(model, routes.long())[0], plain)


def test_shuffled_routes_change_the_logits(model):
    plain, routes = logits(model)
    shuffled = routes[torch.randperm(len(routes), generator=torch.Generator().manual_seed(0))].long()
    assert (logits(model, shuffled)[0] - plain).abs().max() > 1e-2


def test_another_models_routes_are_taken_and_its_own_choice_is_still_recorded(model):
    other = moved(model)
    _, routes = logits(model)
    free, own = logits(other)
    replayed, would_choose = logits(other, routes.long())
    assert (own != routes).any(), "the two models route alike: nothing is tested"
    assert (replayed - free).abs().max() > 1e-3
    assert torch.equal(would_choose[:, 0], own[:, 0])  # the first layer's input does not depend on the routes


def test_the_router_has_a_gradient_under_replay(model):
    _, routes = logits(model)
    other = moved(model)
    logits(other, routes.long())[0].square().sum().backward()
    for router in routers(other):
        assert router.weight.grad.norm() > 0


def rollouts_of(model, preset="fp32", lengths=(5, 3, 9)):
    engine = TorchEngine(model, PrecisionConfig.model_validate(preset).rollout, CPU)
    prompts = [list(range(4 + i, 4 + i + length)) for i, length in enumerate(lengths)]
    seeds = sample_seeds(0, "test", 0, len(prompts), 4)
    groups = engine.generate(prompts, 4, seeds, Sampling(1.0, 12, stop_ids=(7, 8, 9)))
    return [
        Rollout(i, tuple(prompt), r.token_ids, r.logprobs, r.truncated, 0, routes=r.routes)
        for i, (prompt, row) in enumerate(zip(prompts, groups, strict=True))
        for r in row
    ]


def test_the_engine_returns_the_trainers_routes_whatever_the_padding(model):
    """Left-padded prompts, a cache, rows that leave early, right-padded micro-batches: nothing shifts a route."""
    rollouts = rollouts_of(model)
    assert len({len(r.response_ids) for r in rollouts}) > 2
    policy = Policy(model, "fp32", CPU)
    for budget in (16384, 60):
        scores = score(policy, rollouts, 1.0, budget)
        for rollout, routes in zip(rollouts, scores.routes, strict=True):
            assert rollout.routes.shape == (len(rollout.prompt_ids) + len(rollout.response_ids) - 1, 2, ACTIVE)
            assert torch.equal(rollout.routes.sort(-1).values, routes.sort(-1).values)


def test_replay_of_the_engines_routes_removes_the_part_of_the_mismatch_that_routing_makes(model):
    rollouts = rollouts_of(model, {"trainer": "fp32", "rollout": {"dtype": "bf16"}}, lengths=(6,) * 32)
    policy, mu = Policy(model, "fp32", CPU), torch.cat([r.mu_logprobs for r in rollouts])
    free = score(policy, rollouts, 1.0, 16384)
    replayed = score(policy, rollouts, 1.0, 16384, replay=[r.routes for r in rollouts])
    assert routing_metrics(free.routes, rollouts)["mismatch/router_flip_frac"] > 0, "no route flips: nothing is tested"
    assert (replayed.logprobs - mu).abs().max() < (free.logprobs - mu).abs().max()


def test_padding_takes_experts_that_exist(model):
    rollouts = rollouts_of(model)
    padded = micro_batch(rollouts, [3, 0, 5], CPU)
    routes = padded_routes([r.routes for r in rollouts], padded).unflatten(0, padded.input_ids.shape)
    for row, index in enumerate((3, 0, 5)):
        length = len(rollouts[index].routes)
        assert torch.equal(routes[row, :length], rollouts[index].routes.long())
        assert (routes[row, length:] == torch.arange(ACTIVE)).all()


def test_routes_of_another_number_of_layers_are_an_error(model):
    _, routes = logits(model)
    with pytest.raises(ValueError, match="routes of 1 layers to replay in a model with 2 routers"):
        logits(model, routes[:, :1].long())


def test_routers_that_choose_in_another_way_are_not_taken_for_these():
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    sizes = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 64, "num_local_experts": 4, "num_key_value_heads": 2}
    phi = AutoModelForCausalLM.from_config(CONFIG_MAPPING["phimoe"](**sizes), dtype=torch.float32)
    assert routers(phi) == []
    rollouts = [Rollout(0, (5, 6, 7), (8, 9), torch.zeros(2), True, 0)]
    assert score(Policy(phi, "fp32", CPU), rollouts, 1.0, 16384).routes is None


def test_a_dense_model_has_no_routes():
    model = build_model(ModelConfig(), vocab_size=50, seed=0)
    assert logits(model)[1] is None and rollouts_of(model)[0].routes is None
    assert score(Policy(model, "fp32", CPU), rollouts_of(model), 1.0, 16384).routes is None
