"""Per-token quantities: logprobs, entropy and divergence estimators, all in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) at `token_ids`.

    logits [N, V] of any float dtype, token_ids [N]; returns float32 [N] (float64 for float64 logits).
    """
    scaled = scale_logits(logits, temperature)
    chosen = scaled.gather(-1, token_ids[:, None]).squeeze(-1)
    return chosen - scaled.logsumexp(-1)


def scale_logits(logits: Tensor, temperature: float) -> Tensor:
    """Logits at the sampling temperature, in float32 or wider. The one place that divides by it."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide if temperature == 1.0 else wide / temperature


def token_entropy(logits: Tensor, temperature: float) -> Tensor:
    """Entropy in nats of softmax(logits / temperature); [N, V] -> [N]."""
    log_probs = scale_logits(logits, temperature).log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def kl_k1(x: Tensor, m: Tensor) -> Tensor:
    """KL(mu || pi), estimator k1 on samples of mu: m - x. Unbiased, can be negative."""
    return m - x


def kl_k3(x: Tensor, m: Tensor) -> Tensor:
    """KL(mu || pi), estimator k3 on samples of mu: exp(x - m) - 1 - (x - m). Unbiased, never negative."""
    return (x - m).expm1() - (x - m)


def probability_shift(x: Tensor, m: Tensor) -> Tensor:
    """pi - mu of the sampled token, the binary total variation with its sign."""
    return x.exp() - m.exp()
