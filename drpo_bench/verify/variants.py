"""Settings at which each loss is checked beside its defaults, so that every branch is walked through."""

from __future__ import annotations

from typing import Any

TOPK_REPLACED = {"k": 3, "replace": True, "ratio_cap": 1.5, "delta_low": 0.02, "delta_high": 0.03}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "pg_tis": [{"ratio_cap": 1.5}],
    "cispo": [{"clip_low": 0.1, "clip_high": 0.3}],
    "topr": [{"level": "token"}],
    "vespo": [{"k_pos": 1.0, "lambda_pos": 1.0, "k_neg": 2.0, "lambda_neg": 1.0}],
    "dro": [{"coef": 0.7}],
    "grpo": [{"clip_low": 0.1, "clip_high": 0.5, "dual_clip": 1.2}],
    "relaxed_grpo": [{"alpha_low": 0.02, "alpha_high": 0.3}],
    "minirl": [{"ratio_cap": 1.5, "mask_anchor": "prox"}, {"mask_anchor": None}],
    "decoupled_ppo": [{"ratio_cap": 1.05, "mask_anchor": "old", "clip_high": 0.4}],
    "dis": [{"clip_low": 0.1, "clip_high": 0.3, "mask_anchor": "old"}],
    "sapo": [{"tau_pos": 0.5, "tau_neg": 2.0}],
    "gspo": [{"clip_low": 0.05, "clip_high": 0.2}],
    "gmpo": [{"clip_low": 0.05, "clip_high": 0.2}],
    "opsm": [{"delta": 0.05}],
    "kl_cov": [{"select_frac": 0.2, "coef": 0.3}, {"select_frac": 0.0}],
    "spo": [{"epsilon": 12.5}],
    "dppo_tv": [{"delta_low": 0.02, "delta_high": 0.08, "ratio_cap": 1.5, "mask_anchor": "old"}],
    "dppo_kl": [{"delta_low": 0.002, "delta_high": 0.01, "ratio_cap": 1.5, "mask_anchor": "prox"}],
    "dppo_topk_tv": [{"k": 3, "delta_low": 0.05, "delta_high": 0.1}, TOPK_REPLACED],
    "dppo_topk_kl": [{"k": 3, "delta_low": 0.01, "delta_high": 0.02}, TOPK_REPLACED | {"delta_low": 0.004}],
    "cppo": [{"delta": 0.05, "last_weight": 0.3, "ratio_cap": 1.5}, {"delta": 0.05, "budget_low": 0, "budget_high": 0}],
    "ipo": [{"delta": 0.02, "kl_coef": 0.5, "mask_anchor": "old"}],
    "neg_mask": [{"delta": 0.05, "mask_anchor": "old"}],
    "drpo": [{"delta": 0.02}, {"delta": 12.5}],
    "mask_drpo": [
        {"delta": 0.1, "delta_mask": 0.05, "mask_side": "both"},
        {"delta": 0.1, "delta_mask": 0.05, "continuous": True},
        {"delta": 0.1, "delta_mask": 0.05, "mask_side": "both", "continuous": True},
    ],
    "drpo_no_abs_advantage": [{"delta": 1.0}],
    "penalty": [
        {"kind": kind, "coef": 0.7, "weight_by_abs_advantage": weighted}
        for kind in ("kl", "reverse_kl", "k2", "k3", "tv", "binary_kl", "chi2")
        for weighted in (True, False)
    ],
}
