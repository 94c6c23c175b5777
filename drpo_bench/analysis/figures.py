"""Figures of an experiment, each a pure function from the table it draws: learning curves and final scores."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from drpo_bench.analysis.load import csv_text
from drpo_bench.analysis.style import DASHES, RC, LossStyle, loss_style, variant_color
from drpo_bench.records import write_text

NOTE_SIZE = 7.5
CROSS: dict[str, Any] = {"marker": "X", "markersize": 8, "markeredgecolor": "white", "markeredgewidth": 0.8}
BARS_A_ROW = 40  # more of them cannot be told apart at the width of a page


@contextmanager
def drawing() -> Iterator[None]:
    """Our rcParams for the block; matplotlib's global state is as before afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()  # no matplotlibrc of this machine has a say
        mpl.rcParams.update(RC)
        yield


def new_figure(width: float, height: float, note: str) -> Figure:
    """An empty figure (no pyplot, so nothing keeps it alive) with a small print of what it shows on top."""
    fig = Figure(figsize=(width, height))
    if note:
        text = fill(note, int(width * 72 / NOTE_SIZE * 1.9))
        fig.suptitle(text, x=0.01, ha="left", fontsize=NOTE_SIZE, color="#555555")
    return fig


def cell_style(loss: str, variant: int) -> LossStyle:
    """The loss's style; its further sets of parameters are lighter, each with another dash."""
    style = loss_style(loss)
    if variant == 0:
        return style
    names = list(DASHES)
    line = names[(names.index(style.line) + variant) % len(names)]
    return LossStyle(style.label, variant_color(style.color, variant), line, style.marker)


def cells_of(table: pd.DataFrame) -> list[tuple[str, LossStyle]]:
    """(label, style) of the losses in a table, in its order of losses."""
    unique = table.drop_duplicates(["loss", "loss_params"])
    return [(r.loss_label, cell_style(r.loss, r.variant)) for r in unique.itertuples()]


