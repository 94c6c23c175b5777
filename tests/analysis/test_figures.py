"""Figures: one look a loss, the same bytes again, nothing left in matplotlib's global state, nothing covered."""

from __future__ import annotations

import io
import subprocess
import sys

import matplotlib as mpl
import pytest
from conftest import write_run
from matplotlib.lines import Line2D

from drpo_bench.analysis.cells import label_runs
from drpo_bench.analysis.figures import final_bars, learning_curves
from drpo_bench.analysis.layout import new_page, wrap_label
from drpo_bench.analysis.load import read_results
from drpo_bench.analysis.stability import stability_panel
from drpo_bench.analysis.style import DASHES, STYLES, loss_style, variant_style
from drpo_bench.analysis.tables import curve_table, final_table, stability_table


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Two losses, two settings, two seeds; one run collapsed."""
    folder = tmp_path_factory.mktemp("figures") / "study"
    for precision in ("bf16", "fp8_rollout"):
        for seed in range(2):
            write_run(folder, precision=precision, seed=seed, loss="drpo")
        write_run(folder, precision=precision, loss="pg_is")
    falling = (0.4, 0.5, 0.2, 0.1, 0.0, 0.0, 0.0)
    collapse = {"state": "collapsed", "reason": "accuracy", "collapse_step": 30}
    write_run(folder, loss="pg_is", seed=1, accuracies=falling, **collapse)
    results = read_results(folder)
    summary = label_runs(results.summary)
    return curve_table(summary, results.curves), final_table(summary), stability_table(summary, results.curves)


FIGURES = (learning_curves, final_bars, stability_panel)


def test_the_table_is_what_is_drawn(tables):
    figure = learning_curves(tables[0])
    for ax, setting in zip(figure.axes, ("bf16, lag 2", "fp8_rollout, lag 2"), strict=True):
        assert ax.get_title() == setting
        panel = tables[0][tables[0]["setting_label"] == setting]
        drawn = [list(line.get_ydata()) for line in ax.lines if line.get_alpha() is None and line.get_marker() != "X"]
        assert drawn == [list(line["accuracy"]) for _, line in panel.groupby("loss_label", sort=False)]
        crosses = [list(line.get_xdata()) for line in ax.lines if line.get_marker() == "X" and len(line.get_xdata())]
        assert crosses == ([[30.0]] if setting.startswith("bf16") else [])


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
def test_global_state_is_untouched_and_nothing_is_covered(tables, draw):
    with mpl.rc_context({"font.size": 17.0}):
        before = dict(mpl.rcParams)
        figure = draw(tables[FIGURES.index(draw)], "a note " * 40)
        assert dict(mpl.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    figure.draw_without_rendering()
    texts = [text.get_window_extent() for text in figure.texts if text.get_text()]
    boxes = [figure.legends[0].get_window_extent(), *texts]
    if draw is learning_curves:
        boxes += [ax.get_tightbbox() for ax in figure.axes if ax.get_visible()]
    for index, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 + 9 and box.x1 <= figure.bbox.x1 + 9  # the legend's frame has invisible padding
        assert figure.bbox.y0 <= box.y0 + 9 and box.y1 <= figure.bbox.y1
        inner = [other.padded(-2) for other in boxes[:index]]
        assert not [other for other in inner if box.padded(-2).overlaps(other)]


def test_a_long_legend_stays_on_the_page():
    handles = [Line2D([], [], label=f"DRPO delta={value}") for value in range(8)]
    figure, _ = new_page((1, 1), (4.6, 2.7), handles, note="", labels=("x", "y"))
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


def test_a_matplotlibrc_has_no_say(tables):
    def pixels():
        buffer = io.BytesIO()
        figure = final_bars(tables[1])
        figure.savefig(buffer, dpi=40, metadata={"Software": None})
        return buffer.getvalue()

    plain = pixels()
    with mpl.rc_context({"axes.titlesize": 30, "lines.linewidth": 9, "axes.edgecolor": "red"}):
        assert pixels() == plain


def test_a_cell_without_a_result_is_no_bar_of_height_zero(make_run, tmp_path):
    make_run(loss="drpo")
    make_run(loss="grpo", state="failed")
    (ax,) = final_bars(final_table(label_runs(read_results(tmp_path / "study").summary))).axes
    assert [text.get_text().strip() for text in ax.texts] == ["no result"]
    assert [patch.get_height() for patch in ax.patches] == [pytest.approx(0.6)]


def test_an_exact_zero_has_a_place_on_a_logarithmic_axis(make_run, tmp_path):
    make_run(loss="drpo", metrics={"optim/grad_norm": 0.0})
    make_run(loss="grpo")
    results = read_results(tmp_path / "study")
    figure = stability_panel(stability_table(label_runs(results.summary), results.curves))
    (ax,) = (ax for ax in figure.axes if ax.get_ylabel() == "gradient norm")
    assert ax.get_yscale() == "symlog" and ax.get_ylim()[0] == 0


def test_every_loss_has_a_look_of_its_own():
    looks = [(style.color, style.line, style.marker) for style in STYLES.values()]
    assert len(set(looks)) == len(looks)
    main = [loss_style(loss) for loss in ("pg_is", "grpo", "spo", "dppo_tv", "drpo")]
    for attribute in ("color", "line", "marker", "label"):
        assert len({getattr(style, attribute) for style in main}) == 5
    assert all(style.line in DASHES for style in STYLES.values())


def test_a_loss_without_a_row_looks_the_same_in_every_process():
    code = "from drpo_bench.analysis.style import loss_style; print(loss_style('new_loss'))"
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "5"}).stdout
    assert other.strip() == str(loss_style("new_loss"))


def test_variants_of_a_loss_go_from_dark_to_light():
    colors = [variant_style(loss_style("drpo"), variant, range(-2, 3)).color for variant in range(-2, 3)]
    brightness = [sum(int(color[i : i + 2], 16) for i in (1, 3, 5)) for color in colors]
    assert brightness == sorted(brightness) and len(set(colors)) == 5 and colors[2] == loss_style("drpo").color


def test_long_names_are_broken_at_commas_and_then_at_spaces():
    assert wrap_label("bf16, lag 8", 2.0) == "bf16, lag 8"
    wrapped = wrap_label("bf16, lag 8, train.aggregation seq_mean_token_mean, train.anchor old", 2.0)
    assert max(len(line) for line in wrapped.splitlines()) <= int(2.0 * 72 / 9 / 0.6)
    assert " ".join(wrapped.split()).replace(",", "") == (
        "bf16 lag 8 train.aggregation seq_mean_token_mean train.anchor old"
    )
