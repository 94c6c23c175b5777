"""docs/losses.md, written from the registry: `make docs`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from drpo_bench.batching import token_weights
from drpo_bench.correction_configs import CorrectionBase, CorrectionConfig
from drpo_bench.loss_presets import SCALE, WITHOUT
from drpo_bench.losses import LOSSES
from drpo_bench.losses.listing import SECTIONS, LossDoc, describe, parameter_text

SYSTEMS = ("verl 0.9.1", "TRL 1.16", "UniRL", "Stable-RL")
# What each system calls the loss, where it has it.
ELSEWHERE: dict[str, tuple[str, str, str, str]] = {
    "reinforce": ("gpg", "", "", "gpg"),
    "pg_is": ("bypass_mode with reinforce", "", "", "pg_no_mask with a huge clip_ratio_c"),
    "pg_tis": ("bypass_mode with reinforce", "", "", "pg_no_mask"),
    "cispo": ("cispo", "cispo", "", "cispo"),
    "vespo": ("", "vespo", "", ""),
    "dro": ("dro", "", "", ""),
    "grpo": ("vanilla", "grpo, dapo, dr_grpo, bnpo", "grpo", "vanilla, ppo"),
    "relaxed_grpo": ("", "", "", "ppo_ablation_*"),
    "minirl": ("", "", "", "ppo_recompute"),
    "decoupled_ppo": ("vanilla with rollout correction", "", "", ""),
    "sapo": ("sapo", "sapo", "", "sapo"),
    "gspo": ("gspo", "importance_sampling_level=sequence", "", "gspo"),
    "gmpo": ("geo_mean", "experimental", "", "geo_mean"),
    "opsm": ("", "off_policy_mask_threshold", "", ""),
    "clip_cov": ("clip_cov", "", "", "clip_cov"),
    "kl_cov": ("kl_cov", "", "", "kl_cov"),
    "spo": ("", "", "drpo with penalty_mu_weighted=False", ""),
    "dppo_tv": ("dppo_tv", "", "", "dppo_binary_tv"),
    "dppo_kl": ("dppo_kl", "", "", "dppo_binary_kl"),
    "dppo_topk_tv": ("", "", "", "dppo_topk_tv"),
    "dppo_topk_kl": ("", "", "", "dppo_topk_kl"),
    "drpo": ("", "", "drpo", ""),
}

INTRODUCTION = r"""# Losses

Written from the registry by `make docs`; do not edit. [adding-a-loss.md](adding-a-loss.md) tells how to add one,
[integrations.md](integrations.md) how to use them in TRL and verl, [verification.md](verification.md) how they are
checked.

A loss maps the response tokens of a micro-batch to one value a token, to be minimised. Notation:

| symbol | meaning |
|---|---|
| x | log pi of the sampled token, the current policy, at the sampling temperature; carries the gradient |
| m | log mu, the engine's logprob of it; or log old, log prox, as `train.anchor` says |
| p, u, r | exp x, exp m, p / u. Log-ratios are clamped to +-20; beyond it a ratio that carries the gradient has none |
| A | advantage; constant over a response |
| g | d(-L)/dx, the gradient that ascends; the weight w is g / (A r) |
| l | x - m, the log-ratio; \|y\| the tokens of the response |
| sg | stop gradient |

A sequence loss repeats the value of a response on each of its tokens: 1/|y| comes from the weights of tokens alone,
so g below is for the sum over the tokens. Compare gradients, never loss values: -A r and -A sg(r) x have the same
gradient.

![Gradient weights of the main losses](figures/weights_main.png)

![Gradient weights of all losses](figures/weights_all.png)

Both figures are drawn by `drpo-bench losses plot`.
"""

AXES = """## Axes apart from the loss

