"""The policy's gradient with every kind of loss, term and correction, against one plain pass over whole rollouts."""

from __future__ import annotations

import copy

import pytest
import torch

from drpo_bench.advantages import group_advantages
from drpo_bench.batching import minibatch_groups, token_weights
from drpo_bench.correction_configs import TISToken
from drpo_bench.losses import make_loss
from drpo_bench.models import Policy
from drpo_bench.optim import Optimizer, StepResult
from drpo_bench.records import RunDir
from drpo_bench.trainer import Trainer
from drpo_bench.types import Tokens
from drpo_bench.update import Updater, flatten


@pytest.fixture(scope="module")
def moved(request, tmp_path_factory):
    """A trainer whose policy has moved since its first batch was sampled; one group is without variance."""
    from drpo_bench.config import RunConfig
    from tests.conftest import TINY, merge

    path = tmp_path_factory.mktemp("moved")
    data = merge(TINY, {"rollout": {"problems_per_batch": 8}, "train": {"anchor": "old", "kl_coef": 0.1}})
    data["loss"] = {"id": "dppo_topk_kl", "k": 4}
    trainer = Trainer(RunConfig.model_validate(data), RunDir(path / "run"), path)
    batch = trainer.queue.next(0)
    batch.rewards[:, 0] = 1 - batch.rewards[:, 0]
    batch.rewards[1] = 0.0
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.policy.master.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    prox = trainer.score(batch).logprobs
    with torch.no_grad():
        for parameter in trainer.policy.master.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    reference = trainer.score(batch, trainer.reference).logprobs
    return trainer, batch, flatten(batch, "mean", trainer.device, prox, reference)


class Recorder(Optimizer):
    """Keeps the gradients of each update instead of taking the step."""

    def step(self) -> StepResult:
        self.__dict__.setdefault("taken", []).append(
            [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.parameters]
        )
        self.adamw.zero_grad(set_to_none=True)
        return StepResult(1.0, False)


def updates(moved, loss, **train):
    """The gradients of each update of the batch."""
    trainer, batch, flat = moved
    config = trainer.config.model_copy(update={"train": trainer.config.train.model_copy(update=train)})
    optimizer = Recorder(trainer.policy, config.train)
    Updater(trainer.policy, optimizer, loss, batch, flat, config).run()
    return optimizer.taken


def plain_gradients(moved, loss, updates_per_batch, aggregation, kl_coef, entropy_coef):
    """The same from the definition: every rollout forwarded alone, everything in one graph, torch's own log_softmax."""
    trainer, batch, flat = moved
    model, lengths = trainer.policy.model, batch.lengths
    group_size, taken = batch.rewards.shape[1], []
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    for number, groups in enumerate(minibatch_groups(len(batch.rewards), updates_per_batch, 0, batch.step)):
        members = sorted(g * group_size + s for g in groups for s in range(group_size))
        rows = []
        for i in members:
            rollout = batch.rollouts[i]
            ids = torch.tensor([rollout.prompt_ids + rollout.response_ids])
            logits = model(input_ids=ids).logits[0, len(rollout.prompt_ids) - 1 : -1]
            rows.append(logits.log_softmax(-1))
        log_probs = torch.cat(rows)
        places = torch.cat([torch.arange(starts[i], starts[i] + lengths[i]) for i in members])
        member_lengths = torch.tensor([lengths[i] for i in members])
        per_rollout = token_weights(member_lengths, aggregation, 24)
        weights = per_rollout.repeat_interleave(member_lengths)
        chosen = torch.cat([torch.tensor(batch.rollouts[i].response_ids) for i in members])
        part = flat.at(places)
        x = log_probs.gather(-1, chosen[:, None]).squeeze(-1)
        tokens = Tokens(
            x,
            part.mu_logprobs,
            part.advantages,
            torch.tensor(members).repeat_interleave(member_lengths),
            weights,
            part.old_logprobs,
            part.prox_logprobs,
            topk_mu_logprobs=part.topk_mu_logprobs,
            topk_logprobs=log_probs.detach().gather(-1, part.topk_ids),
        )
        if loss.scope == "minibatch":
            seed = (trainer.config.seed * 1_000_003 + batch.step) * 1_000_003 + number
            from dataclasses import replace

            tokens = replace(tokens, selected=loss.select(tokens, seed))
        log_ratio = part.ref_logprobs - x
        divergence = log_ratio.exp() - 1 - log_ratio
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        total = (weights * (loss(tokens) + kl_coef * divergence - entropy_coef * entropy)).sum()
        taken.append(torch.autograd.grad(total, list(trainer.policy.master.parameters())))
    return taken


