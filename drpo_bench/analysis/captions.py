"""What stands beside every figure: seeds, intervals, problems of the evaluation, and what is emulated."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from drpo_bench.analysis.cells import CELL, done, seeds_text
from drpo_bench.analysis.layout import BANDS_UP_TO, LINES_A_PANEL
from drpo_bench.analysis.runs import KEY
from drpo_bench.analysis.style import TIMES
from drpo_bench.analysis.tables import STABILITY_METRICS, rows_of


def sample_text(summary: pd.DataFrame) -> str:
    """Which seeds the numbers stand on: `illustration, n = 1 (seed 0)` or `seeds 0-4`."""
    ended = done(summary)
    sizes = ended.groupby(CELL).size()
    seeds = seeds_text(ended["seed"])
    if single(summary):
        return f"illustration, n = 1 (seed {seeds})"
    if sizes.min() == sizes.max() == ended["seed"].nunique():
        return f"seeds {seeds}"
    return f"seeds {seeds}, n = {sizes.min()} to {sizes.max()} (see the table)"


def single(summary: pd.DataFrame) -> bool:
    """Whether no cell has a second seed, so that there is no interval at all."""
    return bool(done(summary).groupby(CELL).size().max() == 1)


def emulation_text(summary: pd.DataFrame) -> str:
    """`emulated: bf16, fp8_rollout (trainer and rollout)`: rounded onto a format's grid, not computed in it."""
    words = {"rollout+trainer": "trainer and rollout", "rollout": "rollout only", "trainer": "trainer only"}
    runs = summary[~summary["emulated"].isin(["none", "unknown"])]  # of unknown ones the notes tell
    parts = [
        f"{', '.join(part['precision'].unique())} ({words[str(sides)]})"
        for sides, part in runs.groupby("emulated", sort=False)
    ]
    return "emulated: " + "; ".join(parts) if parts else "nothing is emulated"


def problem_counts(summary: pd.DataFrame) -> str:
    """`512`: held-out problems of an evaluation."""
    counts = sorted({int(count) for count in summary["eval_problems"].dropna()})
    return " or ".join(map(str, counts)) or "an unknown number of"


def problems_text(summary: pd.DataFrame) -> str:
    """The held-out problems, with the sampling error of one run's evaluation."""
    error = 0.98 / float(summary["eval_problems"].min()) ** 0.5  # 1.96 sqrt(p (1 - p) / n) at p = 1/2
    return f"{problem_counts(summary)} fixed held-out problems (95% sampling error of one: at most ±{error:.2f})"


def count_lines(summary: pd.DataFrame) -> int:
    """Losses with their parameters: lines of a panel, or, where they are too many, panels and rows."""
    return len(summary.drop_duplicates(["loss", "loss_params"]))


def figure_notes(summary: pd.DataFrame) -> dict[str, str]:
    """The small print on top of each figure, by its name."""
    lines = count_lines(summary)
    interval = "95% bootstrap interval over seeds"
    bands = lines <= BANDS_UP_TO or lines > LINES_A_PANEL
    curves = f"mean, band: {interval}" if bands else f"mean (of over {BANDS_UP_TO} lines no bands)"
    bars, ranges = f"mean, line: {interval}, dots: seeds", "median, band: range over seeds"
    if lines > LINES_A_PANEL:
        ranges = "median over seeds"
    if single(summary):
        curves = bars = ranges = "no interval"
    sample, problems = sample_text(summary), f"{problem_counts(summary)} eval problems"
    parts = {
        "learning_curves": (sample, curves, problems),
        "final_accuracy": (sample, bars, "mean of the last 20% of evaluations", problems),
        "stability": (sample, ranges, "means (max π/μ: the largest) over the batches since the last evaluation"),
    }
    return {name: "; ".join([*texts, emulation_text(summary)]) for name, texts in parts.items()}


def captions(summary: pd.DataFrame, curves: pd.DataFrame) -> dict[str, str]:
    """The captions of the figures, by name."""
    one, sample, problems = single(summary), sample_text(summary), problems_text(summary)
    interval = "95% percentile bootstrap interval over seeds"
    last = f"Unfinished runs are left out. {emulation_text(summary).capitalize()}."
    curve = "A single seed has no interval." if one else f"Line: mean; band: {interval}."
    bars = "A single seed has no interval." if one else f"Bar: mean; line: {interval}; dots: seeds."
    ranges = "A line is a single seed." if one else "Line: median; band: range over seeds, which is no interval."
    if count_lines(summary) > LINES_A_PANEL:
        curve = f"A panel a loss, the others grey. {curve}"
        bars = f"Best first. {bars}"
        ranges = "A row a loss: from the smallest to the largest value over the run, dot at its end"
        ranges += "." if one else "; of the median over seeds."
    return {
        "learning_curves": (
            f"**Learning curves** by rollout batch ({sample}): accuracy of one sampled answer to each of {problems}. "
            f"{curve} A cross marks the evaluation at which a run was found to have collapsed; after a loss or "
            f"gradient that is not finite, evaluations count as 0. {last}"
        ),
        "final_accuracy": (
            f"**Final accuracy** ({sample}): mean of the last 20% of a run's evaluations on {problems}. {bars} "
            f"Dashed: accuracy before training. {TIMES} k/n: k of n runs collapsed. {last}"
        ),
        "stability": (
            f"**Stability** by rollout batch ({sample}): means over the batches since the last evaluation (max π/μ: "
            f"the largest). {ranges} π is the trainer after the updates, μ the engine that sampled; mismatch is "
            f"between the two at the same weights. On a logarithmic axis an exact 0 lies at the bottom. "
            f"{' '.join([*metric_gaps(summary, curves), last])}"
        ),
    }


def metric_gaps(summary: pd.DataFrame, curves: pd.DataFrame) -> Iterator[str]:
    """Metrics that some runs lack, and values that are not finite and so are not drawn."""
    ended = done(summary)
    own = rows_of(ended, curves)
    for metric in STABILITY_METRICS:
        have = own[own[metric].notna()].groupby(list(KEY)).ngroups
        if have < len(ended):
            yield f"{metric} is recorded by {have} of {len(ended)} runs."
        infinite = int(np.isinf(own[metric]).sum())
        if infinite:
            yield f"{metric} is infinite at {infinite} points, which are not drawn."
