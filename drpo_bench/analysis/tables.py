"""The tables that figures and report are drawn from: final scores, learning curves, stability metrics."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import Any

import numpy as np
import pandas as pd

from drpo_bench.analysis.cells import CELL, LABELS, done, seeds_text
from drpo_bench.analysis.runs import ENDS_THE_RUN, KEY
from drpo_bench.analysis.stats import bootstrap_interval, clopper_pearson, estimate, iqm, mean
from drpo_bench.records import DONE

NAMES = [*CELL, *LABELS]
STABILITY_METRICS = (
    "mismatch/k3",
    "offpolicy/tv_mean",
    "offpolicy/ratio_max",
    "policy/entropy",
    "optim/grad_norm",
    "response/length_mean",
)


def final_table(summary: pd.DataFrame) -> pd.DataFrame:
    """A row a cell: the final accuracy over its seeds, how many collapsed, and what is unfinished."""
    rows = []
    for cell, runs in summary.groupby(NAMES, sort=False):
        ended = done(runs)
        finals = ended["final_accuracy"].to_numpy()
        score, gain = estimate(finals), estimate(ended["gain"].dropna().to_numpy())
        collapsed = ended[ended["state"] == "collapsed"]
        low, high = clopper_pearson(len(collapsed), len(ended))
        steps = [f"{s}{'*' if r in ENDS_THE_RUN else ''}" for s, r in _collapses(collapsed)]
        others = runs.loc[~runs["state"].isin(DONE), "state"].value_counts().sort_index()
        rows.append(
            dict(zip(NAMES, cell, strict=True))
            | {
                "n": score.n,
                "seeds": seeds_text(ended["seed"]),
                "initial": ended["initial_accuracy"].mean() if len(ended) else runs["initial_accuracy"].mean(),
                "final": score.value,
                "final_low": score.low,
                "final_high": score.high,
                "final_iqm": float(iqm(finals)) if len(ended) else nan,
                "final_worst": finals.min() if len(ended) else nan,
                "gain": gain.value,
                "gain_low": gain.low,
                "gain_high": gain.high,
                "collapsed": len(collapsed),
                "collapsed_low": low,
                "collapsed_high": high,
                "collapse_steps": ", ".join(steps),
                "unfinished": ", ".join(f"{count} {state}" for state, count in others.items()),
                "mismatch_k3": runs["mismatch_k3"].median(),
                "emulated": " / ".join(sorted(set(runs["emulated"]))),
                "finals": " ".join(f"{value:.6g}" for value in finals),
            }
        )
    return pd.DataFrame(rows)


def _collapses(collapsed: pd.DataFrame) -> list[tuple[int, str]]:
    """(step, reason) of the runs that collapsed, earliest first."""
    known = collapsed.dropna(subset="collapse_step")
    return sorted((int(s), r) for s, r in zip(known["collapse_step"], known["reason"], strict=True))


def curve_table(summary: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """A row a cell and evaluation: mean accuracy over its finished seeds, and how many collapsed there.

    Only steps at which every one of them was evaluated: a mean over fewer seeds is another quantity.
    """
    rows = []
    for cell, runs in done(summary).groupby(NAMES, sort=False):
        own = rows_of(runs, curves)
        values = own.pivot(index=list(KEY), columns="step", values="eval/accuracy")  # [n, steps]
        values = values.dropna(axis="columns")
        if values.empty:
            continue
        array = values.to_numpy()
        low, high = bootstrap_interval(array)
        steps = values.columns.to_numpy()
        table = pd.DataFrame({"step": steps, "n": len(array), "accuracy": mean(array), "low": low, "high": high})
        collapses = [step for step, _ in _collapses(runs[runs["state"] == "collapsed"])]
        marked = [min((int(s) for s in steps if s >= step), default=int(steps[-1])) for step in collapses]
        table["collapses"] = [marked.count(int(step)) for step in steps]
        rows.append(_named(table, cell))
    columns = [*NAMES, "step", "n", "accuracy", "low", "high", "collapses"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def stability_table(summary: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """A row a cell, metric and evaluation: median and range over the finished seeds that have a finite value.

    The range is no interval: it is there to show the one seed that runs away.
    """
    runs = done(summary)[[*KEY, *NAMES]]
    cells = runs[NAMES].drop_duplicates()
    runs = runs.merge(cells.assign(place=range(len(cells))), on=NAMES)
    names = [*NAMES, "place", "step"]
    long = curves.merge(runs, on=list(KEY)).melt(names, list(STABILITY_METRICS), "metric", "value")
    long = long[np.isfinite(long["value"])].assign(row=long["metric"].map(STABILITY_METRICS.index))
    values = long.groupby([*names, "metric", "row"], sort=False)["value"]
    table = values.agg(n="count", median="median", low="min", high="max").reset_index()
    table = table.sort_values(["place", "row", "step"], ignore_index=True)
    drawn: pd.DataFrame = table[[*NAMES, "metric", "step", "n", "median", "low", "high"]]
    return drawn


def rows_of(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The rows of the curves that belong to the runs."""
    return curves.merge(runs[list(KEY)], on=list(KEY))


def _named(table: pd.DataFrame, cell: Sequence[Any]) -> pd.DataFrame:
    """The rows with the names of their cell."""
    for name, value in zip(NAMES, cell, strict=True):
        table[name] = value
    return table
