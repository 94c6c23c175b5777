"""What is measured, with the same code for every loss. Names and definitions are documented in docs/metrics.md.

Every function returns plain floats; a quantity over no tokens is left out, never a made-up zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from drpo_bench.ops import kl_k1, kl_k3, probability_shift, topk_tv
from drpo_bench.types import LOG_RATIO_LIMIT, Rollout

BUCKETS = (
    ("u_le_0.01", 0.0, 0.01),
    ("u_0.01_0.1", 0.01, 0.1),
    ("u_0.1_0.5", 0.1, 0.5),
    ("u_0.5_0.9", 0.5, 0.9),
    ("u_gt_0.9", 0.9, 1.0),
)
LOW_PROBABILITY = 0.01
LARGE_SHIFT = 0.15  # DPPO's radius: the share of tokens beyond it, whatever the loss's own
BAD_FALL = 0.5  # a negative token whose probability fell further than this


def rollout_metrics(rollouts: Sequence[Rollout], rewards: Tensor) -> dict[str, float]:
    """Reward [P, G], response length and truncation of a rollout batch."""
    lengths = [len(r.response_ids) for r in rollouts]
    return {
        "reward/mean": float(rewards.mean()),
        "reward/zero_variance_frac": float((rewards == rewards[:, :1]).all(dim=1).float().mean()),
        "response/length_mean": sum(lengths) / len(lengths),
        "response/tokens": float(sum(lengths)),
        "response/truncated_frac": sum(r.truncated for r in rollouts) / len(rollouts),
    }


def divergence_metrics(group: str, x: Tensor, m: Tensor, lengths: Sequence[int]) -> dict[str, float]:
    """How far logprobs `x` [N] of the sampled tokens are from `m` [N]; `lengths` are the rollouts' token counts.

    KLs are KL(m || x) on tokens sampled from mu: k1 is the mean of m - x, k3 of exp(x - m) - 1 - (x - m).
    Ratios are exp(x - m); `ess_*` is (sum r)^2 / (n sum r^2) over tokens or over sequence products;
    `chi2_token` is the mean of r^2 minus 1; `ppl_ratio` exp(mean(m) - mean(x)); `mult_prob_error` the
    mean of exp(|x - m|). Everything is computed in float64.
    """
    x, m = x.double(), m.double()
    log_ratio = x - m
    clamped = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio, shift = clamped.exp(), probability_shift(x, m).abs()
    owners = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    sequence = log_ratio.new_zeros(len(lengths)).index_add_(0, owners, log_ratio)
    values = {
        "k1": kl_k1(x, m).mean(),
        "k3": kl_k3(m + clamped, m).mean(),
        "tv_mean": shift.mean(),
        "tv_max": shift.max(),
        "logprob_absdiff_mean": log_ratio.abs().mean(),
        "logprob_absdiff_max": log_ratio.abs().max(),
        "mult_prob_error": clamped.abs().exp().mean(),
        "ppl_ratio": (m.mean() - x.mean()).exp(),
        "ratio_min": ratio.min(),
        "ratio_max": ratio.max(),
        "chi2_token": ratio.square().mean() - 1,
        "ess_token": effective_sample_share(clamped),
        "ess_seq": effective_sample_share(sequence),
    }
    values |= percentiles("ratio", ratio, (1, 50, 99)) | percentiles("seq_logratio", sequence, (1, 50, 99))
    result = {f"{group}/{name}": float(value) for name, value in values.items()}
    if len(x) > 1 and x.exp().std() > 0 and m.exp().std() > 0:
        result[f"{group}/pearson"] = float(torch.corrcoef(torch.stack([x.exp(), m.exp()]))[0, 1])
    return result


def topk_metrics(group: str, pi: Tensor | None, topk: tuple[Tensor, Tensor] | None) -> dict[str, float]:
    """Total variation over mu's top-k, the sampled token and the rest; nothing where the engine gave no top-k.

    pi: logprobs [N, K+1] of the ids of `topk`, which is (ids, mu's logprobs).
    """
    if pi is None or topk is None:
        return {}
    return {f"{group}/topk_tv": float(topk_tv(pi, topk[1]).mean())}


def routing_metrics(trainer: Sequence[Tensor] | None, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Share of (position, layer) pairs at which trainer and engine choose other experts; nothing without experts.

    `trainer`: routes [positions, layers, experts] of each rollout, as the trainer would choose them by itself.
    """
    engine = [rollout.routes for rollout in rollouts if rollout.routes is not None]
    if trainer is None or len(engine) != len(trainer):
        return {}
    flips = other_experts(torch.cat(list(trainer)), torch.cat(engine))
    return {"mismatch/router_flip_frac": float(flips.double().mean())}


def other_experts(first: Tensor, second: Tensor) -> Tensor:
    """Where two sets of routes [..., experts] do not name the same experts, in any order: bool [...]."""
    return (first.sort(-1).values != second.sort(-1).values).any(-1)


def effective_sample_share(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / (n sum w^2) of weights exp(log_weights), in (0, 1]."""
    weights = (log_weights - log_weights.max()).exp()
    return weights.sum().square() / (len(weights) * weights.square().sum())


def percentiles(name: str, values: Tensor, points: Sequence[int]) -> dict[str, Tensor]:
    """`<name>_p<point>` for each point."""
    levels = torch.tensor([point / 100 for point in points], dtype=values.dtype, device=values.device)
    return {f"{name}_p{point}": value for point, value in zip(points, values.quantile(levels), strict=True)}


def offpolicy_metrics(x: Tensor, m: Tensor, advantages: Tensor, lengths: Sequence[int]) -> dict[str, float]:
    """Everything off-policy, pi against mu: the divergences, their parts by mu bucket and advantage sign."""
    result = divergence_metrics("offpolicy", x, m, lengths)
    log_ratio, shift, mu = (x - m).double(), probability_shift(x, m).abs().double(), m.exp()
    result["offpolicy/clamped_frac"] = float((log_ratio.abs() >= LOG_RATIO_LIMIT).double().mean())
    result["offpolicy/lowprob_frac"] = float((mu <= LOW_PROBABILITY).double().mean())
    result["offpolicy/tv_large_frac"] = float((shift > LARGE_SHIFT).double().mean())
    parts = mu_buckets(mu) | {"pos": advantages > 0, "neg": advantages < 0}
    for name, chosen in parts.items():
        separator = "_" if name in ("pos", "neg") else "/"
        if chosen.any():
            result[f"offpolicy/tv_mean{separator}{name}"] = float(shift[chosen].mean())
            ratio = log_ratio[chosen].clamp(max=LOG_RATIO_LIMIT).exp()
            result[f"offpolicy/ratio_max{separator}{name}"] = float(ratio.max())
        result[f"offpolicy/tokens{separator}{name}"] = float(chosen.sum())
    return result


def mu_buckets(mu: Tensor) -> dict[str, Tensor]:
    """Masks [N] of the probability buckets, by name."""
    return {name: (mu > low) & (mu <= high) for name, low, high in BUCKETS}


def weight_metrics(gradients: Tensor, x: Tensor, anchor: Tensor, m: Tensor, advantages: Tensor) -> dict[str, float]:
    """The loss's gradient weight w, from g = d(-L)/dx = A r w, over the tokens with A != 0 of all updates.

    `gradients` [N] are g, `x` pi's logprobs at the moment of the update, `anchor` those of the ratio's
    denominator, `m` mu's. Also by advantage sign and by mu bucket.
    """
    used = advantages != 0
    result: dict[str, float] = {"update/tokens": float(len(advantages)), "update/tokens_used": float(used.sum())}
    if not used.any():
        return result
    gradients, x, anchor, m, advantages = (v[used].double() for v in (gradients, x, anchor, m, advantages))
    ratio = (x - anchor).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    weight, mu = gradients / (advantages * ratio), m.exp()
    bad = (advantages < 0) & (mu - x.exp() > BAD_FALL)
    result |= {
        "update/w_mean": float(weight.mean()),
        "update/w_absdev": float((weight - 1).abs().mean()),
        "update/w_absdev_p99": float((weight - 1).abs().quantile(0.99)),
        "update/w_neg_frac": float((weight < 0).double().mean()),
        "update/w_max": float(weight.max()),
        "update/w_min": float(weight.min()),
        "update/bad_frac": float(bad.double().mean()),
    }
    signs = {"_pos": advantages > 0, "_neg": advantages < 0}
    for suffix, chosen in (signs | {f"/{name}": mask for name, mask in mu_buckets(mu).items()}).items():
        result[f"update/tokens{suffix}"] = float(chosen.sum())
        if chosen.any():
            part = weight[chosen]
            result[f"update/w_mean{suffix}"] = float(part.mean())
            result[f"update/w_neg_frac{suffix}"] = float((part < 0).double().mean())
            result[f"update/clip_frac{suffix}"] = float((part == 0).double().mean())
    return result


def correction_metrics(multipliers: Sequence[Tensor]) -> dict[str, float]:
    """The rollout correction's multipliers of the tokens that were trained on: share kept, mean, effective share."""
    if not multipliers:
        return {}
    values = torch.cat(list(multipliers)).double()
    result = {"correction/kept_frac": float((values > 0).double().mean()), "correction/mean": float(values.mean())}
    if values.any():
        result["correction/ess"] = float(effective_sample_share(values.log()))
    return result
