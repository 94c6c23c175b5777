"""Which runs may be averaged (the same but for the seed), and what such a cell is called and how it is sorted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from drpo_bench.analysis.style import MODELS, PRECISIONS, loss_order, loss_style

CELL = ["setting", "loss", "loss_params"]
LABELS = ["setting_label", "loss_label", "variant"]
# Part of a setting's name where settings differ in it: column, its words, its field in `fields`.
PARTS = (
    ("model", "{}", "model.name"),
    ("architecture", "{}", "model.architecture"),
    ("task", "{}", "task.name"),
    ("precision", "{}", "precision"),
    ("lag", "lag {}", "rollout.lag"),
    ("lr", "lr {:g}", "train.lr"),
    ("updates", "{} updates", "train.updates_per_batch"),
    ("steps", "{} steps", "train.steps"),
)
ALWAYS = ("precision", "lag")


def current(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows of the newest numerics version: numbers of another one are not comparable."""
    newest: pd.DataFrame = summary[summary["numerics_version"] == summary["numerics_version"].max()]
    return newest.reset_index(drop=True)


def done(summary: pd.DataFrame) -> pd.DataFrame:
    """The runs with a result, which alone have a final accuracy; the others never enter a mean."""
    return summary[summary["final_accuracy"].notna()]


def label_runs(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows sorted by setting, loss and seed, with `setting_label`, `loss_label` and `variant`.

    `variant` counts a loss's parameter sets from its default ones (or the middle ones, if those are absent).
    Labels hold what tells the cells of this table apart, and of a loss what is not at its default.
    """
    table = summary.assign(setting_label=summary["setting"].map(setting_labels(summary)))
    params, usual = {}, {}
    for loss, runs in summary.groupby("loss"):
        params[loss] = sorted(set(runs["loss_params"]), key=_by_number)
        default = runs.loc[~runs["fields"].str.contains(r"\bloss\."), "loss_params"]
        usual[loss] = params[loss].index(default.iloc[0]) if len(default) else (len(params[loss]) - 1) // 2
    pairs = list(zip(table["loss"], table["loss_params"], strict=True))
    table["loss_label"] = [
        " ".join([loss_style(loss).label, *shown_params(own, params[loss], fields)])
        for (loss, own), fields in zip(pairs, table["fields"], strict=True)
    ]
    table["variant"] = [params[loss].index(own) - usual[loss] for loss, own in pairs]
    rows = table.to_dict("records")
    order = sorted(range(len(table)), key=lambda i: _order(rows[i]))
    return table.iloc[order].reset_index(drop=True)


def shown_params(own: str, every: Sequence[str], fields: str) -> list[str]:
    """Of a loss's parameters `own`: those in which its sets in this table differ, and those not at their default."""
    common = set.intersection(*(set(params.split()) for params in every))
    changed = {token.removeprefix("loss.").partition("=")[0] for token in fields.split("; ") if token[:5] == "loss."}
    return [part for part in own.split() if part not in common or part.partition("=")[0] in changed]


def setting_labels(summary: pd.DataFrame) -> dict[str, str]:
    """A name for each setting hash, of precision, lag and whatever else differs between the settings."""
    settings = summary.drop_duplicates("setting").set_index("setting")
    varying = [p for p in PARTS if p[0] in ALWAYS or settings[p[0]].nunique(dropna=False) > 1]
    named = {field for *_, field in PARTS}
    fields = {setting: _tokens(text, named) for setting, text in settings["fields"].items()}
    common = set.intersection(*fields.values())
    labels = {}
    for setting, row in settings.iterrows():
        parts = [words.format(row[column]) for column, words, _ in varying]
        parts += sorted(token.replace("=", " ") for token in fields[setting] - common)
        labels[str(setting)] = ", ".join(parts)
    names = list(labels.values())
    return {key: f"{name}, {key}" if names.count(name) > 1 else name for key, name in labels.items()}


def _tokens(fields: str, named: set[str]) -> set[str]:
    """The entries of `fields` that have no column of their own."""
    tokens = {token for token in fields.split("; ") if token and not token.startswith("loss.")}
    return {token for token in tokens if token.partition("=")[0] not in named}


def _order(row: Mapping[Any, Any]) -> tuple[object, ...]:
    setting = (_rank(MODELS, row["model"]), row["task"], row["lag"], _rank(PRECISIONS, row["precision"]))
    rest = (row["lr"], row["updates"], row["steps"], row["setting_label"], row["setting"])
    return (*setting, *rest, loss_order(row["loss"]), row["variant"], row["seed"], row["run_id"])


def _rank(known: Sequence[str], value: str) -> tuple[int, str]:
    return (known.index(value), "") if value in known else (len(known), value)


def _by_number(params: str) -> list[tuple[float, str]]:
    """Sort key of compact parameters: by their numbers, so that 12.5 comes after 2.5."""
    key = []
    for part in params.split():
        name, _, value = part.partition("=")
        try:
            key.append((float(value), name))
        except ValueError:
            key.append((0.0, part))
    return key


def seeds_text(seeds: pd.Series) -> str:
    """`0-4` or `0, 2, 7`."""
    numbers = sorted({int(seed) for seed in seeds})
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers))
