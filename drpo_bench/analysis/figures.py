"""Figures of accuracy, each a pure function from the table it draws: learning curves and final scores."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from drpo_bench.analysis.layout import (
    BANDS_UP_TO,
    Styles,
    cell_styles,
    draw_band,
    drawing,
    first_panels,
    line_handles,
    new_page,
    wrap_label,
)
from drpo_bench.analysis.style import TIMES, LossStyle

CROSS: dict[str, Any] = {"marker": "X", "markersize": 8, "markeredgecolor": "white", "markeredgewidth": 0.8}
PANELS = {1: (4.6, 2.7), 2: (3.1, 2.4), 3: (2.08, 1.8)}  # inches, by number of columns
BARS_A_ROW = 40  # more of them cannot be told apart at the width of a page
DASHED: dict[str, Any] = {"color": "black", "linewidth": 1.2, "dashes": (4, 2)}


def learning_curves(table: pd.DataFrame, note: str = "") -> Figure:
    """Accuracy by rollout batch of `tables.curve_table`: a panel a setting, a line and a band a loss."""
    settings = list(dict.fromkeys(table["setting_label"]))
    columns = 2 if len(settings) == 4 else min(3, len(settings))
    rows = -(-len(settings) // columns)
    titles = [wrap_label(setting, PANELS[columns][0]) for setting in settings]
    styles = cell_styles(table)
    handles = line_handles(styles)
    if table["collapses"].any():
        handles.append(Line2D([], [], linestyle="none", color="#444444", label="a run collapses", **CROSS))
    with drawing():
        fig, axes = new_page(
            (rows, columns),
            PANELS[columns],
            handles,
            note=note,
            title_lines=max(1 + title.count("\n") for title in titles),
            labels=("rollout batch", "sampled eval accuracy"),
            sharex=True,
            sharey=True,
        )
        for position, ax in enumerate(first_panels(axes, len(settings))):
            ax.set_title(titles[position])
            panel = table[table["setting_label"] == settings[position]]
            for (loss, params), line in panel.groupby(["loss", "loss_params"], sort=False):
                _draw_curve(ax, line, styles[str(loss), str(params)][1], len(styles) <= BANDS_UP_TO)
            ax.tick_params(labelbottom=position + columns >= len(settings))
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        top = max(table["accuracy"].max(), table["high"].max(), 0.05)
        axes[0, 0].set_ylim(-0.03 * top, 1.06 * top)
    return fig


def _draw_curve(ax: Axes, line: pd.DataFrame, style: LossStyle, band: bool) -> None:
    x, y = line["step"].to_numpy(float), line["accuracy"].to_numpy(float)
    if band and line["low"].notna().any():
        draw_band(ax, x, line["low"].to_numpy(float), line["high"].to_numpy(float), style.color, fill=0.08)
    every = max(1, len(line) // 8)
    ax.plot(x, y, color=style.color, linestyle=style.dashes, marker=style.marker, markevery=every)
    at = line["collapses"].to_numpy() > 0
    if at.any():
        ax.plot(x[at], y[at], linestyle="none", color=style.color, zorder=5, clip_on=False, **CROSS)


def final_bars(table: pd.DataFrame, note: str = "") -> Figure:
    """Final accuracy of `tables.final_table`: a group a setting, a bar a loss, a dot a seed, step 0 dashed."""
    settings = list(dict.fromkeys(table["setting_label"]))
    styles = cell_styles(table)
    cells = list(styles)
    rows = -(-len(settings) // max(1, min(6, BARS_A_ROW // len(cells))))
    groups = -(-len(settings) // rows)
    width = 4.6 if len(settings) == 1 else 6.4
    names = {setting: wrap_label(setting, width / groups, size=8) for setting in settings}
    lines = max(1 + name.count("\n") for name in names.values())
    handles: list[Any] = [Patch(facecolor=style.color, label=label) for label, style in styles.values()]
    handles.append(Line2D([], [], label="before training", **DASHED))
    if table["collapsed"].any():
        handles.append(Line2D([], [], linestyle="none", color="#444444", label="k/n runs collapsed", **CROSS))
    with drawing():
        fig, axes = new_page(
            (rows, 1),
            (width, 2.2),
            handles,
            note=note,
            title_lines=0,
            tick_lines=lines,
            labels=("", "final sampled accuracy"),
            between=0.17 * lines,
            sharey=True,
        )
        inches = 0.8 * width / groups / len(cells)
        for row, ax in enumerate(axes[:, 0]):
            own = settings[row * groups : (row + 1) * groups]
            for group, setting in enumerate(own):
                _draw_group(ax, group, table[table["setting_label"] == setting], styles, cells, inches)
            ax.set_xticks(range(len(own)), [names[setting] for setting in own])
            ax.set_xlim(-0.5, groups - 0.5)
            ax.grid(visible=False, axis="x")
            ax.tick_params(axis="x", length=0)
        finals = [float(value) for text in table["finals"] for value in text.split()]
        top = max(*finals, table["final_high"].max(), table["initial"].max(), 0.05)
        axes[0, 0].set_ylim(0, (1.2 if table["collapsed"].any() else 1.05) * top)
    return fig


def _draw_group(
    ax: Axes, group: int, bars: pd.DataFrame, styles: Styles, cells: list[tuple[str, str]], inches: float
) -> None:
    """The bars of one setting, each `inches` wide, and the accuracy before training across them."""
    width = 0.8 / len(cells)
    for bar in bars.to_dict("records"):
        cell = (bar["loss"], bar["loss_params"])
        _draw_bar(
            ax, bar, group + (cells.index(cell) - (len(cells) - 1) / 2) * width, width, styles[cell][1], inches < 0.19
        )
    initial, ends = [bars["initial"].mean()] * 2, [group - 0.44, group + 0.44]
    ax.plot(ends, initial, color="white", linewidth=2.4, alpha=0.8)
    ax.plot(ends, initial, **DASHED)


def _draw_bar(ax: Axes, bar: dict[Any, Any], x: float, width: float, style: LossStyle, narrow: bool) -> None:
    """One bar with its interval and seeds; above it how many collapsed, or that no run has a result."""
    if bar["n"] == 0:
        ax.text(x, 0, " no result", rotation=90, ha="center", va="bottom", color=style.color, fontsize=7)
        return
    ax.bar(x, bar["final"], width * 0.92, color=style.color)
    seeds = [float(value) for value in bar["finals"].split()]
    top = max(seeds)
    if bar["n"] > 1:
        top = max(top, bar["final_high"])
        for color, line in (("white", 3.0), ("black", 1.3)):
            ax.vlines(x, bar["final_low"], bar["final_high"], color=color, linewidth=line, zorder=4)
        dots: dict[str, Any] = {"markersize": 2.8, "color": "white", "markeredgecolor": "black"}
        ax.plot([x] * len(seeds), seeds, "o", markeredgewidth=0.6, clip_on=False, zorder=5, **dots)
    if bar["collapsed"]:
        count = f"{TIMES}{' ' if narrow else chr(10)}{bar['collapsed']}/{bar['n']}"
        place: dict[str, Any] = {
            "textcoords": "offset points",
            "ha": "center",
            "va": "bottom",
            "rotation": 90 if narrow else 0,
        }
        ax.annotate(count, (x, top), (0, 2.5), fontsize=7, linespacing=0.85, color="#444444", **place)
