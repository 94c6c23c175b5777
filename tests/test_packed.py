"""The packed forward pass: the module's logprobs and gradients, whatever the lengths, groups and chunks."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from drpo_bench import models, precision
from drpo_bench.batching import micro_batch
from drpo_bench.models import Policy, padded_hidden, response_hidden
from drpo_bench.packed import layout
from drpo_bench.packed.layout import pack
from drpo_bench.packed.pointwise import normalise, normalise_backward, rms_norm, swiglu
from drpo_bench.types import Rollout
from tests.test_decoder import qwen3, small

CPU = torch.device("cpu")
NONE = torch.empty(0)


def rollouts(prompts: list[list[int]], lengths: list[list[int]], seed: int = 0) -> list[Rollout]:
    """A group for each prompt, with responses of these lengths."""
    draw = random.Random(seed)
    return [
        Rollout(group, tuple(prompt), tuple(draw.choices(range(4, 60), k=length)), NONE, True, 0)
        for group, (prompt, each) in enumerate(zip(prompts, lengths, strict=True))
        for length in each
    ]


RAGGED = rollouts([[10, 11, 12], [20, 21, 22, 23, 24, 25], [30]], [[5, 9, 1], [1, 1, 3], [12, 2, 7]])
EVEN = rollouts([[10, 11, 12], [20, 21, 22]], [[6, 6], [6, 6]])
LONE = rollouts([[10, 11]], [[1]])  # nothing but its prompt
TWICE = rollouts([[10, 11], [30], [10, 11]], [[4], [3], [5]])  # two groups with one prompt
BATCHES = {"ragged": RAGGED, "even": EVEN, "lone": LONE, "twice": TWICE}


def outcome(model, batch, hidden):
    """Hidden states, and the gradients of a random function of them."""
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = (hidden.double() * weights).sum()
    return hidden.detach(), dict(
        zip(
            (name for name, _ in model.named_parameters()),
            torch.autograd.grad(total, list(model.parameters()), allow_unused=True),
            strict=True,
        )
    )


def both(model, batch):
    """The packed outcome and the module's."""
    packed = outcome(model, batch, response_hidden(model, batch))
    plain = outcome(model, batch, padded_hidden(model, batch.input_ids, batch.gather))
    return packed, plain


@pytest.fixture
def calls(monkeypatch):
    """How often the packed pass was taken."""
    taken = []
    original = models.hidden_states
    monkeypatch.setattr(models, "hidden_states", lambda *args: taken.append(1) or original(*args))
    return taken


@pytest.mark.parametrize("limit", [1, 60, 2**18])
@pytest.mark.parametrize("name", BATCHES)
def test_hidden_states_and_every_gradient_are_the_modules(name, limit, monkeypatch, calls):
    monkeypatch.setattr(layout, "CHUNK_SCORES", limit)
    model = qwen3().double()
    order = random.Random(1).sample(range(len(BATCHES[name])), len(BATCHES[name]))
    packed, plain = both(model, micro_batch(BATCHES[name], order, CPU))
    assert calls and plain[0].std() > 0.1
    torch.testing.assert_close(packed[0], plain[0], atol=1e-5, rtol=0)  # the module's norms are float32 inside
    for parameter, expected in plain[1].items():
        if expected is None:
            assert packed[1][parameter] is None
        else:
            error = (packed[1][parameter] - expected).norm() / expected.norm().clamp(min=1e-3)
            assert error < 1e-5, parameter


def test_a_padding_token_has_no_gradient_as_in_the_module():
    model = qwen3(pad_token_id=11)
    packed, plain = both(model, micro_batch(RAGGED, range(9), CPU))
    name = next(iter(packed[1]))
    assert name.endswith("embed_tokens.weight")
    torch.testing.assert_close(packed[1][name], plain[1][name], atol=1e-4, rtol=1e-4)


