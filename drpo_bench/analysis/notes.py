"""What a table of means would hide: gaps, unequal seeds, mixed experiments; said in words in every report."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from drpo_bench.analysis.cells import CELL, done, seeds_text
from drpo_bench.analysis.load import Results
from drpo_bench.analysis.runs import KEY
from drpo_bench.records import DONE


def notes(results: Results, summary: pd.DataFrame) -> Iterator[str]:
    """Sentences about an experiment's data; `summary` are its labelled rows of the newest numerics version."""
    yield from lowprob_notes(summary)
    yield from results.problems
    yield from warning_notes(summary)
    older = len(results.summary) - len(summary)
    if older:
        version = summary["numerics_version"].iloc[0]
        yield f"{older} rows of numerics versions before {version} are kept in the csv files, but not shown."
    names = sorted(set(summary["experiment"]))
    if len(names) > 1:
        yield f"This folder holds runs of {len(names)} experiments: {', '.join(names)}."
    yield from common_notes(summary)
    few = done(summary).groupby(CELL).size().between(2, 4).sum()
    if few:
        yield f"{few} cells have 2 to 4 seeds: bootstrap intervals of so few are too narrow."
    for label, runs in done(summary).groupby("setting_label", sort=False):
        yield from pairing_notes(str(label), runs)
    yield from curve_notes(done(summary), results.curves)
    blank = summary.loc[summary["state"].isin(DONE) & summary["final_accuracy"].isna(), "run_id"]
    if len(blank):
        yield f"{len(blank)} runs have ended, but have no evaluations and enter no number: {', '.join(blank)}."
    if (summary["emulated"] == "unknown").any():
        yield "Some runs have no env.json: what they emulate is not known."


def lowprob_notes(summary: pd.DataFrame) -> Iterator[str]:
    """The tail of rare tokens that the warm start leaves: where the losses differ most."""
    for (task, model), runs in summary.groupby(["task", "model"], sort=False):
        shares = runs["lowprob_frac"].dropna()
        text = "not recorded"
        if len(shares):
            text = f"{shares.mean():.1%} (over runs: {shares.min():.1%} to {shares.max():.1%})"
        yield f"Share of sampled tokens with mu <= 0.01 in the first batch, {task}, {model}: {text}."


def common_notes(summary: pd.DataFrame) -> Iterator[str]:
    """What all runs share and is not a default; the settings' names leave it out."""
    fields = [set(text.split("; ")) if text else set() for text in summary["fields"].fillna("")]
    common = sorted(token for token in set.intersection(*fields) if not token.startswith("loss.")) if fields else []
    if common:
        yield f"All runs share: {', '.join(token.replace('=', ' ') for token in common)}."


def warning_notes(summary: pd.DataFrame) -> Iterator[str]:
    """What the plan warned of, once for all runs that it is true of."""
    for warning, runs in summary[summary["warnings"].fillna("") != ""].groupby("warnings", sort=False):
        yield f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} of {runs['loss_label'].iloc[0]}: {warning}."


def pairing_notes(label: str, runs: pd.DataFrame) -> Iterator[str]:
    """What breaks the pairing of the losses within one setting."""
    seeds = {loss: seeds_text(part["seed"]) for loss, part in runs.groupby("loss_label", sort=False)}
    if len(set(seeds.values())) > 1:
        each = "; ".join(f"{loss!s}: {own}" for loss, own in seeds.items())
        yield f"{label}: the losses have results of different seeds ({each}), so their means are not paired."
    starts = runs.groupby("seed")["initial_accuracy"]
    spread = (starts.max() - starts.min()).max()
    if spread > 1e-6:
        yield (
            f"{label}: losses of the same seed differ in accuracy before training (by up to {spread:.3f}): "
            "they did not start from the same weights."
        )
    lengths = runs["evaluations"]
    if lengths.nunique() > 1:
        short = ", ".join(runs.loc[lengths < lengths.max(), "run_id"])
        yield f"{label}: fewer evaluations than other runs have: {short}; a mean curve ends where its shortest ends."


def curve_notes(ended: pd.DataFrame, curves: pd.DataFrame) -> Iterator[str]:
    """Runs of summary.csv whose evaluations are not in curves.csv."""
    counts = curves.groupby(list(KEY)).size().to_dict()
    found = [counts.get(key, 0) for key in zip(ended["run_id"], ended["numerics_version"], strict=True)]
    missing = ended.loc[np.array(found) < ended["evaluations"].to_numpy(), "run_id"]
    if len(missing):
        yield f"curves.csv lacks evaluations of {len(missing)} runs: {', '.join(missing)}."
