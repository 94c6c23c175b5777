"""Published settings of the losses: `loss = { id = "gspo", preset = "paper" }`.

A preset sets all of the loss's parameters and the fields outside `[loss]` that belong to the method: aggregation,
advantage, anchor and what else it was published with. It says what it does not reproduce. `controlled`, the default,
sets nothing: all losses then share aggregation, advantage and anchor, and differ in the loss alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any

from pydantic import BaseModel

from drpo_bench.errors import did_you_mean
from drpo_bench.loss_configs import CONTROLLED, LOSS_IDS


@dataclass(frozen=True)
class Preset:
    """A method as published.

    `parameters` are all of the loss's, `fields` dotted fields of the run, `missing` what, beside SCALE, is not
    reproduced, one line each.
    """

    source: str
    parameters: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


SCALE = "model, data, learning rate, batch and response length are the experiment's own"
# What none of the recipes has unless it says so.
WITHOUT = {
    "train.kl_coef": 0.0,
    "train.entropy_coef": 0.0,
    "correction.id": "none",
    "rollout.dynamic_sampling": False,
    "task.overlong_penalty": 0.0,
}


def recipe(aggregation: str, advantage: str, anchor: str = "mu", **others: Any) -> dict[str, Any]:
    """Fields outside the loss; `others` are dotted fields with __ for the dot."""
    settings = {"train.aggregation": aggregation, "train.advantage": advantage, "train.anchor": anchor}
    return WITHOUT | settings | {name.replace("__", "."): value for name, value in others.items()}


DPPO = recipe("seq_mean_token_sum_norm", "mean")
GRPO = recipe("seq_mean_token_mean", "group_std", "old")
TOKENS = recipe("token_mean", "group_std", "old")
TOKENS_MU = recipe("token_mean", "group_std")
DPPO_SANITY = "arXiv 2602.04879, appendix C (sanity runs)"
DPPO_SCALING = "arXiv 2602.04879, appendix E (scaling runs)"
DRPO_SOURCE = "arXiv 2606.09821, section 4 and the released recipe"
HORIZON = "the horizon is train.horizon (rollout.max_new_tokens by default), 8192 in the recipe"
NO_REPLAY = "routing replay of mixture-of-experts models"
ZERO_ONE = "rewards of -1 and 1: ours are 0 and 1"
CLIP = {"clip_low": 0.2, "clip_high": 0.2}
CLIP_HIGHER = {"clip_low": 0.2, "clip_high": 0.28}


def dppo(delta: float, ratio_cap: float = inf, **others: Any) -> dict[str, Any]:
    """DPPO's parameters with one radius on both sides."""
    return {"delta_low": delta, "delta_high": delta, "ratio_cap": ratio_cap} | others


