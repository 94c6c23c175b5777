"""The figures of `drpo-bench mismatch`: matrices of all pairs, ratio and shift against probability, sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from drpo_bench.analysis.layout import drawing, first_panels, new_page

COLUMNS = 4
PANELS = {1: (4.4, 2.2), 2: (2.6, 1.7), 3: (2.0, 1.5), 4: (1.5, 1.25)}  # inches, by columns
COLORS = {"trainer": "#4D4D4D", "torch": "#0072B2", "vllm": "#D55E00"}  # one an engine, in every figure
ENGINES = {"trainer": "trainer", "torch": "torch", "vllm": "vLLM"}
BINS = 41


def label(side: str, emulated: bool, separator: str = " ") -> str:
    """`vLLM bf16`, `torch fp8 emulated` of a side's name."""
    engine, _, number_format = side.partition(":")
    return separator.join([ENGINES[engine], number_format, *(["emulated"] if emulated else [])])


def matrix_figure(pairs: pd.DataFrame, metric: str, emulated: Mapping[str, bool], note: str) -> Figure:
    """`metric` of every pair as a heat map: rows are mu, columns pi; exact zeros, as of the control, have no colour."""
    sides = list(dict.fromkeys(pairs["mu"]))
    table = pairs.pivot(index="mu", columns="pi", values=metric).loc[sides, sides].to_numpy()
    norm = matrix_norm(table)
    width = min(1.4, max(0.48, 5.6 / len(sides)))
    with drawing():
        fig, axes = new_page(
            (1, 1),
            (width * len(sides), 0.36 * len(sides)),
            [],
            note=note,
            title_lines=0,
            tick_lines=2,
            labels=("pi", "mu"),
            left=1.55,
        )
        ax: Axes = axes[0, 0]
        ax.imshow(np.where(table > 0, table, np.nan), norm=norm, cmap=mpl.colormaps["YlOrRd"], aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            color = "white" if value > 0 and norm(value) > 0.65 else "black"
            ax.text(column, row, number(value), ha="center", va="center", fontsize=7, color=color)
        ax.set_xticks(range(len(sides)), [label(side, emulated[side], "\n") for side in sides], fontsize=7)
        ax.set_yticks(range(len(sides)), [label(side, emulated[side]) for side in sides], fontsize=7.5)
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
    return fig


def matrix_norm(table: np.ndarray[Any, Any]) -> LogNorm:
    """Colours of a matrix, logarithmic over at most five decades below its largest value: what is below that, as
    float32 engines are, would leave no colours for the rest."""
    top = float(table.max()) or 1.0
    positive = table[table > 0]
    low = max(float(positive.min()) if positive.size else 0.0, 1e-5 * top)
    return LogNorm(min(low, top / 10), top, clip=True)


def number(value: float) -> str:
    """Two digits, an exact zero as `0`, nothing measured as `-`."""
    if value == 0 or np.isnan(value):
        return "0" if value == 0 else "-"
    if 0.01 <= abs(value) < 100:
        return f"{value:.2g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def panels(count: int, note: str, labels: tuple[str, str], title_lines: int = 1) -> tuple[Figure, Sequence[Axes]]:
    """Small multiples in rows of four."""
    columns = min(COLUMNS, count)
    shape = (-(-count // columns), columns)
    fig, axes = new_page(
        shape,
        PANELS[columns],
        [],
        note=note,
        title_lines=title_lines,
        labels=labels,
        beside=0.2,
        sharex=True,
        sharey=True,
    )
    return fig, first_panels(axes, count)


def scatter_figure(tokens: pd.DataFrame, quantity: str, emulated: Mapping[str, bool], note: str) -> Figure:
    """`ratio` = pi / mu or `shift` = |pi - mu| of every token against mu: a panel a side (mu)."""
    sides = list(dict.fromkeys(tokens["mu_side"]))
    values, low = tokens[quantity], max(float(tokens["mu"].min()), 1e-9)
    step = 1 if low > 1e-4 else 2 if low > 1e-7 else 3  # decades between ticks
    decades = [10.0**power for power in range(-9, 1) if power % step == 0 and 10.0**power >= low / 2]
    axis_name = {"ratio": "pi / mu", "shift": "|pi - mu|"}[quantity]
    with drawing():
        fig, axes = panels(len(sides), note, ("mu, the side's probability of the token", axis_name))
        for position, (ax, side) in enumerate(zip(axes, sides, strict=True)):
            part = tokens[tokens["mu_side"] == side]
            color = COLORS[side.partition(":")[0]]
            ax.scatter(part["mu"], part[quantity], s=2.5, color=color, alpha=0.35, linewidths=0, rasterized=True)
            ax.set_title(label(side, emulated[side]), fontsize=8)
            ax.set_xscale("log")
            ax.set_xlim(low / 2, 2)
            ax.xaxis.set_major_locator(FixedLocator(decades))
            ax.xaxis.set_minor_locator(NullLocator())
            if quantity == "ratio":
                ax.axhline(1, color="#888888", linewidth=0.6, zorder=0)
                limit = max(float(values.max()), 1 / float(values.min()), 1.02) ** 1.1
                ax.set_yscale("log")
                ax.set_ylim(1 / limit, limit)
                ticks = ratio_ticks(limit)
                ax.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
                ax.yaxis.set_minor_locator(NullLocator())
            else:
                ax.set_ylim(-0.03 * float(values.max()), 1.08 * float(values.max()))
            ax.tick_params(labelbottom=position + COLUMNS >= len(sides))
    return fig


def ratio_ticks(limit: float) -> list[float]:
    """1 and a factor on either side that fits the axis, in round numbers."""
    for factor in (100.0, 10.0, 5.0, 2.0, 1.5, 1.2, 1.1, 1.05, 1.02, 1.01):
        if factor < limit:
            return [1 / factor, 1.0, factor]
    return [1.0]


def sequence_figure(sequences: pd.DataFrame, emulated: Mapping[str, bool], note: str) -> Figure:
    """The distribution of log pi - log mu over whole sequences: a panel a side, the same axis for all."""
    sides = list(dict.fromkeys(sequences["mu_side"]))
    limit = max(float(sequences["log_ratio"].abs().max()), 1e-6) * 1.05
    edges = np.linspace(-limit, limit, BINS + 1)
    with drawing():
        fig, axes = panels(
            len(sides), note, ("sum of log pi - log mu over a sequence, nats", "sequences"), title_lines=2
        )
        for position, (ax, side) in enumerate(zip(axes, sides, strict=True)):
            values = sequences.loc[sequences["mu_side"] == side, "log_ratio"]
            ax.hist(values, bins=edges.tolist(), color=COLORS[side.partition(":")[0]])
            ax.set_title(f"{label(side, emulated[side])}\nsd {number(float(values.std(ddof=0)))}", fontsize=8)
            ax.set_yscale("symlog", linthresh=1)
            ax.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
            ax.yaxis.set_minor_locator(NullLocator())
            ax.tick_params(labelbottom=position + COLUMNS >= len(sides))
    return fig
