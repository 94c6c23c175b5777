"""The figure of `drpo-bench bench --part growth`: seconds a step against batch, length, parameters and vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drpo_bench.analysis.style import RC

COLORS = {"rollout": ("#0072B2", "o", "-"), "trainer": ("#D55E00", "s", "--")}


def draw_growth(points: Sequence[dict[str, Any]], slopes: dict[str, tuple[float, float]], out: Path) -> None:
    """growth.png, one panel an axis, both logarithmic, with the slope of the upper half of each line; growth.csv."""
    import matplotlib
    import pandas as pd

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, NullLocator

    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(points).to_csv(out / "growth.csv", index=False)
    axes = list(slopes)
    with plt.rc_context(RC):
        figure, panels = plt.subplots(1, len(axes), figsize=(2.3 * len(axes), 2.5), sharey=True, layout="constrained")
        for panel, axis in zip(panels, axes, strict=True):
            line = sorted((point for point in points if point["axis"] == axis), key=lambda point: point["value"])
            for (side, (color, marker, style)), slope in zip(COLORS.items(), slopes[axis], strict=True):
                xs, ys = [point["value"] for point in line], [point[side] for point in line]
                panel.plot(xs, ys, style, color=color, marker=marker, label=f"{side}: slope {slope:.2f}")
            panel.set(xscale="log", yscale="log", xlabel=axis)
            panel.legend(loc="upper left", handlelength=1.6)
            panel.margins(y=0.25)
            values = [point["value"] for point in line]
            panel.set_xticks(values if len(values) < 5 else values[::2])
            panel.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
            panel.xaxis.set_minor_locator(NullLocator())
        panels[0].set_ylabel("seconds")
        figure.savefig(out / "growth.png")
        plt.close(figure)
