"""Minibatches, micro-batches, padding and the weights of tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drpo_bench.advantages import group_advantages
from drpo_bench.batching import micro_batches, minibatch_groups, token_weights
from drpo_bench.types import Rollout

CPU = torch.device("cpu")


def make_rollouts(shapes):
    """Rollouts with (prompt, response) lengths; ids count up so that each token can be recognised."""
    rollouts, next_id = [], 10
    for prompt, response in shapes:
        ids = tuple(range(next_id, next_id + prompt + response))
        rollouts.append(Rollout(0, ids[:prompt], ids[prompt:], torch.zeros(response), False, 0))
        next_id += prompt + response
    return rollouts


shapes = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7)), min_size=1, max_size=12)


@given(shapes, st.integers(1, 40))
def test_micro_batches_hold_every_token_once_whatever_the_budget(shape_list, budget):
    rollouts = make_rollouts(shape_list)
    flat_targets = [token for rollout in rollouts for token in rollout.response_ids]
    seen = {}
    for batch in micro_batches(rollouts, range(len(rollouts)), budget, CPU):
        rows, width = batch.input_ids.shape
        assert rows == 1 or rows * width <= budget
        before = batch.input_ids.flatten()[batch.gather]  # the token in front of each target
        for flat, target, owner, previous in zip(
            batch.flat.tolist(), batch.targets.tolist(), batch.rollout_index.tolist(), before.tolist(), strict=True
        ):
            seen[flat] = target
            ids = rollouts[owner].prompt_ids + rollouts[owner].response_ids
            assert ids[ids.index(target) - 1] == previous
    assert [seen[i] for i in range(len(flat_targets))] == flat_targets


def test_minibatches_are_disjoint_whole_and_a_pure_function_of_seed_and_step():
    parts = minibatch_groups(8, 4, seed=3, step=5)
    assert sorted(group for part in parts for group in part) == list(range(8))
    assert [len(part) for part in parts] == [2, 2, 2, 2]
    assert parts == minibatch_groups(8, 4, seed=3, step=5)
    assert len({str(minibatch_groups(8, 4, seed, step)) for seed in range(3) for step in range(3)}) == 9


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_mean", [1 / 6, 1 / 6, 1 / 6]),
        ("seq_mean_token_sum", [1 / 3, 1 / 3, 1 / 3]),
        ("seq_mean_token_mean", [1 / 3, 1 / 6, 1 / 9]),
        ("seq_mean_token_sum_norm", [1 / 30, 1 / 30, 1 / 30]),
    ],
)
def test_token_weights_by_hand(mode, expected):
    weights = token_weights(torch.tensor([1, 2, 3]), mode, horizon=10)
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_unknown_aggregation():
    with pytest.raises(ValueError, match=r"train\.aggregation"):
        token_weights(torch.tensor([1]), "mean", 1)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", [0.75, -0.25, -0.25, -0.25]),
        ("rloo", [1.0, -1 / 3, -1 / 3, -1 / 3]),
        ("group_std", [1.5, -0.5, -0.5, -0.5]),  # unbiased std of (1, 0, 0, 0) is 0.5
        ("none", [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_advantages_by_hand(kind, expected):
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(group_advantages(rewards, kind), torch.tensor([expected]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["mean", "rloo", "group_std"])
def test_a_constant_group_has_no_advantage_at_all(kind):
    assert (group_advantages(torch.full((1, 3), 0.1), kind) == 0).all()
