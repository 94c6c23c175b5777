"""The gradient g = d(-L)/d log pi of every loss, written in numpy from the papers and not from the formulas.

Each function gets x = log pi, m = log anchor, the advantages A and the sample for what else it needs, and the loss's
parameters; it returns g of every token. Responses are walked through one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpo_bench.verify.samples import Sample

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One loss on one sample: x, m and A of every token, and where each response starts and ends."""

    sample: Sample
    anchor: str

    @property
    def x(self) -> Array:
        return self.sample.x

    @property
    def m(self) -> Array:
        return self.sample.logprobs(self.anchor)

    @property
    def a(self) -> Array:
        return self.sample.advantages

    @property
    def r(self) -> Array:
        ratio: Array = np.exp(self.x - self.m)
        return ratio

    def other(self, policy: str | None) -> Array:
        """Logprobs of the mask's anchor."""
        return self.sample.logprobs(policy or self.anchor)

    def responses(self) -> Iterator[slice]:
        starts = [i for i, owner in enumerate(self.sample.rollout) if i == 0 or owner != self.sample.rollout[i - 1]]
        for start, end in zip(starts, [*starts[1:], len(self.sample.rollout)], strict=True):
            yield slice(start, end)


def ppo_keeps(a: Array, ratio: Array, low: float, high: float) -> Array:
    return ~(((a > 0) & (ratio > 1 + high)) | ((a < 0) & (ratio < 1 - low)))


def dppo(c: Case, divergence: Array, base: Array, low: float, high: float, ratio_cap: float) -> Array:
    p, u = np.exp(c.x), np.exp(base)
    drop = np.where(c.a > 0, (divergence > high) & (p > u), (divergence > low) & (p < u)) & (c.a != 0)
    return np.where(drop, 0.0, c.a * np.minimum(c.r, ratio_cap))


def bernoulli_kl(u: Array, p: Array) -> Array:
    result: Array = u * np.log(u / p) + (1 - u) * np.log((1 - u) / (1 - p))
    return result


def grpo(c: Case, clip_low: float, clip_high: float, dual_clip: float | None) -> Array:
    g = np.where(ppo_keeps(c.a, c.r, clip_low, clip_high), c.a * c.r, 0.0)
    return g if dual_clip is None else np.where((c.a < 0) & (c.r > dual_clip), 0.0, g)


def relaxed_grpo(c: Case, clip_low: float, clip_high: float, alpha_low: float, alpha_high: float) -> Array:
    u = np.exp(c.m)
    rare = ((c.a > 0) & (u < alpha_high)) | ((c.a < 0) & (u < alpha_low))
    return np.where(rare | ppo_keeps(c.a, c.r, clip_low, clip_high), c.a * c.r, 0.0)


def minirl(c: Case, clip_low: float, clip_high: float, ratio_cap: float, mask_anchor: str | None) -> Array:
    keeps = ppo_keeps(c.a, np.exp(c.x - c.other(mask_anchor)), clip_low, clip_high)
    return np.where(keeps, c.a * np.minimum(c.r, ratio_cap), 0.0)


def decoupled(c: Case, clip_low: float, clip_high: float, ratio_cap: float, mask_anchor: str | None) -> Array:
    q = np.exp(c.x - c.other(mask_anchor))
    behaviour = np.minimum(np.exp(c.other(mask_anchor) - c.m), ratio_cap)
    return np.where(ppo_keeps(c.a, q, clip_low, clip_high), c.a * q * behaviour, 0.0)


def dis(c: Case, clip_low: float, clip_high: float, mask_anchor: str | None) -> Array:
    q = np.exp(c.x - c.other(mask_anchor))
    return c.a * c.r * ((1 - clip_low < q) & (q < 1 + clip_high))


def sapo(c: Case, tau_pos: float, tau_neg: float) -> Array:
    tau = np.where(c.a > 0, tau_pos, tau_neg)
    gate = 1 / (1 + np.exp(-tau * (c.r - 1)))
    return c.a * c.r * 4 * gate * (1 - gate)


def gspo(c: Case, clip_low: float, clip_high: float) -> Array:
    g = np.zeros_like(c.x)
    for y in c.responses():
        s = np.exp(np.mean(c.x[y] - c.m[y]))
        g[y] = c.a[y] * s * ppo_keeps(c.a[y], s, clip_low, clip_high)
    return g