def grid_shape(table: pd.DataFrame) -> tuple[list[str], int, int]:
    """The settings' labels, rows and columns: up to three in a row, four as two by two."""
    labels = list(dict.fromkeys(table["setting_label"]))
    columns = 2 if len(labels) == 4 else min(3, len(labels))
    return labels, -(-len(labels) // columns), columns


def learning_curves(table: pd.DataFrame, note: str = "") -> Figure:
    """Accuracy by rollout batch of `tables.curve_table`: a panel a setting, a line and a band a loss."""
    labels, rows, columns = grid_shape(table)
    with drawing():
        fig = new_figure(5.2 if columns == 1 else 7.2, 0.9 + (2.6 if columns == 1 else 2.1) * rows, note)
        axes = fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for position, ax in enumerate(axes.flat):
            if position >= len(labels):
                ax.set_visible(False)
                continue
            ax.set_title(labels[position])
            panel = table[table["setting_label"] == labels[position]]
            for (loss, variant), line in panel.groupby(["loss", "variant"], sort=False):
                _draw_curve(ax, line, cell_style(loss, variant))
            ax.tick_params(labelbottom=position + columns >= len(labels))
        top = max(table["accuracy"].max(), table["high"].max())
        axes[0, 0].set_ylim(-0.03 * top, 1.08 * top if top > 0 else 1)
        fig.supxlabel("rollout batch", fontsize=9)
        fig.supylabel("sampled eval accuracy", fontsize=9)
        handles = [_line_handle(label, style) for label, style in cells_of(table)]
        if table["collapses"].any():
            handles.append(Line2D([], [], linestyle="none", color="#444444", label="a run collapses", **CROSS))
        add_legend(fig, handles)
    return fig


def _draw_curve(ax: Axes, line: pd.DataFrame, style: LossStyle) -> None:
    every = max(1, len(line) // 8)
    x, y = line["step"].to_numpy(float), line["accuracy"].to_numpy(float)
    ax.plot(x, y, color=style.color, linestyle=style.dashes, marker=style.marker, markevery=every)
    if line["low"].notna().any():
        low, high = line["low"].to_numpy(float), line["high"].to_numpy(float)
        ax.fill_between(x, low, high, color=style.color, alpha=0.15, linewidth=0)
    at = line["collapses"].to_numpy() > 0
    ax.plot(x[at], y[at], linestyle="none", color=style.color, zorder=5, clip_on=False, **CROSS)


def final_bars(table: pd.DataFrame, note: str = "") -> Figure:
    """Final accuracy of `tables.final_table`: a group a setting, a bar a loss, a dot a seed, step 0 dashed."""
    labels = list(dict.fromkeys(table["setting_label"]))
    losses = cells_of(table)
    groups = max(1, min(len(labels), 6, BARS_A_ROW // len(losses)))
    rows = -(-len(labels) // groups)
    width = 0.8 / len(losses)
    names = [label for label, _ in losses]
    with drawing():
        fig = new_figure(5.2 if len(labels) == 1 else 7.2, 1.0 + 2.3 * rows, note)
        axes = fig.subplots(rows, 1, sharey=True, squeeze=False)[:, 0]
        for row, ax in enumerate(axes):
            own = labels[row * groups : (row + 1) * groups]
            for group, label in enumerate(own):
                bars = table[table["setting_label"] == label]
                for bar in bars.itertuples():
                    x = group + (names.index(bar.loss_label) - (len(names) - 1) / 2) * width
                    _draw_bar(ax, bar, x, width)
                initial = bars["initial"].mean()
                ax.plot([group - 0.45, group + 0.45], [initial, initial], color="black", linewidth=1.2, dashes=(4, 2))
            ax.set_xticks(range(len(own)), [label.replace(", ", "\n") for label in own])
            ax.set_xlim(-0.55, groups - 0.45)
            ax.grid(visible=False, axis="x")
            ax.tick_params(axis="x", length=0)
        finals = [float(value) for text in table["finals"] for value in text.split()]
        top = max([*finals, table["final_high"].max(), table["initial"].max(), 0.05])
        axes[0].set_ylim(0, 1.18 * top)
        fig.supylabel("final sampled accuracy", fontsize=9)
        handles: list[Any] = [Patch(facecolor=style.color, label=label) for label, style in losses]
        handles.append(Line2D([], [], color="black", linewidth=1.2, dashes=(4, 2), label="before training"))
        if table["collapsed"].any():
            handles.append(Line2D([], [], linestyle="none", color="#444444", label="k/n runs collapsed", **CROSS))
        add_legend(fig, handles)
    return fig


def _draw_bar(ax: Axes, bar: Any, x: float, width: float) -> None:
    """One bar with its interval and seeds; above it how many collapsed, or that no run has a result."""
    style = cell_style(bar.loss, bar.variant)
    if bar.n == 0:
        ax.text(x, 0, " no result", rotation=90, ha="center", va="bottom", color=style.color, fontsize=7)
        return
    ax.bar(x, bar.final, width * 0.92, color=style.color, edgecolor="white", linewidth=0.4)
    seeds = [float(value) for value in bar.finals.split()]
    top = max(bar.final, *seeds)
    if bar.n > 1:
        ax.vlines(x, bar.final_low, bar.final_high, color="#222222", linewidth=1.3)
        ax.plot([x] * len(seeds), seeds, "o", markersize=2.6, color="white", markeredgecolor="#222222", mew=0.6)
        top = max(top, bar.final_high)
    if bar.collapsed:
        ax.annotate(
            f"×\n{bar.collapsed}/{bar.n}",
            (x, top),
            (0, 1.5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=7,
            linespacing=0.8,
            color=style.color,
        )


def _line_handle(label: str, style: LossStyle) -> Line2D:
    return Line2D([], [], color=style.color, linestyle=style.dashes, marker=style.marker, label=label)


def add_legend(fig: Figure, handles: Sequence[Any]) -> None:
    """One legend below the panels, where it covers no data."""
    width = fig.get_size_inches()[0]
    columns = min(len(handles), max(2, int(width / 1.15)))
    rows = -(-len(handles) // columns)
    fig.legend(handles=handles, loc="outside lower center", ncols=-(-len(handles) // rows), handlelength=2.6)


def save_figure(fig: Figure, table: pd.DataFrame, directory: Path, name: str) -> list[Path]:
    """Write `<name>.png`, `.pdf` and the `.csv` of what was drawn; equal input gives equal bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    paths = []
    with drawing():
        for kind, without in metadata.items():
            buffer = io.BytesIO()
            fig.savefig(buffer, format=kind, metadata=without)
            paths.append(directory / f"{name}.{kind}")
            temporary = paths[-1].with_name(f".{paths[-1].name}.{os.getpid()}")
            temporary.write_bytes(buffer.getvalue())
            temporary.replace(paths[-1])
    paths.append(directory / f"{name}.csv")
    write_text(paths[-1], csv_text(table))
    return paths
