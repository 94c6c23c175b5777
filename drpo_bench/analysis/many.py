"""Figures of sweeps with more losses than one panel can tell apart: a panel, or a row, for each loss."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from drpo_bench.analysis.figures import CROSS, DASHED
from drpo_bench.analysis.layout import cell_styles, draw_band, drawing, first_panels, new_page, wrap_label
from drpo_bench.analysis.stability import AXES
from drpo_bench.analysis.style import TIMES, LossStyle
from drpo_bench.analysis.tables import STABILITY_METRICS

GREY: dict[str, Any] = {"color": "#C9C9C9", "linewidth": 0.7, "zorder": 1}
COLUMNS = 5
ROW = 0.17  # inches of a loss's row
LABEL_INCH = 0.068  # inches of a letter of a row's name


def curves_by_loss(table: pd.DataFrame, note: str = "") -> Figure:
    """Accuracy by rollout batch of one setting of `tables.curve_table`: a panel a loss, the others grey behind it."""
    styles = cell_styles(table)
    rows = -(-len(styles) // COLUMNS)
    handles: list[Any] = [Line2D([], [], label="the other losses", **GREY)]
    if table["collapses"].any():
        handles.append(Line2D([], [], linestyle="none", color="#444444", label="a run collapses", **CROSS))
    titles = {key: wrap_label(label, 1.24, 8) for key, (label, _) in styles.items()}
    tallest = max(1 + title.count("\n") for title in titles.values())
    lines = dict(iter(table.groupby(["loss", "loss_params"], sort=False)))
    with drawing():
        fig, axes = new_page(
            (rows, COLUMNS),
            (1.24, 0.95),
            handles,
            note=f"{table['setting_label'].iloc[0]}; {note}",
            title_lines=tallest,
            labels=("rollout batch", "sampled eval accuracy"),
            between=0.04 + 0.16 * tallest,
            beside=0.1,
            sharex=True,
            sharey=True,
        )
        for position, (ax, key) in enumerate(zip(first_panels(axes, len(styles)), styles, strict=True)):
            ax.set_title(titles[key], fontsize=8)
            for other in lines.values():
                ax.plot(other["step"], other["accuracy"], **GREY)
            _draw_own(ax, lines[key], styles[key][1])
            ax.tick_params(labelbottom=position + COLUMNS >= len(styles))
            ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes[0, 0].set_ylim(0, 1.06 * max(table["accuracy"].max(), table["high"].max(), 0.05))
    return fig


def _draw_own(ax: Axes, line: pd.DataFrame, style: LossStyle) -> None:
    """The panel's own loss, with its interval and its collapses."""
    x, y = line["step"].to_numpy(float), line["accuracy"].to_numpy(float)
    if line["low"].notna().any():
        draw_band(ax, x, line["low"].to_numpy(float), line["high"].to_numpy(float), style.color, fill=0.15)
    ax.plot(x, y, color=style.color, linewidth=1.8)
    at = line["collapses"].to_numpy() > 0
    if at.any():
        ax.plot(x[at], y[at], linestyle="none", color=style.color, zorder=5, clip_on=False, **CROSS)


def final_rows(table: pd.DataFrame, note: str = "") -> Figure:
    """Final accuracy of `tables.final_table`: a row a loss, best first, a panel a setting; step 0 dashed."""
    settings, styles = list(dict.fromkeys(table["setting_label"])), cell_styles(table)
    mean = table.groupby(["loss", "loss_params"])["final"].mean()
    order = sorted(styles, key=lambda key: (-float(mean[key]) if mean[key] == mean[key] else 1.0, key))
    handles: list[Any] = [Line2D([], [], label="before training", **DASHED)]
    if table["collapsed"].any():
        handles.append(Line2D([], [], linestyle="none", color="#444444", label="runs collapsed, of n", **CROSS))
    finals = [float(value) for text in table["finals"] for value in text.split()]
    right = max([0.05, *finals, *table["final_high"].dropna(), *table["initial"].dropna()])
    with drawing():
        fig, axes = _rows_page(order, styles, settings, handles, note, "final sampled accuracy")
        for ax, setting in zip(axes, settings, strict=True):
            own = table[table["setting_label"] == setting].set_index(["loss", "loss_params"])
            for place, key in enumerate(order):
                if key in own.index:
                    _draw_row(ax, place, own.loc[key], styles[key][1])
            ax.plot([own["initial"].mean()] * 2, [-0.6, len(order) - 0.4], **DASHED)
            ax.set_xlim(0, 1.12 * right)
    return fig