def test_bf16_rounds_where_the_module_does(monkeypatch, calls):
    monkeypatch.setattr(precision, "is_native", lambda dtype, device: True)
    exact = qwen3()
    model = Policy(copy.deepcopy(exact), "bf16", CPU).model
    batch = micro_batch(RAGGED, range(9), CPU)
    packed, plain = both(model, batch)
    truth = outcome(exact, batch, padded_hidden(exact, batch.input_ids, batch.gather))
    assert len(calls) == 1 and packed[0].dtype == torch.bfloat16
    assert (packed[0].float() - plain[0].float()).abs().mean() < (plain[0].float() - truth[0]).abs().mean()
    for side in (packed, plain):
        assert all(grad is None or grad.dtype == torch.bfloat16 for grad in side[1].values())
    names = [name for name, grad in truth[1].items() if grad is not None]
    ours, theirs = (sum((side[1][n].float() - truth[1][n]).square().sum() for n in names) for side in (packed, plain))
    assert ours < 1.2 * theirs  # no further from fp32 than autograd's own bf16


def test_the_same_bits_again():
    model, batch = qwen3(), micro_batch(RAGGED, range(9), CPU)
    first, second = (outcome(model, batch, response_hidden(model, batch)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(
        second[1][name] is None or torch.equal(grad, second[1][name])
        for name, grad in first[1].items()
        if grad is not None
    )


def test_the_same_bits_again_from_two_threads_that_share_a_prompts_last_token():
    """The gradient of one token is a sum over its samples: where threads add to it as they come, bits differ."""
    threads = torch.get_num_threads()
    model, many = qwen3(), rollouts([[10, 11]], [[3] * 2000])
    batch = micro_batch(many, range(len(many)), CPU)
    assert batch.targets.numel() * model.config.hidden_size > 2**17
    torch.set_num_threads(2)
    try:
        grads = [outcome(model, batch, response_hidden(model, batch))[1] for _ in range(8)]
    finally:
        torch.set_num_threads(threads)
    for name, first in grads[0].items():
        assert first is None or all(torch.equal(first, other[name]) for other in grads[1:]), name


def test_every_prompt_stands_there_once_and_no_padding():
    packed = pack(RAGGED, CPU)
    assert packed.ids.tolist()[:10] == [10, 11, 12, 20, 21, 22, 23, 24, 25, 30]
    assert len(packed.ids) == 10 + sum(len(r.response_ids) - 1 for r in RAGGED)
    assert packed.num_prompts == 3 and pack(TWICE, CPU).num_prompts == 2
    before = packed.ids[packed.gather].tolist()  # the token in front of each response token
    assert before == [token for r in RAGGED for token in (r.prompt_ids[-1], *r.response_ids[:-1])]
    positions = packed.positions[packed.gather].tolist()
    assert positions == [len(r.prompt_ids) - 1 + i for r in RAGGED for i in range(len(r.response_ids))]


def test_a_chunk_holds_no_more_scores_than_the_limit(monkeypatch):
    monkeypatch.setattr(layout, "CHUNK_SCORES", 200)
    chunks = pack(RAGGED, CPU).chunks
    assert len(chunks) > 3
    assert all(len(c.queries) == 1 or c.queries.numel() * c.keys.shape[1] <= 200 for c in chunks)
    covered = [i for c in chunks for i in range(c.start, c.stop)]
    assert covered == list(range(len(pack(RAGGED, CPU).ids)))


def test_pointwise_gradients():
    generator = torch.Generator().manual_seed(0)

    def random_tensor(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-3), (random_tensor(5, 6), random_tensor(6)))
    assert torch.autograd.gradcheck(swiglu, (random_tensor(5, 8),))
    values, weight, grad = random_tensor(5, 3, 4), random_tensor(3, 4), torch.randn(5, 3, 4, dtype=torch.float64)
    plain = values / (values.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight
    expected = torch.autograd.grad((plain * grad).sum(), (values, weight))
    found = normalise_backward(grad, *normalise(values.detach(), 1e-3), weight.detach())
    torch.testing.assert_close(found, expected)


def test_whatever_is_not_a_plain_qwen3_takes_its_own_forward(calls):
    batch = micro_batch(EVEN, range(4), CPU)
    response_hidden(small(LlamaConfig, LlamaForCausalLM), batch)
    response_hidden(Policy(qwen3(), "fp16", CPU).model, batch)
    response_hidden(Policy(qwen3(), "fp8", CPU).model, batch)
    response_hidden(qwen3(attention_dropout=0.1), batch)
    hooked = qwen3()
    hooked.base_model.layers[0].register_full_backward_hook(lambda *_: None)
    response_hidden(hooked, batch)
    assert not calls
    response_hidden(qwen3(), batch)
    assert calls