LOSSES_OF_EACH_KIND = {
    "drpo": make_loss("drpo"),
    "minirl": make_loss("minirl", mask_anchor="prox", clip_high=0.05),
    "decoupled": make_loss("decoupled_ppo", clip_high=0.05),
    "gspo": make_loss("gspo", clip_low=0.01, clip_high=0.05),
    "gmpo": make_loss("gmpo", clip_low=0.02, clip_high=0.02),
    "cppo": make_loss("cppo", delta=0.02),
    "clip_cov": make_loss("clip_cov", select_frac=0.1, cov_low=0.01),
    "kl_cov": make_loss("kl_cov", select_frac=0.2),
    "topk": make_loss("dppo_topk_kl", k=4, delta_low=0.002, delta_high=0.002),
    "corrected": make_loss("grpo", "old", TISToken(cap=1.01)),
    "no_abs": make_loss("drpo_no_abs_advantage"),
}


@pytest.mark.parametrize("budget", [1, 150, 100_000])
@pytest.mark.parametrize("kind", LOSSES_OF_EACH_KIND)
def test_gradient_is_that_of_one_plain_pass_whatever_the_split(kind, budget, moved):
    loss = LOSSES_OF_EACH_KIND[kind]
    taken = updates(moved, loss, microbatch_tokens=budget, updates_per_batch=2, kl_coef=0.0)
    expected = plain_gradients(moved, loss, 2, "token_mean", 0.0, 0.0)
    assert len(taken) == len(expected) == 2
    assert all(any(g.abs().max() > 1e-4 for g in update) for update in expected)
    for ours, plain in zip(taken, expected, strict=True):
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("terms", [{"kl_coef": 0.5}, {"entropy_coef": 0.2}, {"kl_coef": 0.3, "entropy_coef": 0.1}])
def test_reference_and_entropy_terms_act_on_every_token(terms, moved):
    loss = make_loss("drpo")
    both = {"kl_coef": 0.0, "entropy_coef": 0.0} | terms
    taken = updates(moved, loss, aggregation="seq_mean_token_mean", updates_per_batch=1, microbatch_tokens=200, **both)
    expected = plain_gradients(moved, loss, 1, "seq_mean_token_mean", **both)
    without = plain_gradients(moved, loss, 1, "seq_mean_token_mean", 0.0, 0.0)
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(expected[0], without[0], strict=True))
    for a, b in zip(taken[0], expected[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


def test_the_reference_is_the_initial_policy_and_stays(moved):
    trainer, batch, flat = moved
    torch.testing.assert_close(flat.ref_logprobs, batch.old_logprobs, rtol=0, atol=1e-6)
    assert (flat.prox_logprobs - flat.ref_logprobs).abs().max() > 1e-3
    assert isinstance(trainer.reference, Policy)


def test_trainer_and_engine_agree_on_the_top_k_of_equal_weights(moved):
    trainer, batch, flat = moved
    assert flat.topk_ids.shape == (len(flat.mu_logprobs), 5)
    again = copy.copy(trainer)
    again.policy = trainer.reference
    updater = Updater(again.policy, trainer.optimizer, make_loss("dppo_topk_kl", k=4), batch, flat, trainer.config)
    [padded] = updater.micro_batches(range(len(batch.rollouts)))
    tokens, _ = updater.forward(padded, torch.ones(len(batch.rollouts)))
    assert batch.metrics["mismatch/topk_tv"] < 1e-6
    assert trainer.score(batch, trainer.reference).topk_logprobs[padded.flat].equal(tokens.topk_logprobs)
    present = tokens.topk_mu_logprobs > -torch.inf
    difference = (tokens.topk_logprobs - tokens.topk_mu_logprobs)[present]
    assert difference.abs().max() < 1e-4
    assert (~present[:, -1]).float().mean() > 0.5  # most sampled tokens are among the four likeliest
    ids = flat.topk_ids[padded.flat]
    assert (ids[:, -1] == padded.targets).all()
    assert all(len(set(row[:-1].tolist())) == 4 for row in ids)
    among = (ids[:, :-1] == ids[:, -1:]).any(1)
    assert (among == ~present[:, -1]).all()


def test_weight_metrics_do_not_count_the_reference_term(moved):
    trainer, batch, flat = moved
    config = trainer.config.model_copy(
        update={"train": trainer.config.train.model_copy(update={"kl_coef": 3.0, "updates_per_batch": 1})}
    )
    metrics = Updater(
        trainer.policy, Recorder(trainer.policy, config.train), make_loss("pg_is", "old"), batch, flat, config
    ).run()
    assert metrics["update/w_min"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["update/w_max"] == pytest.approx(1.0, abs=1e-4)
    advantages = group_advantages(batch.rewards, "mean")
    assert metrics["update/tokens_used"] < metrics["update/tokens"]
    assert (advantages[1] == 0).all()
