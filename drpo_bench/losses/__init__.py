"""The registry of policy losses: one row a loss, one formula behind it.

Every loss maps `Tokens` to one value a token, `[N]`, to be minimised; the caller reduces with
`(tokens.weights * loss(tokens)).sum()`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from drpo_bench import loss_configs as configs
from drpo_bench.correction_configs import CorrectionBase, NoCorrection
from drpo_bench.loss_configs import LossBase, Scope
from drpo_bench.losses.clipped import (
    decoupled_ppo_loss,
    dis_loss,
    grpo_loss,
    minirl_loss,
    relaxed_grpo_loss,
    sapo_loss,
)
from drpo_bench.losses.correction import correction_multiplier
from drpo_bench.losses.covariance import clip_cov_loss, clip_cov_select, kl_cov_loss, kl_cov_select
from drpo_bench.losses.regularized import (
    drpo_loss,
    drpo_no_abs_advantage_loss,
    mask_drpo_loss,
    penalty_loss,
    spo_loss,
)
from drpo_bench.losses.sequences import cppo_loss, gmpo_loss, gspo_loss, opsm_loss
from drpo_bench.losses.surrogates import (
    cispo_loss,
    dro_loss,
    pg_is_loss,
    pg_tis_loss,
    reinforce_loss,
    topr_loss,
    vespo_loss,
)
from drpo_bench.losses.trust_region import (
    dppo_kl_loss,
    dppo_topk_kl_loss,
    dppo_topk_tv_loss,
    dppo_tv_loss,
    ipo_loss,
    neg_mask_loss,
)
from drpo_bench.types import Anchor, Tokens


@dataclass(frozen=True)
class LossSpec:
    """A row of the registry: the formula, its parameters, and for minibatch scope the choice of tokens."""

    formula: Callable[..., Tensor]
    config: type[LossBase]
    select: Callable[..., Tensor] | None = None


LOSSES: dict[str, LossSpec] = {
    "reinforce": LossSpec(reinforce_loss, configs.surrogates.ReinforceConfig),
    "pg_is": LossSpec(pg_is_loss, configs.surrogates.PGISConfig),
    "pg_tis": LossSpec(pg_tis_loss, configs.surrogates.PGTISConfig),
    "cispo": LossSpec(cispo_loss, configs.surrogates.CISPOConfig),
    "topr": LossSpec(topr_loss, configs.surrogates.TOPRConfig),
    "vespo": LossSpec(vespo_loss, configs.surrogates.VESPOConfig),
    "dro": LossSpec(dro_loss, configs.surrogates.DROConfig),
    "grpo": LossSpec(grpo_loss, configs.clipped.GRPOConfig),
    "relaxed_grpo": LossSpec(relaxed_grpo_loss, configs.clipped.RelaxedGRPOConfig),
    "minirl": LossSpec(minirl_loss, configs.clipped.MiniRLConfig),
    "decoupled_ppo": LossSpec(decoupled_ppo_loss, configs.clipped.DecoupledPPOConfig),
    "dis": LossSpec(dis_loss, configs.clipped.DISConfig),
    "sapo": LossSpec(sapo_loss, configs.clipped.SAPOConfig),
    "gspo": LossSpec(gspo_loss, configs.sequences.GSPOConfig),
    "gmpo": LossSpec(gmpo_loss, configs.sequences.GMPOConfig),
    "opsm": LossSpec(opsm_loss, configs.sequences.OPSMConfig),
    "clip_cov": LossSpec(clip_cov_loss, configs.covariance.ClipCovConfig, clip_cov_select),
    "kl_cov": LossSpec(kl_cov_loss, configs.covariance.KLCovConfig, kl_cov_select),
    "spo": LossSpec(spo_loss, configs.regularized.SPOConfig),
    "dppo_tv": LossSpec(dppo_tv_loss, configs.trust_region.DPPOTVConfig),
    "dppo_kl": LossSpec(dppo_kl_loss, configs.trust_region.DPPOKLConfig),
    "dppo_topk_tv": LossSpec(dppo_topk_tv_loss, configs.trust_region.DPPOTopKTVConfig),
    "dppo_topk_kl": LossSpec(dppo_topk_kl_loss, configs.trust_region.DPPOTopKKLConfig),
    "cppo": LossSpec(cppo_loss, configs.sequences.CPPOConfig),
    "ipo": LossSpec(ipo_loss, configs.trust_region.IPOConfig),
    "neg_mask": LossSpec(neg_mask_loss, configs.trust_region.NegMaskConfig),
    "drpo": LossSpec(drpo_loss, configs.regularized.DRPOConfig),
    "mask_drpo": LossSpec(mask_drpo_loss, configs.regularized.MaskDRPOConfig),
    "drpo_no_abs_advantage": LossSpec(drpo_no_abs_advantage_loss, configs.regularized.DRPONoAbsAdvantageConfig),
    "penalty": LossSpec(penalty_loss, configs.regularized.PenaltyConfig),
}


@dataclass(frozen=True)
class Loss:
    """A loss with its parameters, its anchor and a rollout correction; call it with the tokens of a micro-batch."""

    id: str
    spec: LossSpec
    config: LossBase
    anchor: Anchor
    correction: CorrectionBase

    def __call__(self, tokens: Tokens) -> Tensor:
        """One value a token, [N]. Without `tokens.selected` a minibatch loss takes these tokens as the minibatch."""
        return self.with_multiplier(tokens)[0]

    def with_multiplier(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """The values [N] and the rollout correction's constant factor in them, [N]; None without a correction."""
        tokens = replace(tokens, anchor=self.anchor)
        if self.spec.select and tokens.selected is None:
            tokens = replace(tokens, selected=self.select(tokens))
        values = self.spec.formula(tokens, **self.config.parameters)
        if isinstance(self.correction, NoCorrection):
            return values, None
        multiplier = correction_multiplier(tokens, self.correction)
        return torch.where(multiplier > 0, values * multiplier, 0.0), multiplier

    def select(self, tokens: Tokens, seed: int = 0) -> Tensor:
        """What a loss of minibatch scope chooses from a whole minibatch, bool [N]; hand its parts on as `selected`."""
        assert self.spec.select is not None
        return self.spec.select(replace(tokens, anchor=self.anchor), seed, **self.config.parameters)

    @property
    def scope(self) -> Scope:
        """Over what a token's loss takes statistics: token, sequence or minibatch."""
        return self.config.scope

    @property
    def needs(self) -> frozenset[str]:
        """What it reads beyond mu_logprobs: old, prox, topk."""
        return self.config.needs_with(self.anchor)

    @property
    def zero_advantage_zero_gradient(self) -> bool:
        """Whether a token with A = 0 has no gradient, so that the trainer may skip it."""
        return self.config.zero_advantage_zero_gradient


def make_loss(loss_id: str, anchor: Anchor = "mu", correction: CorrectionBase | None = None, **params: Any) -> Loss:
    """The loss `loss_id`; parameters that are not given take the defaults of its config class.

    Raises ValueError for an unknown id or a correction that does not fit; pydantic.ValidationError for a parameter
    out of range.
    """
    if loss_id not in LOSSES:
        raise ValueError(f"unknown loss {loss_id!r}; known: {', '.join(LOSSES)}")
    if "preset" in params:
        raise ValueError(
            "preset: sets more than the loss and belongs to experiment files; give the parameters themselves"
        )
    spec, correction = LOSSES[loss_id], correction or NoCorrection()
    config = spec.config(**params)
    if problem := correction.misfit(loss_id, config, anchor):
        raise ValueError(problem)
    return Loss(loss_id, spec, config, anchor, correction)