**Anchor** (`train.anchor`): the ratio's denominator, mu by default for every loss; old (the trainer at the sampling
weights) or prox (the trainer at the start of the batch's updates). Losses whose paper measures the mask from another
policy have `mask_anchor` (minirl: old; decoupled_ppo: prox); dppo_tv, dppo_kl, dis, ipo and neg_mask take one, too.

**Aggregation** (`train.aggregation`): the weight of each token is fixed once an optimizer step, before anything is
skipped or masked, so that micro-batches never change the gradient. Modes:

{modes}

**Advantage** (`train.advantage`): mean (R - mean of the group), group_std (divided by the group's unbiased std + 1e-6),
batch_std (by the batch's), rloo (R - mean of the others), none. A group of equal rewards has advantages of exactly 0.

**Further terms**: `train.kl_coef` adds KL(pi || ref) by k3 with the initial policy as ref, `train.entropy_coef`
subtracts the entropy; both act on all response tokens. `rollout.dynamic_sampling` replaces groups that are all right or
all wrong; `task.overlong_penalty` deducts for length. They do not count in the gradient weights that are logged.

**Rollout correction** (`[correction]`): an outer multiplier on the loss for how far the anchor is from mu,
rho = anchor / mu (with anchor mu: pi / mu without gradient). A weight on a loss whose ratio is over mu already would
correct twice and is refused; so is a token-level correction of a loss whose ratio is a whole response's (gspo, gmpo,
vespo, topr). What is masked or rejected keeps its
place in every denominator (verl's rejection removes it).

{corrections}
"""

PRESETS_NOTE = """## Presets

`preset = "controlled"`, the default, touches nothing outside the loss. The others set what the method was published
with and fix all of the loss's parameters; `drpo-bench run` says what they do not reproduce. In all of them {scale}.
Reference and entropy terms, rollout correction, dynamic sampling and overlong penalty are off where the table does not
name them. Methods that recompute the old logprobs have anchor old, the trainer at the sampling weights; with a lag,
what verl and AReaL recompute would be prox.
"""


def page() -> Iterator[str]:
    """The lines of docs/losses.md."""
    docs = [describe(loss_id) for loss_id in LOSSES]
    yield INTRODUCTION
    yield "| id | gradient g | parameters and defaults | scope |"
    yield "|---|---|---|---|"
    for doc in docs:
        name = f"[{doc.id}](#{doc.id})"
        yield row(name, doc.sections["Gradient"], parameter_text(doc.parameters), doc.scope)
    yield ""
    yield AXES.format(modes=modes(), corrections="\n".join(corrections()))
    yield PRESETS_NOTE.format(scale=SCALE)
    yield "| loss | preset | source | sets | does not reproduce |"
    yield "|---|---|---|---|---|"
    for doc in docs:
        for name, preset in doc.presets.items():
            shown = {key: value for key, value in preset.fields.items() if WITHOUT.get(key) != value}
            settings = [f"{key} {value}" for key, value in (preset.parameters | shown).items() if value is not None]
            yield row(doc.id, name, preset.source, ", ".join(settings), "; ".join(preset.missing))
    yield "\n## Every loss\n"
    for doc in docs:
        yield from section(doc)
    yield from elsewhere()


def row(*cells: str) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def modes() -> str:
    """The list of aggregation modes, which the function that computes them documents."""
    lines = (token_weights.__doc__ or "").splitlines()
    return "\n".join(line.strip() for line in lines if line.strip().startswith("- `"))


def corrections() -> Iterator[str]:
    """The table of corrections, from their config classes."""
    yield "| id | what | parameters and defaults |"
    yield "|---|---|---|"
    for config in get_args(get_args(CorrectionConfig)[0]):
        assert issubclass(config, CorrectionBase)
        fields = {name: field for name, field in config.model_fields.items() if name != "id"}
        values = {name: "required" if field.is_required() else field.default for name, field in fields.items()}
        summary = (config.__doc__ or "").splitlines()[0]
        yield row(f"`{config.model_fields['id'].default}`", summary, parameter_text(values))


def section(doc: LossDoc) -> Iterator[str]:
    """One loss."""
    yield f"### {doc.id}\n\n{doc.summary}\n"
    for name in SECTIONS:
        yield f"- **{name}**: {doc.sections[name]}"
    skipped = "has no gradient" if doc.zero_advantage_zero_gradient else "has a gradient"
    yield f"- **Scope**: {doc.scope}; reads {doc.reads}; a token with A = 0 {skipped}."
    for name, description in doc.descriptions.items():
        yield f"- `{name}` = {doc.parameters[name]}: {description}"
    yield ""


def elsewhere() -> Iterator[str]:
    """Which of the losses other systems have, and under which name."""
    yield "## Elsewhere\n"
    yield "What each system calls the loss; a blank means that it does not have it.\n"
    yield row("id", *SYSTEMS)
    yield "|---|" + "---|" * len(SYSTEMS)
    for loss_id in LOSSES:
        yield row(loss_id, *ELSEWHERE.get(loss_id, ("",) * len(SYSTEMS)))
    counts = [sum(bool(names[i]) for names in ELSEWHERE.values()) for i in range(len(SYSTEMS))]
    yield row(f"{len(LOSSES)} here", *(str(count) for count in counts))


def main() -> None:
    """Write the page to the path given."""
    Path(sys.argv[1]).write_text("\n".join(page()).rstrip() + "\n")


if __name__ == "__main__":
    main()