def gmpo(c: Case, clip_low: float, clip_high: float) -> Array:
    g = np.zeros_like(c.x)
    for y in c.responses():
        log_ratio, a = c.x[y] - c.m[y], c.a[y][0]
        inside = log_ratio <= clip_high if a > 0 else log_ratio >= -clip_low
        bounded = np.minimum(log_ratio, clip_high) if a > 0 else np.maximum(log_ratio, -clip_low)
        g[y] = a * np.exp(np.mean(bounded)) * inside
    return g


def opsm(c: Case, clip_low: float, clip_high: float, delta: float) -> Array:
    g = grpo(c, clip_low, clip_high, None)
    for y in c.responses():
        if c.a[y][0] < 0 and np.mean(c.m[y] - c.x[y]) > delta:
            g[y] = 0.0
    return g


def topr(c: Case, level: str) -> Array:
    g = c.a.copy()
    for y in c.responses():
        log_ratio = c.x[y] - c.m[y]
        taper = (
            np.exp(min(0.0, max(-20.0, log_ratio.sum()))) if level == "sequence" else np.minimum(np.exp(log_ratio), 1)
        )
        if c.a[y][0] < 0:
            g[y] *= taper
    return g


def vespo(c: Case, k_pos: float, lambda_pos: float, k_neg: float, lambda_neg: float) -> Array:
    g = np.zeros_like(c.x)
    for y in c.responses():
        k, decay = (k_pos, lambda_pos) if c.a[y][0] >= 0 else (k_neg, lambda_neg)
        ratio = np.exp(np.clip(np.sum(c.x[y] - c.m[y]), -20, 20))
        g[y] = c.a[y] * ratio**k * np.exp(decay * (1 - ratio))
    return g


def cppo(c: Case, delta: float, budget_low: float, budget_high: float, last_weight: float, ratio_cap: float) -> Array:
    g = np.zeros_like(c.x)
    for y in c.responses():
        shift = np.exp(c.x[y]) - np.exp(c.m[y])
        budget = min(max(np.quantile(np.abs(shift), 0.9), budget_low), budget_high)
        allowance = spent = 0.0
        for t, moved in enumerate(shift):
            weight = 1 - (1 - last_weight) * t / max(1, len(shift) - 1)
            cost = weight * abs(moved)
            over = cost > min(delta, delta + allowance - spent)
            a = c.a[y][t]
            g[y.start + t] = 0.0 if over and a * moved > 0 else a * min(np.exp(c.x[y][t] - c.m[y][t]), ratio_cap)
            allowance, spent = allowance + budget * weight, spent + cost
    return g


def dppo_tv(c: Case, delta_low: float, delta_high: float, ratio_cap: float, mask_anchor: str | None) -> Array:
    base = c.other(mask_anchor)
    return dppo(c, np.abs(np.exp(c.x) - np.exp(base)), base, delta_low, delta_high, ratio_cap)


def dppo_kl(c: Case, delta_low: float, delta_high: float, ratio_cap: float, mask_anchor: str | None) -> Array:
    base = c.other(mask_anchor)
    return dppo(c, bernoulli_kl(np.exp(base), np.exp(c.x)), base, delta_low, delta_high, ratio_cap)


def coarse(c: Case, k: int, replace: bool) -> tuple[Array, Array]:
    """(mu, pi) probabilities of top-k and sampled token and of all others together, rows padded with zeros."""
    u, p = np.exp(c.sample.full_mu), np.exp(c.sample.full_pi)
    rows_u: list[Array] = []
    rows_p: list[Array] = []
    for i, token in enumerate(c.sample.chosen):
        listed = list(np.argsort(-u[i], kind="stable")[:k])
        if token not in listed:
            listed = [*(listed[:-1] if replace else listed), token]
        for rows, q in ((rows_u, u[i]), (rows_p, p[i])):
            rest = max(1 - q[listed].sum(), 1e-12)
            rows.append(np.pad([*q[listed], rest], (0, k + 1 - len(listed))))
    return np.array(rows_u), np.array(rows_p)


def dppo_topk_tv(c: Case, delta_low: float, delta_high: float, ratio_cap: float, k: int, replace: bool) -> Array:
    u, p = coarse(c, k, replace)
    return dppo(c, 0.5 * np.abs(u - p).sum(1), c.sample.m, delta_low, delta_high, ratio_cap)


