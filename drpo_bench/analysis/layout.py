"""The page of a figure, laid out in inches (panels, small print on top, a legend below), and how it is saved."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from drpo_bench.analysis.style import RC, LossStyle, loss_order, loss_style, variant_style
from drpo_bench.records import write_text

NOTE_SIZE = 7.5
LEFT, RIGHT, GAP = 0.66, 0.14, 0.16  # inches: beside the panels and between them
LINE = 0.17  # inches of a line of text
LINES_A_PANEL = 9  # with more losses, a figure has a panel or a row for each (`many`)
BANDS_UP_TO = 6  # lines in a panel; the bands of more hide each other
DASHES_OF_TOKEN: dict[str, Any] = {"rare": "-", "frequent": (0, (2.5, 1.2))}  # in figures of gradient weights
Styles = dict[tuple[str, str], tuple[str, LossStyle]]


@contextmanager
def drawing() -> Iterator[None]:
    """Our rcParams for the block; matplotlib's global state is as before afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()  # no matplotlibrc of this machine has a say
        mpl.rcParams.update(RC)
        yield


def cell_styles(table: pd.DataFrame) -> Styles:
    """(label, style) of each (loss, loss_params) of a table, in its order of losses."""
    cells = table.drop_duplicates(["loss", "loss_params"])
    variants = {str(loss): list(part["variant"]) for loss, part in cells.groupby("loss")}
    rows = sorted(cells.to_dict("records"), key=lambda row: (loss_order(row["loss"]), row["variant"]))
    return {
        (row["loss"], row["loss_params"]): (
            row["loss_label"],
            variant_style(loss_style(row["loss"]), row["variant"], variants[row["loss"]]),
        )
        for row in rows
    }


def new_page(
    shape: tuple[int, int],
    panel: tuple[float, float],
    handles: Sequence[Any],
    *,
    note: str,
    title_lines: int = 1,
    tick_lines: int = 1,
    labels: tuple[str, str],
    between: float | None = None,
    beside: float = GAP,
    left: float = LEFT,
    **subplots: Any,
) -> tuple[Figure, Any]:
    """(figure, axes [rows, columns]) with panels of `panel` inches; no pyplot, so that nothing keeps them alive.

    `labels` are the common x and y labels; `between` is the room between rows, by default that of the titles,
    `beside` that between columns and `left` that for the names of rows, in inches.
    """
    rows, columns = shape
    width = left + columns * panel[0] + (columns - 1) * beside + RIGHT
    notes = wrap(note, int(width * 72 / NOTE_SIZE * 1.85))
    ncols = legend_columns(handles, width)
    legend = LINE * -(-len(handles) // ncols) + 0.1
    bottom = legend + LINE * tick_lines + 0.1 + (LINE if labels[0] else 0)
    top = 0.08 + 0.135 * len(notes) + LINE * title_lines + 0.08
    gap = GAP + (LINE * title_lines if between is None else between)
    height = bottom + rows * panel[1] + (rows - 1) * gap + top
    fig = Figure(figsize=(width, height))
    axes = fig.subplots(rows, columns, squeeze=False, **subplots)
    fig.subplots_adjust(
        left=left / width,
        right=1 - RIGHT / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=beside / panel[0],
        hspace=gap / panel[1],
    )
    middle = (left + width - RIGHT) / 2 / width
    fig.text(0.08 / width, 1 - 0.06 / height, "\n".join(notes), va="top", fontsize=NOTE_SIZE, color="#555555")
    fig.text(middle, (legend + 0.02) / height, labels[0], ha="center", va="bottom")
    fig.text(0.08 / width, (bottom + height - top) / 2 / height, labels[1], rotation=90, va="center")
    fig.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.0),
        borderaxespad=0.2,
        ncols=ncols,
        handlelength=3.0,
        columnspacing=1.4,
    )
    return fig, axes


def first_panels(axes: Any, count: int) -> list[Axes]:
    """The first `count` panels of a page, row by row; the others are hidden."""
    for position, ax in enumerate(axes.flat):
        ax.set_visible(position < count)
    return list(axes.flat)[:count]


def wrap_label(label: str, inches: float, size: float = 9) -> str:
    """A setting's name on lines that fit the width, broken after its commas, and at spaces where a part is too long."""
    limit, lines = int(inches * 72 / size / 0.6), [""]
    for part in label.split(", "):
        first, *rest = wrap(part, limit, break_long_words=False, break_on_hyphens=False)
        longer = f"{lines[-1]}, {first}" if lines[-1] else first
        if lines[-1] and len(longer) > limit:
            lines.append(first)
        else:
            lines[-1] = longer
        lines += rest
    return "\n".join(lines)


def legend_columns(handles: Sequence[Any], width: float) -> int:
    """As many columns as fit the width, evenly filled; the entries run down the columns."""
    widths = [0.72 + 0.072 * len(str(handle.get_label())) for handle in handles]
    for rows in range(1, len(handles)):
        columns = [widths[i : i + rows] for i in range(0, len(widths), rows)]
        if sum(map(max, columns)) <= width:
            return len(columns)
    return 1


def line_handles(styles: Styles) -> list[Line2D]:
    """The legend's entries of lines."""
    return [
        Line2D([], [], color=style.color, linestyle=style.dashes, marker=style.marker, label=label)
        for label, style in styles.values()
    ]


def draw_band(ax: Axes, x: Any, low: Any, high: Any, color: str, fill: float) -> None:
    """A pale band with a fine outline, so that several of them can still be told apart."""
    ax.fill(np.concatenate([x, x[::-1]]), np.concatenate([low, high[::-1]]), color=color, alpha=fill, linewidth=0)
    edges = np.concatenate([x, [np.nan], x]), np.concatenate([low, [np.nan], high])
    ax.plot(*edges, color=color, alpha=0.5, linewidth=0.5)


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
    write_text(paths[-1], table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    return paths
