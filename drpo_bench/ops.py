"""Per-token quantities: logprobs, entropy and divergence estimators, all in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12  # least probability of a complement: 1 - p of a p that rounds to 1


def scale_logits(logits: Tensor, temperature: float) -> Tensor:
    """Logits at the sampling temperature, in float32 or wider. The one place that divides by it."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide if temperature == 1.0 else wide / temperature


def by_mask(mask: Tensor, where_true: float, where_false: float, like: Tensor) -> Tensor:
    """One of two numbers for each token, in the dtype of `like`: `torch.where` of two numbers would be float32."""
    return torch.where(mask, like.new_tensor(where_true), like.new_tensor(where_false))


def kl_k1(x: Tensor, m: Tensor) -> Tensor:
    """KL(mu || pi), estimator k1 on samples of mu: m - x. Unbiased, can be negative."""
    return m - x


def kl_k3(x: Tensor, m: Tensor) -> Tensor:
    """KL(mu || pi), estimator k3 on samples of mu: exp(x - m) - 1 - (x - m). Unbiased, never negative."""
    return (x - m).expm1() - (x - m)


def probability_shift(x: Tensor, m: Tensor) -> Tensor:
    """pi - mu of the sampled token, the binary total variation with its sign."""
    return x.exp() - m.exp()


def binary_kl(x: Tensor, m: Tensor) -> Tensor:
    """KL(mu || pi) of two outcomes, the sampled token or any other, from its logprobs x = log pi and m = log mu; [N].

    Exact, not an estimate, and in float64: near p = 1 the difference of two float32 numbers would be noise. What the
    logprobs' own format resolves of 1 - p (eps) is added to both complements: with respect to x the gradient is
    (p - u) / (1 - p + eps), 0 where both round to 1, and of the order of 1e7 where p alone does in float32.
    A logprob that rounding left above 0 counts as 0.
    """
    resolution = torch.finfo(x.dtype).eps
    x, m = x.double().clamp(max=0.0), m.double().clamp(max=0.0)
    other_pi, other_mu = (resolution - torch.expm1(logprobs) for logprobs in (x, m))
    return m.exp() * (m - x) + other_mu * (other_mu / other_pi).log()


def listed(pi: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (pi, mu) in float64 of listed tokens, from logprobs [N, K]; both 0 where mu's is -inf: no entry."""
    absent = mu == -torch.inf
    return pi.double().exp().masked_fill(absent, 0.0), mu.double().exp().masked_fill(absent, 0.0)


def topk_tv(pi: Tensor, mu: Tensor) -> Tensor:
    """Total variation over K listed tokens and one bucket for all others: 1/2 sum |pi - mu|, float64 [N].

    pi, mu: logprobs [N, K] of the same tokens, mu's -inf where there is none. A lower bound of the full one.
    """
    p, u = listed(pi, mu)
    return 0.5 * ((p - u).abs().sum(1) + (p.sum(1) - u.sum(1)).abs())


def topk_kl(pi: Tensor, mu: Tensor) -> Tensor:
    """KL(mu || pi) over K listed tokens and one bucket for all others: sum mu log(mu / pi), float64 [N].

    pi, mu: logprobs [N, K] of the same tokens, mu's -inf where there is none. A lower bound of the full one.
    """
    p, u = listed(pi, mu)
    terms = torch.where(mu == -torch.inf, 0.0, u * (mu.double() - pi.double())).sum(1)
    rest_p, rest_u = ((1 - q.sum(1)).clamp(min=TINY) for q in (p, u))
    return terms + rest_u * (rest_u / rest_p).log()
