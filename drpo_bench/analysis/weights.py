"""Gradient weights of the losses as figures and a table: what each does to a token as pi leaves mu, before any run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from drpo_bench.analysis.layout import DASHES_OF_TOKEN, drawing, first_panels, new_page, save_figure
from drpo_bench.analysis.style import loss_style, variant_style
from drpo_bench.records import write_text

MAIN = (("pg_is", ""), ("grpo", ""), ("spo", ""), ("dppo_tv", ""), ("drpo", ""), ("drpo", "delta=12.5"))
LIMITS = (-2.6, 3.6)  # of the weight; what lies outside is cut off
COLORS = {1.0: "#B2182B", -1.0: "#2166AC"}  # A > 0, A < 0
COLUMNS = 6


def draw_weights(rows: Sequence[dict[str, Any]], registry: Sequence[dict[str, Any]], directory: Path) -> list[Path]:
    """Write the figures and the table of weights into `directory`; returns the paths."""
    table = pd.DataFrame(rows)
    main = pd.concat([_select(table, loss, params) for loss, params in MAIN])
    paths = save_figure(main_figure(main), main, directory, "weights_main")
    paths += save_figure(grid_figure(table), table, directory, "weights_all")
    paths.append(directory / "weights.md")
    write_text(paths[-1], weight_table(registry))
    return paths


def _select(table: pd.DataFrame, loss: str, params: str) -> pd.DataFrame:
    chosen = (table["loss"] == loss) & (table["loss_params"] == params if params else table["is_default"])
    return table[chosen]


def main_figure(table: pd.DataFrame) -> Figure:
    """The weight w of the main losses against pi / mu and pi - mu: a column a token and axis, a row a sign of A."""
    styles = {}
    for loss, params in table[["loss", "loss_params"]].drop_duplicates().itertuples(index=False):
        default = bool(table[(table["loss"] == loss) & (table["loss_params"] == params)]["is_default"].iloc[0])
        style = loss_style(loss) if default else variant_style(loss_style(loss), 1, [0, 1])
        styles[loss, params] = (f"{style.label} {params}" if loss in ("drpo", "spo") else style.label, style)
    handles = [Line2D([], [], color=s.color, linestyle=s.dashes, label=label) for label, s in styles.values()]
    note = (
        "Gradient weight w of one token, from g = A r w: 1 is the importance-weighted policy gradient, 0 no gradient, "
        "below 0 a pull back towards mu. Computed by autograd, no training. Values beyond the axis are cut off."
    )
    columns = [(token, axis) for token in ("rare", "frequent") for axis in ("ratio", "shift")]
    with drawing():
        fig, axes = new_page(
            (2, 4),
            (1.62, 1.5),
            handles,
            note=note,
            title_lines=2,
            tick_lines=2,
            labels=("", "gradient weight w"),
            between=0.1,
            beside=0.14,
            sharey=True,
        )
        for row, advantage in enumerate((1.0, -1.0)):
            for column, (token, axis) in enumerate(columns):
                panel = table[(table["token"] == token) & (table["advantage"] == advantage)]
                ax = axes[row, column]
                for (loss, params), (_, style) in styles.items():
                    line = panel[(panel["loss"] == loss) & (panel["loss_params"] == params)]
                    ax.plot(line[axis], line["weight"], color=style.color, linestyle=style.dashes)
                _finish(ax, axis, token)
                side: dict[str, Any] = {"x": 0.12, "s": "A > 0"} if advantage > 0 else {"x": 0.72, "s": "A < 0"}
                ax.text(**side, y=0.06, transform=ax.transAxes, fontsize=8)
                if row == 0:
                    ax.set_title(f"{token} token\nmu = {panel['mu'].iloc[0]:g}")
                    ax.tick_params(labelbottom=False)
                else:
                    ax.set_xlabel({"ratio": "pi / mu", "shift": "pi - mu"}[axis])
    return fig


def _finish(ax: Axes, axis: str, token: str) -> None:
    """Scales and reference lines of a panel."""
    ax.set_ylim(*LIMITS)
    ax.axhline(0, color="#888888", linewidth=0.7, zorder=0)
    if axis == "ratio":
        ax.set_xscale("log")
        ax.set_xlim(0.08, 13 if token == "rare" else 2.3)
        ticks = [0.1, 1.0, 10.0] if token == "rare" else [0.1, 0.5, 1.0, 2.0]
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        low, high = (0, 1) if token == "rare" else (-0.5, 0.5)
        ax.set_xlim(low - 0.05, high + 0.05)
        ticks = [low, (low + high) / 2, high]
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def grid_figure(table: pd.DataFrame) -> Figure:
    """The weight w of every loss against pi / mu: a panel a loss, colour the sign of A, dashes the frequent token."""
    cells = list(table[["loss", "loss_params", "is_default"]].drop_duplicates().itertuples(index=False))
    handles = [
        Line2D([], [], color=color, linestyle=DASHES_OF_TOKEN[token], label=f"{token} token, A {sign} 0")
        for advantage, color in COLORS.items()
        for sign in (">" if advantage > 0 else "<",)
        for token in ("rare", "frequent")
    ]
    note = (
        "Gradient weight w against pi / mu (log axis), from g = A r w; rare: mu = 0.001, frequent: mu = 0.5, pi / mu "
        "ends at 2; red lies over blue where both agree. Responses of one token; minibatch losses: tokens that they do "
        "not select; top-k: the sampled token alone; old = prox = mu. Controlled settings unless the title says "
        "otherwise. Values beyond the axis are cut off."
    )
    rows = -(-len(cells) // COLUMNS)
    with drawing():
        fig, axes = new_page(
            (rows, COLUMNS),
            (1.02, 0.86),
            handles,
            note=note,
            title_lines=2,
            labels=("pi / mu", "gradient weight w"),
            between=0.34,
            beside=0.12,
            sharex=True,
            sharey=True,
        )
        for position, (ax, cell) in enumerate(zip(first_panels(axes, len(cells)), cells, strict=True)):
            loss, params, default = cell
            ax.set_title(loss_style(loss).label + ("" if default else "\n" + params.split(" ")[0]), fontsize=8)
            panel = table[(table["loss"] == loss) & (table["loss_params"] == params)]
            for (advantage, token), line in panel.groupby(["advantage", "token"]):
                ax.plot(
                    line["ratio"],
                    line["weight"],
                    color=COLORS[advantage],
                    linestyle=DASHES_OF_TOKEN[str(token)],
                    linewidth=1.2,
                )
            _finish(ax, "ratio", "rare")
            ax.tick_params(labelbottom=position + COLUMNS >= len(cells))
    return fig


def weight_table(registry: Sequence[dict[str, Any]]) -> str:
    """The paper's Table 1 for every loss: gradient, what happens beyond the boundary, controlled setting."""
    lines = ["| loss | gradient g = d(-L)/d log pi | beyond the boundary |", "|---|---|---|"]
    for row in registry:
        cells = (f"`{row['id']}`", row["gradient"], row["boundary"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