def _draw_row(ax: Axes, place: int, bar: Any, style: LossStyle) -> None:
    """One loss: its bar, interval and seeds; how many of its runs collapsed, or that none has a result."""
    if not bar["n"]:
        ax.text(0, place, " no result", va="center", color=style.color, fontsize=7)
        return
    seeds = [float(value) for value in bar["finals"].split()]
    ax.barh(place, bar["final"], 0.72, color=style.color)
    if bar["n"] > 1:
        ax.hlines(place, bar["final_low"], bar["final_high"], color="black", linewidth=1.3, zorder=4)
        ax.plot(seeds, [place] * len(seeds), "o", markersize=2.5, color="white", markeredgecolor="black", zorder=5)
    if bar["collapsed"]:
        end = max([*seeds, bar["final_high"]] if bar["n"] > 1 else seeds)
        count = f"{TIMES} {bar['collapsed']}/{bar['n']}"
        ax.annotate(count, (end, place), (3, 0), textcoords="offset points", va="center", fontsize=7)


def stability_rows(table: pd.DataFrame, note: str = "") -> Figure:
    """One setting of `tables.stability_table`: a row a loss, a panel a metric; range over the run, dot at its end."""
    styles = cell_styles(table)
    metrics = [metric for metric in STABILITY_METRICS if (table["metric"] == metric).any()]
    handles = [
        Line2D([], [], color="#444444", linewidth=2, alpha=0.4, label="from the run's smallest to its largest value"),
        Line2D([], [], color="#444444", marker="o", linestyle="none", label="last evaluation"),
    ]
    with drawing():
        text = f"{table['setting_label'].iloc[0]}; {note}"
        fig, axes = _rows_page(list(styles), styles, [AXES[metric][0] for metric in metrics], handles, text, "")
        for ax, metric in zip(axes, metrics, strict=True):
            logarithmic = AXES[metric][1]
            own = table[table["metric"] == metric]
            for place, key in enumerate(styles):
                line = own[(own["loss"] == key[0]) & (own["loss_params"] == key[1])]
                values = line["median"].dropna()
                if len(values):
                    color = styles[key][1].color
                    ax.hlines(place, values.min(), values.max(), color=color, linewidth=2.4, alpha=0.4)
                    ax.plot(values.iloc[-1], place, "o", color=color, markersize=3.6)
            if logarithmic and (own["median"].dropna() > 0).all():
                ax.set_xscale("log")
            else:
                ax.xaxis.set_major_locator(MaxNLocator(3))
            ax.minorticks_off()
            ax.tick_params(axis="x", labelsize=7)
    return fig


def _rows_page(
    order: list[tuple[str, str]], styles: Any, titles: list[str], handles: list[Any], note: str, xlabel: str
) -> tuple[Figure, Any]:
    """A page with a row a loss, whose names stand on the left, and a panel a title side by side."""
    panels = len(titles)
    names = [styles[key][0] for key in order]
    room = LABEL_INCH * max(len(name) for name in names)
    width = max(0.95, (7.0 - room) / panels) if panels > 1 else 4.2
    wrapped = [wrap_label(title, width, 8) for title in titles]
    fig, axes = new_page(
        (1, panels),
        (width, ROW * len(order) + 0.1),
        handles,
        note=note,
        title_lines=max(1 + title.count("\n") for title in wrapped),
        labels=(xlabel, ""),
        left=room + 0.1,
        beside=0.12,
        sharey=True,
    )
    first = axes[0, 0]
    first.set_yticks(range(len(order)), names, fontsize=8)
    first.set_ylim(len(order) - 0.4, -0.6)
    for ax, title in zip(axes[0], wrapped, strict=True):
        ax.set_title(title, fontsize=8)
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", length=0)
    return fig, axes[0]
