"""The stability panel: metrics by settings, one line a loss with the range over its seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from drpo_bench.analysis.layout import (
    BANDS_UP_TO,
    GAP,
    Styles,
    cell_styles,
    draw_band,
    drawing,
    first_panels,
    line_handles,
    new_page,
    wrap_label,
)
from drpo_bench.analysis.tables import STABILITY_METRICS

# Axis label and whether the axis is logarithmic.
AXES: dict[str, tuple[str, bool]] = {
    "mismatch/k3": ("mismatch k3", True),
    "offpolicy/tv_mean": ("mean |π - μ|", False),
    "offpolicy/ratio_max": ("max π / μ", True),
    "policy/entropy": ("entropy", False),
    "optim/grad_norm": ("gradient norm", True),
    "response/length_mean": ("response length", False),
}
SETTINGS_A_PAGE = 6
PANEL_WIDTHS = {1: 2.3, 2: 2.9, 3: 2.1}  # inches, by number of settings; else 1.55
YLABEL = 0.48  # inches from an axis to its label


def stability_panel(table: pd.DataFrame, note: str = "") -> Figure:
    """Draw `tables.stability_table`: a row a metric, a column a setting; of a single setting, three in a row.

    Metrics that no run has get no row. At most SETTINGS_A_PAGE settings can be read.
    """
    settings = list(dict.fromkeys(table["setting_label"]))
    metrics = [metric for metric in STABILITY_METRICS if (table["metric"] == metric).any()]
    single = len(settings) == 1
    columns = min(3, len(metrics)) if single else len(settings)
    rows = -(-len(metrics) // columns) if single else len(metrics)
    styles = cell_styles(table)
    panel = (PANEL_WIDTHS.get(len(settings), 1.55), 1.5 if single else 1.05)
    titles = [wrap_label(setting, panel[0]) for setting in settings]
    with drawing():
        fig, axes = new_page(
            (rows, columns),
            panel,
            line_handles(styles),
            note=note,
            title_lines=max(1 + title.count("\n") for title in titles),
            labels=("rollout batch", ""),
            between=0.12 if single else 0.0,
            beside=YLABEL + 0.22 if single else GAP,
            sharex=True,
            sharey=False if single else "row",
        )
        for index, metric in enumerate(metrics):
            own = table[table["metric"] == metric]
            cells = [axes.flat[index]] if single else list(axes[index])
            for ax, setting in zip(cells, settings, strict=True):
                _draw_panel(ax, own[own["setting_label"] == setting], styles)
            _set_scale(cells[0], own, AXES[metric][1])
            cells[0].set_ylabel(AXES[metric][0])
            cells[0].yaxis.set_label_coords(-YLABEL / panel[0], 0.5)
        for ax, title in zip(axes[0][columns // 2 :] if single else axes[0], titles, strict=False):
            ax.set_title(title)
        first_panels(axes, len(metrics) if single else axes.size)
    return fig


def _draw_panel(ax: Axes, panel: pd.DataFrame, styles: Styles) -> None:
    if panel.empty:
        ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", color="#777777", fontsize=8)
    for (loss, params), line in panel.groupby(["loss", "loss_params"], sort=False):
        style = styles[str(loss), str(params)][1]
        x, y = line["step"].to_numpy(float), line["median"].to_numpy(float)
        if line["n"].max() > 1:
            draw_band(
                ax,
                x,
                line["low"].to_numpy(float),
                line["high"].to_numpy(float),
                style.color,
                fill=0.04 if len(styles) <= BANDS_UP_TO else 0,
            )
        every = max(1, len(line) // 5)
        ax.plot(
            x,
            y,
            color=style.color,
            linestyle=style.dashes,
            marker=style.marker,
            markersize=3,
            markevery=every,
        )
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def _set_scale(ax: Axes, drawn: pd.DataFrame, logarithmic: bool) -> None:
    """A linear axis from 0, or a logarithmic one; where a value is exactly 0, that one lies at its bottom."""
    values = drawn[["median", "low", "high"]].to_numpy(float)
    positive = values[values > 0]
    if not logarithmic or not len(positive):
        ax.set_ylim(bottom=0, top=None if len(positive) else 1)
        ax.yaxis.set_major_locator(MaxNLocator(4))
    elif (values <= 0).any():
        smallest = 10.0 ** np.floor(np.log10(positive.min()))
        ax.set_yscale("symlog", linthresh=smallest, linscale=0.4)
        ax.set_ylim(bottom=0)
    else:
        ax.set_yscale("log")
    ax.minorticks_off()
