"""Two sides' numbers for the same tokens as metrics, by mu bucket, and the control: a side against itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from drpo_bench.metrics import divergence_metrics, mu_buckets, other_experts, topk_metrics
from drpo_bench.mismatch.scores import SideScores

Row = dict[str, str | int | float]
OF_SEQUENCES = ("ess_seq", "seq_logratio_p1", "seq_logratio_p50", "seq_logratio_p99")
ONE_IN_CONTROL = {
    *("mult_prob_error", "ppl_ratio", "ess_token", "ess_seq"),
    *("ratio_min", "ratio_max", "ratio_p1", "ratio_p50", "ratio_p99"),
}
NOT_IN_CONTROL = {"pearson"}  # 1 up to the rounding of its own formula


class ControlFailed(RuntimeError):
    """The same weights on the same engine in the same format gave two answers."""


def pair_rows(
    names: tuple[str, str], mu: SideScores, pi: SideScores, token_ids: Tensor, lengths: Sequence[int]
) -> list[Row]:
    """A row for all N tokens and one for each bucket of mu's probability that has any: `divergence_metrics` of pi
    against mu, `topk_tv`, `response_router_flip_frac`. Metrics of whole sequences stand in the first row only.

    KLs are in the direction KL(mu || pi): k1 and k3 estimate it where the tokens were sampled from mu. Here they are
    means over the sampler's tokens, so for other rows than the sampler's they only come close, as far as mu does.
    """
    listed = shared_topk(mu, pi, token_ids)
    flips = router_flips(mu.routes, pi.routes)
    everything = torch.ones_like(token_ids, dtype=torch.bool)
    rows: list[Row] = []
    for bucket, chosen in ({"all": everything} | mu_buckets(mu.logprobs.exp())).items():
        count = int(chosen.sum())
        if not count:
            continue
        whole = bucket == "all"
        values = divergence_metrics("", pi.logprobs[chosen], mu.logprobs[chosen], lengths if whole else [count])
        values |= topk_metrics("", listed[0][chosen], (token_ids[chosen], listed[1][chosen]))
        if flips is not None:
            values["/response_router_flip_frac"] = float(flips[chosen].mean())
        metrics = {name.removeprefix("/"): value for name, value in values.items()}
        kept = {name: value for name, value in metrics.items() if whole or name not in OF_SEQUENCES}
        rows.append({"mu": names[0], "pi": names[1], "bucket": bucket, "tokens": count, **kept})
    return rows


def shared_topk(mu: SideScores, pi: SideScores, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logprobs (pi's, mu's) [N, K + 1] of the tokens that both sides list, then of the sampled one.

    mu's is -inf where there is no entry: pi does not list the token, or the sampled one is among the K already.
    A total variation over these and one bucket for the rest is a lower bound of the full one, whatever is listed.
    """
    same = mu.topk_ids[:, :, None] == pi.topk_ids[:, None, :]  # [N, K, K]
    shared = same.any(2)
    pi_listed = torch.where(same, pi.topk_logprobs[:, None, :], 0.0).sum(2)
    mu_listed = mu.topk_logprobs.masked_fill(~shared, -torch.inf)
    among = ((mu.topk_ids == token_ids[:, None]) & shared).any(1)
    mu_sampled = mu.logprobs.masked_fill(among, -torch.inf)
    return torch.cat([pi_listed, pi.logprobs[:, None]], 1), torch.cat([mu_listed, mu_sampled[:, None]], 1)


def router_flips(mu: Tensor | None, pi: Tensor | None) -> Tensor | None:
    """Share [N] of the layers whose set of experts differs, at the position that predicts each token; None unless both
    sides have routes [N, layers, experts]."""
    if mu is None or pi is None:
        return None
    return other_experts(mu, pi).double().mean(-1)


def check_control(rows: Sequence[Row]) -> None:
    """Raise ControlFailed unless every metric of a side against itself is exactly that of no mismatch: 0, or 1 of
    ratios and effective sample shares."""
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float) and name not in NOT_IN_CONTROL and value != float(name in ONE_IN_CONTROL):
                raise ControlFailed(
                    f"control: {row['mu']} scored twice with the same weights: {name} is {value:.3g}, not "
                    f"{int(name in ONE_IN_CONTROL)} (bucket {row['bucket']}); its mismatch with others means nothing"
                )
