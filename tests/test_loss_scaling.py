"""fp16 training: gradients underflow without a loss scale, overflow at a huge one, and neither at the working one."""

from __future__ import annotations

import copy

import pytest
import torch

from drpo_bench.checkpoint import load_checkpoint
from drpo_bench.config import ModelConfig, TrainConfig
from drpo_bench.models import Policy, build_model, padded_logits
from drpo_bench.optim import LossScaler, Optimizer
from drpo_bench.records import RunDir, read_json
from drpo_bench.trainer import Trainer

CPU = torch.device("cpu")
WORKING, HUGE = 2.0**16, 2.0**40
WEIGHT = 1e-6  # of a token: an advantage over the tokens of a large minibatch


@pytest.fixture(scope="module")
def model():
    return build_model(ModelConfig(), vocab_size=50, seed=0)


@pytest.fixture(autouse=True)
def emulating(monkeypatch):
    """Emulated on every machine: that is what must have a use for the scale."""
    monkeypatch.setattr("drpo_bench.precision.is_native", lambda dtype, device: dtype == "fp32")


def backward(policy: Policy, weight: float, scale: float) -> torch.Tensor:
    """Gather the gradient of weight * sum of logprobs; returns that of the first block's output, with its scale."""
    seen = []
    block = policy.model.base_model.layers[0]
    handle = block.register_forward_hook(lambda *call: call[2].register_hook(seen.append) and None, prepend=True)
    logprobs = padded_logits(policy.model, torch.arange(24).reshape(2, 12) + 4, torch.arange(24)).log_softmax(-1)
    logprobs[:, 5].backward(torch.full((24,), weight * scale))
    policy.gather_gradients()
    handle.remove()
    return seen[0]


def gradient(model, dtype: str, weight: float, scale: float) -> torch.Tensor:
    """Of all masters, the scale divided out."""
    policy = Policy(copy.deepcopy(model), dtype, CPU)
    backward(policy, weight, scale)
    return torch.cat([p.grad.flatten() for p in policy.master.parameters()]) / scale


def lost(values: torch.Tensor, exact: torch.Tensor) -> float:
    """Share of the nonzero values that became zero."""
    return float((values == 0)[exact != 0].float().mean())


def test_without_a_scale_every_tenth_gradient_underflows(model):
    exact = gradient(model, "fp32", WEIGHT, 1.0)
    unscaled, scaled = (gradient(model, "fp16", WEIGHT, scale) for scale in (1.0, WORKING))
    assert 0.1 < lost(unscaled, exact) < 0.2
    assert (unscaled - exact).norm() > 0.3 * exact.norm()
    assert lost(scaled, exact) < 1e-4
    assert (scaled - exact).norm() < 4 * 2**-11 * exact.norm()  # a few roundings of 11 bits


def test_gradients_between_blocks_underflow_to_zero_and_overflow_to_infinity(model):
    exact = backward(Policy(copy.deepcopy(model), "fp32", CPU), WEIGHT / 10, 1.0)
    small = backward(Policy(copy.deepcopy(model), "fp16", CPU), WEIGHT / 10, 1.0)
    assert lost(small, exact) > 0.9
    assert not backward(Policy(copy.deepcopy(model), "fp16", CPU), WEIGHT, HUGE).isfinite().any()
    working = backward(Policy(copy.deepcopy(model), "fp16", CPU), WEIGHT, WORKING)
    assert torch.equal(working, working.half().float())


def test_a_huge_scale_skips_the_step_and_nothing_else_is_lost(model):
    optimizer = Optimizer(Policy(copy.deepcopy(model), "fp16", CPU), TrainConfig(lr=1e-3))
    policy, scaler = optimizer.policy, optimizer.scaler
    start = [p.detach().clone() for p in optimizer.parameters]

    def step() -> bool:
        backward(policy, WEIGHT, optimizer.loss_scale)
        return optimizer.step().skipped

    assert not step() and scaler == LossScaler(WORKING, clean_steps=1)
    weights = [p.detach().clone() for p in optimizer.parameters]
    state = copy.deepcopy(optimizer.adamw.state_dict())
    assert not any(torch.equal(a, b) for a, b in zip(start, weights, strict=True))

    scaler.scale = HUGE
    assert step() and scaler == LossScaler(HUGE / 2, clean_steps=0)
    assert all(torch.equal(a, b) for a, b in zip(weights, optimizer.parameters, strict=True))
    for before, after in zip(state["state"].values(), optimizer.adamw.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(before[name], after[name]) for name in ("step", "exp_avg", "exp_avg_sq"))
    assert all(p.grad is None for p in optimizer.parameters)

    scaler.scale = WORKING
    assert not step()
    assert optimizer.adamw.state[optimizer.parameters[0]]["step"] == 2


def test_the_scale_grows_again_after_a_while_without_overflow():
    scaler = LossScaler(scale=2.0, growth_interval=3)
    scales = []
    for overflowed in (False, False, True, False, False, False, False):
        scaler.update(overflowed)
        scales.append(scaler.scale)
    assert scales == [2.0, 2.0, 1.0, 1.0, 1.0, 2.0, 2.0]


def test_a_checkpoint_holds_the_scaler(tiny_config, tmp_path, warmstart_cache):
    config, run_dir = tiny_config(precision={"preset": "fp16"}), RunDir(tmp_path / "run")
    trainer = Trainer(config, run_dir, warmstart_cache)
    trainer.optimizer.scaler = LossScaler(scale=2.0**11, clean_steps=7)
    trainer.record({})
    trainer.save()
    other = Optimizer(trainer.policy, config.train)
    path = run_dir.checkpoints / "step_0"
    load_checkpoint(path, read_json(path / "state.json"), trainer.policy, other)
    assert other.scaler == LossScaler(scale=2.0**11, clean_steps=7)
