"""Chunked logprobs, entropy and top-k against one [N, V] tensor, and the memory they save."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from drpo_bench.head import score_tokens
from tests.memory_of_head import Head, inputs, naive


@pytest.mark.parametrize("chunk_elements", [1, 7 * 300, 10**9])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_and_gradients_equal_the_naive_ones(chunk_elements, temperature):
    model, (hidden, targets, topk_ids) = Head(8, 300), inputs(23, 300, 8)
    results = []
    for compute in (score_tokens, naive):
        arguments = (model, hidden, targets, temperature, topk_ids)
        extra = {"entropy": True, "chunk_elements": chunk_elements} if compute is score_tokens else {}
        scores = compute(*arguments, **extra)
        weights = torch.linspace(-1, 1, 23)
        total = (weights * scores.logprobs).sum() + (weights.flip(0) * scores.entropy).sum()
        grads = torch.autograd.grad(total, [hidden, model.head.weight])
        results.append([scores.logprobs, scores.entropy, scores.topk_logprobs, *grads])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    assert not results[0][2].requires_grad


def test_what_is_not_asked_for_is_not_computed():
    model, (hidden, targets, _) = Head(8, 300), inputs(5, 300, 8)
    scores = score_tokens(model, hidden, targets, 1.0, chunk_elements=600)
    assert scores.entropy is None and scores.topk_logprobs is None
    with torch.no_grad():
        alone = score_tokens(model, hidden, targets, 1.0, chunk_elements=600)
    assert not alone.logprobs.requires_grad
    torch.testing.assert_close(alone.logprobs, scores.logprobs)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1024])
def test_peak_memory_over_a_real_vocabulary_is_at_most_an_eighth_of_the_naive(tokens):
    script = Path(__file__).with_name("memory_of_head.py")
    peaks = {}
    for kind in ("chunked", "naive"):
        command = [sys.executable, str(script), kind, str(tokens), "151936", "64"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[kind] = json.loads(output)["mib"]
    assert peaks["naive"] > 4 * tokens * 151936 / 2**20  # at least its [N, V] tensor: the measurement sees it
    assert peaks["chunked"] <= peaks["naive"] / 8, peaks