PRESETS: dict[str, dict[str, Preset]] = {
    "reinforce": {"paper": Preset("verl's gpg, arXiv 2504.02546", {}, TOKENS_MU)},
    "pg_is": {"paper": Preset(DPPO_SANITY, {}, DPPO)},
    "pg_tis": {
        "paper": Preset(DPPO_SANITY, {"ratio_cap": 3.0}, DPPO),
        "scaling": Preset(DPPO_SCALING, {"ratio_cap": 5.0}, DPPO, (NO_REPLAY,)),
    },
    "cispo": {"paper": Preset("arXiv 2506.13585, ScaleRL's cap of 5", {"clip_low": 1.0, "clip_high": 4.0}, TOKENS)},
    "topr": {
        "paper": Preset(
            "arXiv 2503.14286",
            {"level": "sequence"},
            recipe("seq_mean_token_sum", "none"),
            (f"{ZERO_ONE}, so that wrong answers have no gradient",),
        )
    },
    "vespo": {
        "paper": Preset(
            "arXiv 2602.10693", {"k_pos": 2.0, "lambda_pos": 3.0, "k_neg": 3.0, "lambda_neg": 2.0}, TOKENS_MU
        )
    },
    "grpo": {
        "paper": Preset(
            "DeepSeekMath, arXiv 2402.03300",
            CLIP | {"dual_clip": None},
            GRPO | {"train.kl_coef": 0.04},
            ("the reference policy stays the initial one: it is not renewed between iterations",),
        ),
        "dapo": Preset(
            "DAPO, arXiv 2503.14476",
            CLIP_HIGHER | {"dual_clip": None},
            TOKENS | {"rollout.dynamic_sampling": True, "task.overlong_penalty": 0.5},
            (f"{ZERO_ONE}, and the deduction for length is halved with them",),
        ),
        "dr_grpo": Preset(
            "Dr. GRPO, arXiv 2503.20783",
            CLIP | {"dual_clip": None},
            recipe("seq_mean_token_sum_norm", "mean", "old"),
        ),
        "drpo_baseline": Preset(DRPO_SOURCE, CLIP_HIGHER | {"dual_clip": None}, DPPO, (HORIZON,)),
    },
    "minirl": {
        "paper": Preset(DPPO_SANITY, CLIP_HIGHER | {"ratio_cap": inf, "mask_anchor": "old"}, DPPO),
        "tis": Preset(DPPO_SANITY, CLIP_HIGHER | {"ratio_cap": 3.0, "mask_anchor": "old"}, DPPO),
    },
    "decoupled_ppo": {
        "paper": Preset(
            "AReaL, arXiv 2505.24298",
            CLIP | {"ratio_cap": inf, "mask_anchor": "prox"},
            TOKENS_MU,
            ("PPO's critic, where a recipe has one",),
        )
    },
    "sapo": {"paper": Preset("arXiv 2511.20347", {"tau_pos": 1.0, "tau_neg": 1.05}, GRPO)},
    "gspo": {"paper": Preset("arXiv 2507.18071, section 5.1", {"clip_low": 3e-4, "clip_high": 4e-4}, GRPO)},
    "gmpo": {"paper": Preset("arXiv 2507.20673", {"clip_low": 0.4, "clip_high": 0.4}, GRPO)},
    "clip_cov": {
        "paper": Preset("arXiv 2505.22617", CLIP | {"select_frac": 2e-4, "cov_low": 1.0, "cov_high": 5.0}, TOKENS)
    },
    "kl_cov": {"paper": Preset("arXiv 2505.22617", {"select_frac": 2e-4, "coef": 1.0}, TOKENS)},
    "spo": {
        "paper": Preset("arXiv 2401.16025", {"epsilon": 0.2}, TOKENS, ("control tasks and PPO's critic",)),
        "drpo_baseline": Preset(DRPO_SOURCE, {"epsilon": 12.5}, DPPO, (HORIZON,)),
    },
    "dppo_tv": {
        "paper": Preset(DPPO_SANITY, dppo(0.15, mask_anchor=None), DPPO),
        "scaling": Preset(DPPO_SCALING, dppo(0.2, 5.0, mask_anchor=None), DPPO, (NO_REPLAY,)),
        "drpo_baseline": Preset(DRPO_SOURCE, dppo(0.15, 20.0, mask_anchor=None), DPPO, (HORIZON,)),
        "fp8_e2e": Preset(DRPO_SOURCE, dppo(0.6, 20.0, mask_anchor=None), DPPO, (HORIZON,)),
    },
    "dppo_kl": {"paper": Preset(DPPO_SANITY, dppo(0.05, mask_anchor=None), DPPO)},
    "dppo_topk_tv": {"paper": Preset(DPPO_SCALING, dppo(0.2, 5.0, k=20, replace=False), DPPO, (NO_REPLAY,))},
    "dppo_topk_kl": {"paper": Preset(DPPO_SCALING, dppo(0.05, 5.0, k=20, replace=False), DPPO, (NO_REPLAY,))},
    "cppo": {
        "paper": Preset(
            "arXiv 2606.10968",
            {"delta": 0.15, "budget_low": 0.02, "budget_high": 0.04, "last_weight": 0.8, "ratio_cap": 20.0},
            DPPO,
        )
    },
    "ipo": {
        "paper": Preset(
            "prime-rl's default",
            {"delta": 0.1, "kl_coef": 1e-3, "mask_anchor": None},
            recipe("token_mean", "mean"),
            ("its asynchronous trainer",),
        )
    },
    "drpo": {"paper": Preset(DRPO_SOURCE, {"delta": 12.5}, DPPO, (HORIZON,))},
    "mask_drpo": {
        "paper": Preset(
            "arXiv 2606.09821, figure 11 (parameters inferred)",
            {"delta": 12.5, "delta_mask": 0.15, "mask_side": "harmful", "continuous": False},
            DPPO,
            (HORIZON,),
        )
    },
    "drpo_no_abs_advantage": {"paper": Preset("arXiv 2606.09821, figure 4", {"delta": 12.5}, DPPO, (HORIZON,))},
}


def find_preset(loss_id: str, name: str) -> Preset | None:
    """The preset of a loss; None for `controlled`. Raises ValueError for a name that the loss does not have."""
    if name == CONTROLLED:
        return None
    known = PRESETS.get(loss_id, {})
    if name not in known:
        hint = did_you_mean(name, known) or f"; {loss_id} has {', '.join([CONTROLLED, *known])}"
        raise ValueError(f"loss.preset: {loss_id} has no preset {name!r}{hint}")
    return known[name]


def apply_preset(data: dict[str, Any]) -> dict[str, Any]:
    """The tables of a run with its loss's preset written out.

    A field that the preset sets may be given with the same value only. Raises ValueError naming the field.
    """
    loss = as_table(data.get("loss"))
    name = loss.get("preset", CONTROLLED)
    if loss.get("id") not in LOSS_IDS or not isinstance(name, str):  # another validator says what is wrong with it
        return data
    preset = find_preset(loss["id"], name)
    if preset is None:
        return data
    data = data | {"loss": loss}
    settings = {f"loss.{name}": value for name, value in preset.parameters.items()} | preset.fields
    for dotted, value in settings.items():
        table_name, field_name = dotted.split(".")
        if not isinstance(data.get(table_name), dict | BaseModel | None):
            continue  # no table at all, which another validator says
        table = as_table(data.get(table_name))
        given = table.get(field_name, value)
        if (inf if given == "inf" else given) != value:
            raise ValueError(f"{dotted} is {given!r}, but loss.preset = {name!r} sets it to {value!r}")
        data[table_name] = table | {field_name: value}
    return data


def as_table(value: object) -> dict[str, Any]:
    """A table of a file, or what was set of a config object."""
    if isinstance(value, BaseModel):
        tag = {name: getattr(value, name) for name in ("id", "name") if hasattr(value, name)}
        return value.model_dump(exclude_unset=True) | tag
    return dict(value) if isinstance(value, dict) else {}
