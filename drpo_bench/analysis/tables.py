"""The tables that figures and report are drawn from: final scores, learning curves, stability metrics."""

from __future__ import annotations

from math import nan

import numpy as np
import pandas as pd

from drpo_bench.analysis.cells import CELL, LABELS, done, seeds_text
from drpo_bench.analysis.stats import bootstrap_interval, clopper_pearson, estimate, iqm, mean
from drpo_bench.records import DONE

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
    for cell, runs in summary.groupby([*CELL, *LABELS], sort=False):
        ended = done(runs)
        finals = ended["final_accuracy"].to_numpy()
        score, gain = estimate(finals), estimate(ended["gain"].dropna().to_numpy())
        collapsed = ended[ended["state"] == "collapsed"]
        low, high = clopper_pearson(len(collapsed), len(ended))
        steps = [f"{s}{'*' if r == 'non_finite' else ''}" for s, r in _collapses(collapsed)]
        others = runs.loc[~runs["state"].isin(DONE), "state"].value_counts().sort_index()
        rows.append(
            dict(zip([*CELL, *LABELS], cell, strict=True))
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
                "finals": " ".join(f"{value:.6g}" for value in finals),
            }
        )
    return pd.DataFrame(rows)


def _collapses(collapsed: pd.DataFrame) -> list[tuple[int, str]]:
    """(step, reason) of the runs that collapsed, earliest first."""
    return sorted((int(s), r) for s, r in zip(collapsed["collapse_step"], collapsed["reason"], strict=True))


def curve_table(summary: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """A row a cell and evaluation: mean accuracy over its finished seeds, and how many collapsed there.

    Only steps at which every one of them was evaluated: a mean over fewer seeds is another quantity.
    """
    rows = []
    for cell, runs in done(summary).groupby([*CELL, *LABELS], sort=False):
        values = per_run(runs, curves, "eval/accuracy").dropna(axis="columns")  # [n, steps]
        if values.empty:
            continue
        array = values.to_numpy()
        low, high = bootstrap_interval(array)
        steps = values.columns.to_numpy()
        table = pd.DataFrame({"step": steps, "n": len(array), "accuracy": mean(array), "low": low, "high": high})
        collapses = [step for step, _ in _collapses(runs[runs["state"] == "collapsed"])]
        marked = [int(steps[min(np.searchsorted(steps, step), len(steps) - 1)]) for step in collapses]
        table["collapses"] = [marked.count(int(step)) for step in steps]
        rows.append(table.assign(**dict(zip([*CELL, *LABELS], cell, strict=True))))
    columns = [*CELL, *LABELS, "step", "n", "accuracy", "low", "high", "collapses"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def stability_table(summary: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """A row a cell, metric and evaluation: median and range over the finished seeds that have a finite value.

    The range is no interval: it is there to show the one seed that runs away.
    """
    rows = []
    for cell, runs in done(summary).groupby([*CELL, *LABELS], sort=False):
        for metric in STABILITY_METRICS:
            values = per_run(runs, curves, metric).replace([np.inf, -np.inf], nan).dropna(axis="columns", how="all")
            table = pd.DataFrame(
                {
                    "metric": metric,
                    "step": values.columns.to_numpy(),
                    "n": values.count().to_numpy(),
                    "median": values.median().to_numpy(),
                    "low": values.min().to_numpy(),
                    "high": values.max().to_numpy(),
                }
            )
            if len(table):
                rows.append(table.assign(**dict(zip([*CELL, *LABELS], cell, strict=True))))
    columns = [*CELL, *LABELS, "metric", "step", "n", "median", "low", "high"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def per_run(runs: pd.DataFrame, curves: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A metric as runs x evaluation steps."""
    keys = pd.MultiIndex.from_frame(runs[["run_id", "numerics_version"]])
    own = curves[pd.MultiIndex.from_frame(curves[["run_id", "numerics_version"]]).isin(keys)]
    return own.pivot(index=["run_id", "numerics_version"], columns="step", values=metric)
