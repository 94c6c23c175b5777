"""Published settings of the losses: `loss = { id = "gspo", preset = "paper" }`.

A preset sets the loss's parameters and the fields outside `[loss]` that belong to the method: aggregation, advantage,
anchor and what else it was published with. It says what it does not reproduce. `controlled`, the default, sets nothing:
all losses then share aggregation, advantage and anchor, and differ in the loss alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from drpo_bench.errors import did_you_mean
from drpo_bench.loss_configs import CONTROLLED, LOSS_IDS


@dataclass(frozen=True)
class Preset:
    """A method as published.

    `parameters` are the loss's, `fields` dotted fields of the run, `missing` what is not reproduced, one line each.
    """

    source: str
    parameters: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


SCALE = "model, data, learning rate, batch and response length are the experiment's own"
DPPO_FIELDS = {"train.aggregation": "seq_mean_token_sum_norm", "train.advantage": "mean", "train.anchor": "mu"}
GRPO_FIELDS = {"train.aggregation": "seq_mean_token_mean", "train.advantage": "group_std", "train.anchor": "old"}
TOKEN_FIELDS = GRPO_FIELDS | {"train.aggregation": "token_mean"}
DPPO_SANITY = "arXiv 2602.04879, appendix C (sanity runs)"
DPPO_SCALING = "arXiv 2602.04879, appendix E (scaling runs)"
DRPO_SOURCE = "arXiv 2606.09821, section 4 and the released recipe"
DRPO_MISSING = ("the horizon is train.horizon (rollout.max_new_tokens by default), 8192 in the recipe", SCALE)
NO_REPLAY = "routing replay of mixture-of-experts models"

PRESETS: dict[str, dict[str, Preset]] = {
    "reinforce": {"paper": Preset("verl's gpg, arXiv 2504.02546", {}, TOKEN_FIELDS, (SCALE,))},
    "pg_is": {"paper": Preset(DPPO_SANITY, {}, DPPO_FIELDS, (SCALE,))},
    "pg_tis": {
        "paper": Preset(DPPO_SANITY, {"ratio_cap": 3.0}, DPPO_FIELDS, (SCALE,)),
        "scaling": Preset(DPPO_SCALING, {"ratio_cap": 5.0}, DPPO_FIELDS, (SCALE, NO_REPLAY)),
    },
    "cispo": {"paper": Preset("arXiv 2506.13585 with ScaleRL's cap of 5", {}, TOKEN_FIELDS, (SCALE,))},
    "topr": {
        "paper": Preset(
            "arXiv 2503.14286",
            {"level": "sequence"},
            {"train.aggregation": "seq_mean_token_sum", "train.advantage": "none", "train.anchor": "mu"},
            (
                "rewards of -1 and 1: ours are 0 and 1, so that a wrong answer has no gradient with advantage none",
                SCALE,
            ),
        )
    },
    "vespo": {"paper": Preset("arXiv 2602.10693", {}, TOKEN_FIELDS | {"train.anchor": "mu"}, (SCALE,))},
    "grpo": {
        "paper": Preset(
            "DeepSeekMath, arXiv 2402.03300",
            {"clip_low": 0.2, "clip_high": 0.2},
            GRPO_FIELDS | {"train.kl_coef": 0.04},
            ("the reference policy stays the initial one: it is not renewed between iterations", SCALE),
        ),
        "dapo": Preset(
            "DAPO, arXiv 2503.14476",
            {"clip_low": 0.2, "clip_high": 0.28},
            TOKEN_FIELDS | {"rollout.dynamic_sampling": True, "task.overlong_penalty": 1.0},
            ("overlong filtering, which its final recipe leaves out too", SCALE),
        ),
        "dr_grpo": Preset(
            "Dr. GRPO, arXiv 2503.20783",
            {"clip_low": 0.2, "clip_high": 0.2},
            {"train.aggregation": "seq_mean_token_sum_norm", "train.advantage": "mean", "train.anchor": "old"},
            (SCALE,),
        ),
        "drpo_baseline": Preset(DRPO_SOURCE, {"clip_low": 0.2, "clip_high": 0.28}, DPPO_FIELDS, DRPO_MISSING),
    },
    "minirl": {
        "paper": Preset(DPPO_SANITY, {"ratio_cap": "inf"}, DPPO_FIELDS, (SCALE,)),
        "tis": Preset(DPPO_SANITY, {"ratio_cap": 3.0}, DPPO_FIELDS, (SCALE,)),
    },
    "decoupled_ppo": {
        "paper": Preset("AReaL, arXiv 2505.24298", {}, TOKEN_FIELDS | {"train.anchor": "mu"}, ("PPO's critic", SCALE))
    },
    "sapo": {"paper": Preset("arXiv 2511.20347", {}, GRPO_FIELDS, (SCALE,))},
    "gspo": {"paper": Preset("arXiv 2507.18071, section 5.1", {}, GRPO_FIELDS, (SCALE,))},
    "gmpo": {"paper": Preset("arXiv 2507.20673", {}, GRPO_FIELDS, (SCALE,))},
    "clip_cov": {"paper": Preset("arXiv 2505.22617", {}, TOKEN_FIELDS, (SCALE,))},
    "kl_cov": {"paper": Preset("arXiv 2505.22617", {}, TOKEN_FIELDS, (SCALE,))},
    "spo": {
        "paper": Preset("arXiv 2401.16025", {"epsilon": 0.2}, TOKEN_FIELDS, ("control tasks, PPO's critic", SCALE)),
        "drpo_baseline": Preset(DRPO_SOURCE, {"epsilon": 12.5}, DPPO_FIELDS, DRPO_MISSING),
    },
    "dppo_tv": {
        "paper": Preset(DPPO_SANITY, {"delta_low": 0.15, "delta_high": 0.15}, DPPO_FIELDS, (SCALE,)),
        "scaling": Preset(
            DPPO_SCALING, {"delta_low": 0.2, "delta_high": 0.2, "ratio_cap": 5.0}, DPPO_FIELDS, (SCALE, NO_REPLAY)
        ),
        "fp8_e2e": Preset(DRPO_SOURCE, {"delta_low": 0.6, "delta_high": 0.6}, DPPO_FIELDS, DRPO_MISSING),
    },
    "dppo_kl": {"paper": Preset(DPPO_SANITY, {"delta_low": 0.05, "delta_high": 0.05}, DPPO_FIELDS, (SCALE,))},
    "dppo_topk_tv": {
        "paper": Preset(
            DPPO_SCALING,
            {"delta_low": 0.2, "delta_high": 0.2, "k": 20, "ratio_cap": 5.0},
            DPPO_FIELDS,
            (SCALE, NO_REPLAY),
        )
    },
    "dppo_topk_kl": {
        "paper": Preset(
            DPPO_SCALING,
            {"delta_low": 0.05, "delta_high": 0.05, "k": 20, "ratio_cap": 5.0},
            DPPO_FIELDS,
            (SCALE, NO_REPLAY),
        )
    },
    "cppo": {"paper": Preset("arXiv 2606.10968", {"ratio_cap": 20.0}, DPPO_FIELDS, (SCALE,))},
    "ipo": {
        "paper": Preset(
            "prime-rl's default",
            {},
            DPPO_FIELDS | {"train.aggregation": "token_mean"},
            ("its asynchronous trainer", SCALE),
        )
    },
    "drpo": {"paper": Preset(DRPO_SOURCE, {"delta": 12.5}, DPPO_FIELDS, DRPO_MISSING)},
    "mask_drpo": {
        "paper": Preset(
            "arXiv 2606.09821, figure 11 (parameters inferred)",
            {"delta": 12.5, "delta_mask": 0.15},
            DPPO_FIELDS,
            DRPO_MISSING,
        )
    },
    "drpo_no_abs_advantage": {
        "paper": Preset("arXiv 2606.09821, figure 4", {"delta": 12.5}, DPPO_FIELDS, DRPO_MISSING)
    },
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
    loss = data.get("loss")
    if not isinstance(loss, dict) or not isinstance(loss.get("preset", CONTROLLED), str):
        return data
    if loss.get("id") not in LOSS_IDS:  # the union of the losses says what is wrong with it
        return data
    preset = find_preset(loss["id"], loss.get("preset", CONTROLLED))
    if preset is None:
        return data
    data = data | {"loss": dict(loss)}
    settings = {f"loss.{name}": value for name, value in preset.parameters.items()} | preset.fields
    for dotted, value in settings.items():
        table_name, name = dotted.split(".")
        table = data.get(table_name, {})
        if not isinstance(table, dict):  # another validator says what is wrong with it
            continue
        given = table.get(name, value)
        if given != value:
            raise ValueError(f"{dotted} is {given!r}, but loss.preset = {loss['preset']!r} sets it to {value!r}")
        data[table_name] = table | {name: value}
    return data
