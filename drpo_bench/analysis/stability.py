"""The stability panel: rows of metrics over columns of settings, one line a loss, range over seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from drpo_bench.analysis.figures import _line_handle, add_legend, cell_style, cells_of, drawing, new_figure
from drpo_bench.analysis.style import LossStyle
from drpo_bench.analysis.tables import STABILITY_METRICS

# Axis label and whether the axis is logarithmic.
AXES: dict[str, tuple[str, bool]] = {
    "mismatch/k3": ("mismatch k3", True),
    "offpolicy/tv_mean": ("mean |π − μ|", False),
    "offpolicy/ratio_max": ("max π / μ", True),
    "policy/entropy": ("entropy", False),
    "optim/grad_norm": ("gradient norm", True),
    "response/length_mean": ("length", False),
}
SETTINGS_A_PAGE = 6


def stability_panel(table: pd.DataFrame, note: str = "") -> Figure:
    """Draw `tables.stability_table`; metrics that no run has get no row. At most SETTINGS_A_PAGE settings."""
    labels = list(dict.fromkeys(table["setting_label"]))
    metrics = [metric for metric in STABILITY_METRICS if (table["metric"] == metric).any()]
    width = {1: 4.8, 2: 6.4, 3: 7.6}.get(len(labels), 1.0 + 1.75 * len(labels))
    with drawing():
        fig = new_figure(width, 1.0 + 1.25 * len(metrics), note)
        axes = fig.subplots(len(metrics), len(labels), sharex="col", sharey="row", squeeze=False)
        for row, metric in enumerate(metrics):
            own = table[table["metric"] == metric]
            label, logarithmic = AXES[metric]
            for column, setting in enumerate(labels):
                ax = axes[row, column]
                panel = own[own["setting_label"] == setting]
                for (loss, variant), line in panel.groupby(["loss", "variant"], sort=False):
                    _draw_metric(ax, line, cell_style(loss, variant))
                if panel.empty:
                    ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", color="#777777", fontsize=8)
                if row == 0:
                    ax.set_title(setting.replace(", ", "\n") if len(labels) > 3 else setting)
                ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if logarithmic:
                _log_axis(axes[row, 0], own)
            else:
                axes[row, 0].set_ylim(bottom=0)
                axes[row, 0].yaxis.set_major_locator(MaxNLocator(4))
            axes[row, 0].set_ylabel(label)
        fig.align_ylabels()
        fig.supxlabel("rollout batch", fontsize=9)
        add_legend(fig, [_line_handle(label, style) for label, style in cells_of(table)])
    return fig


def _draw_metric(ax: Axes, line: pd.DataFrame, style: LossStyle) -> None:
    x, y = line["step"].to_numpy(float), line["median"].to_numpy(float)
    every = max(1, len(line) // 5)
    ax.plot(x, y, color=style.color, linestyle=style.dashes, marker=style.marker, markersize=3, markevery=every)
    if line["n"].max() > 1:
        low, high = line["low"].to_numpy(float), line["high"].to_numpy(float)
        ax.fill_between(x, low, high, color=style.color, alpha=0.12, linewidth=0)


def _log_axis(ax: Axes, drawn: pd.DataFrame) -> None:
    """A logarithmic axis; where a value is exactly 0 (no mismatch in fp32, no gradient) 0 lies at its bottom."""
    values = drawn[["median", "low", "high"]].to_numpy(float)
    positive = values[values > 0]
    if not len(positive):
        ax.set_ylim(bottom=0)
    elif (values <= 0).any():
        smallest = 10.0 ** np.floor(np.log10(positive.min()))
        ax.set_yscale("symlog", linthresh=smallest, linscale=0.4)
        ax.set_ylim(bottom=0)
    else:
        ax.set_yscale("log")