def dppo_topk_kl(c: Case, delta_low: float, delta_high: float, ratio_cap: float, k: int, replace: bool) -> Array:
    u, p = coarse(c, k, replace)
    terms = np.zeros_like(u)
    np.log(np.divide(u, p, out=np.ones_like(u), where=p > 0), out=terms, where=u > 0)
    return dppo(c, (u * terms).sum(1), c.sample.m, delta_low, delta_high, ratio_cap)


def ipo(c: Case, delta: float, kl_coef: float, mask_anchor: str | None) -> Array:
    kept = np.abs(np.exp(c.x) - np.exp(c.other(mask_anchor))) <= delta
    return c.a * c.r * kept - 2 * kl_coef * (c.x - c.m)


def neg_mask(c: Case, delta: float, mask_anchor: str | None) -> Array:
    fall = np.exp(c.other(mask_anchor)) - np.exp(c.x)
    return c.a * c.r * ~((c.a < 0) & (fall >= delta))


def spo(c: Case, epsilon: float) -> Array:
    return c.a * c.r * (1 - np.sign(c.a) * (c.r - 1) / epsilon)


def drpo(c: Case, delta: float) -> Array:
    return c.a * c.r * (1 - np.sign(c.a) * (np.exp(c.x) - np.exp(c.m)) / delta)


def mask_drpo(c: Case, delta: float, delta_mask: float, mask_side: str, continuous: bool) -> Array:
    shift = np.exp(c.x) - np.exp(c.m)
    outside = np.abs(shift) > delta_mask
    if mask_side == "harmful":
        outside &= np.sign(shift) == np.sign(c.a)
    distance = np.abs(shift) - delta_mask * continuous
    return c.a * c.r * (1 - outside * np.sign(c.a * shift) * distance / delta)


def drpo_no_abs_advantage(c: Case, delta: float) -> Array:
    return c.r * (c.a - (np.exp(c.x) - np.exp(c.m)) / delta)


def penalty(c: Case, kind: str, coef: float, weight_by_abs_advantage: bool) -> Array:
    l, r, p, u = c.x - c.m, c.r, np.exp(c.x), np.exp(c.m)  # noqa: E741
    slope = {
        "kl": -np.ones_like(r),
        "reverse_kl": r * (l + 1),
        "k2": l,
        "k3": r - 1,
        "tv": r * np.sign(r - 1) / 2,
        "binary_kl": (p - u) / (1 - p),
        "chi2": r * (r - 1),
    }[kind]
    return c.a * r - coef * (np.abs(c.a) if weight_by_abs_advantage else 1.0) * slope


def kl_cov(c: Case, select_frac: float, coef: float) -> Array:
    cov = (c.a - c.a.mean()) * (c.x - c.x.mean())
    g = c.a * c.r
    for i in np.argsort(-cov, kind="stable")[: max(1, int(select_frac * len(cov))) if select_frac else 0]:
        g[i] -= coef * np.sign(c.x[i] - c.m[i])
    return g


CLOSED_FORMS: dict[str, Callable[..., Array]] = {
    "reinforce": lambda c: c.a,
    "pg_is": lambda c: c.a * c.r,
    "pg_tis": lambda c, ratio_cap: c.a * np.minimum(c.r, ratio_cap),
    "cispo": lambda c, clip_low, clip_high: c.a * np.clip(c.r, 1 - clip_low, 1 + clip_high),
    "topr": topr,
    "vespo": vespo,
    "dro": lambda c, coef: c.a - coef * (c.x - c.m),
    "grpo": grpo,
    "relaxed_grpo": relaxed_grpo,
    "minirl": minirl,
    "decoupled_ppo": decoupled,
    "dis": dis,
    "sapo": sapo,
    "gspo": gspo,
    "gmpo": gmpo,
    "opsm": opsm,
    "kl_cov": kl_cov,
    "spo": spo,
    "dppo_tv": dppo_tv,
    "dppo_kl": dppo_kl,
    "dppo_topk_tv": dppo_topk_tv,
    "dppo_topk_kl": dppo_topk_kl,
    "cppo": cppo,
    "ipo": ipo,
    "neg_mask": neg_mask,
    "drpo": drpo,
    "mask_drpo": mask_drpo,
    "drpo_no_abs_advantage": drpo_no_abs_advantage,
    "penalty": penalty,
}  # clip_cov drops random tokens: `checks.check_clip_cov` says which it may


def closed_form(loss_id: str, sample: Sample, anchor: str, parameters: dict[str, Any]) -> Array:
    """g [N] of a loss that has a closed form."""
    return CLOSED_FORMS[loss_id](Case(sample, anchor), **parameters)
