"""Sweeps with more losses than a panel can tell apart: a panel or a row for each, by name."""

from __future__ import annotations

from itertools import combinations

import pytest
from conftest import write_run

from drpo_bench.analysis.cells import label_runs
from drpo_bench.analysis.layout import LINES_A_PANEL
from drpo_bench.analysis.load import read_results
from drpo_bench.analysis.many import curves_by_loss, final_rows, stability_rows
from drpo_bench.analysis.report import write_report
from drpo_bench.analysis.tables import STABILITY_METRICS, curve_table, final_table, stability_table
from drpo_bench.loss_configs import LOSS_IDS

IDS = LOSS_IDS[:12]
FALLING = (0.4, 0.5, 0.2, 0.1, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve losses, two settings, two seeds; the accuracy of loss i ends at 0.3 + i / 100; the first one collapses."""
    path = tmp_path_factory.mktemp("many") / "study"
    for number, loss in enumerate(IDS):
        end = 0.3 + number / 100
        for precision in ("bf16", "fp8_rollout"):
            for seed in range(2):
                how = {"accuracies": (0.4, 0.5, 0.5, 0.5, 0.5, end, end)}
                if number == 0 and precision == "bf16":
                    how = {"accuracies": FALLING, "state": "collapsed", "reason": "accuracy", "collapse_step": 30}
                write_run(path, loss=loss, precision=precision, seed=seed, **how)
    return path


@pytest.fixture(scope="module")
def tables(folder):
    results = read_results(folder)
    summary = label_runs(results.summary)
    assert summary["loss_label"].nunique() == len(IDS) > LINES_A_PANEL
    return curve_table(summary, results.curves), final_table(summary), stability_table(summary, results.curves)


def of_setting(table, setting):
    return table[table["setting_label"] == setting]


def shown(figure):
    return [ax for ax in figure.axes if ax.get_visible()]


def test_a_panel_for_each_loss_with_its_own_curve_on_top(tables):
    table = of_setting(tables[0], "bf16, lag 2")
    panels = shown(curves_by_loss(table))
    assert sorted(ax.get_title() for ax in panels) == sorted(set(table["loss_label"]))
    for ax in panels:
        own = table[table["loss_label"] == ax.get_title()]
        thick = [line for line in ax.lines if line.get_linewidth() == 1.8]
        assert [list(line.get_ydata()) for line in thick] == [list(own["accuracy"])]
        assert sum(line.get_color() == "#C9C9C9" for line in ax.lines) == len(IDS)
        crosses = [list(line.get_xdata()) for line in ax.lines if line.get_marker() == "X"]
        assert crosses == ([[30.0]] if own["collapses"].any() else [])


def test_rows_of_final_accuracy_are_named_and_sorted(tables):
    figure = final_rows(tables[1])
    first, second = figure.axes
    assert [ax.get_title() for ax in (first, second)] == ["bf16, lag 2", "fp8_rollout, lag 2"]
    names = [label.get_text() for label in first.get_yticklabels()]
    means = tables[1].groupby("loss_label")["final"].mean()
    assert names == sorted(names, key=lambda name: -means[name])
    assert sorted(names) == sorted(set(tables[1]["loss_label"]))
    for ax in (first, second):
        own = of_setting(tables[1], ax.get_title()).set_index("loss_label")
        widths = [patch.get_width() for patch in ax.patches]
        assert widths == pytest.approx([own.loc[name, "final"] for name in names])
    assert [text.get_text() for text in first.texts] == ["\u00d7 2/2"]
    assert not second.texts


def test_rows_of_stability_have_a_dot_at_the_end_of_each_run(tables):
    table = of_setting(tables[2], "fp8_rollout, lag 2")
    panels = shown(stability_rows(table))
    assert len(panels) == len([m for m in STABILITY_METRICS if (table["metric"] == m).any()])
    for ax in panels:
        dots = [line for line in ax.lines if line.get_marker() == "o"]
        assert [line.get_ydata()[0] for line in dots] == list(range(len(IDS)))


def test_the_report_has_a_page_a_setting_and_says_how_to_read_it(folder):
    text = write_report(folder).read_text()
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert names == {"learning_curves", "learning_curves_2", "final_accuracy", "stability", "stability_2"}
    for words in ("A panel a loss, the others grey.", "Best first.", "A row a loss:", "learning_curves_2.png"):
        assert words in text


def test_no_result_in_a_setting_is_no_reason_to_fail(tmp_path):
    folder = tmp_path / "study"
    for loss in IDS:
        for precision in ("fp32", "bf16", "fp16"):
            write_run(folder, loss=loss, precision=precision)
        write_run(folder, loss=loss, precision="fp8_rollout", state="running")  # alone on its page
    assert write_report(folder).exists()
    assert (folder / "figures" / "final_accuracy_2.png").exists()


def test_the_start_and_every_seed_are_within_the_axis(tmp_path):
    folder = tmp_path / "study"
    for loss in IDS:
        for seed in range(3):
            end = 0.7 if seed == 0 else 0.1
            write_run(folder, loss=loss, seed=seed, accuracies=(0.8, 0.5, 0.1, 0.1, 0.1, end, end))
    summary = label_runs(read_results(folder).summary)
    [ax] = final_rows(final_table(summary)).axes
    assert ax.get_xlim()[1] > 0.8
    dots = [x for line in ax.lines if line.get_marker() == "o" for x in line.get_xdata()]
    assert len(dots) == 3 * len(IDS)
    assert max(dots) == pytest.approx(0.7)


def test_long_names_neither_meet_nor_leave_the_page(tmp_path):
    folder = tmp_path / "study"
    for delta in (0.1, 0.2, 0.3, 0.5):
        for mask in (0.05, 0.1, 0.15):
            for clip in (1.0, 0.5):
                changes = {"train": {"steps": 60, "max_grad_norm": clip, "entropy_coef": 0.01 * (clip == 0.5)}}
                write_run(folder, loss={"id": "mask_drpo", "delta": delta, "delta_mask": mask}, changes=changes)
    results = read_results(folder)
    summary = label_runs(results.summary)
    curves, final = curve_table(summary, results.curves), final_table(summary)
    stability = stability_table(summary, results.curves)
    first = curves["setting_label"].iloc[0]
    assert final["setting_label"].nunique() == 2
    for figure in (
        curves_by_loss(of_setting(curves, first), "a note " * 30),
        final_rows(final, "a note " * 30),
        stability_rows(of_setting(stability, first), "a note " * 30),
    ):
        figure.draw_without_rendering()
        page, panels = figure.bbox, shown(figure)
        boxes = [ax.title.get_window_extent() for ax in panels]
        names = [] if len(panels) > 6 else [label.get_window_extent() for label in panels[0].get_yticklabels()]
        assert all(box.x0 >= page.x0 - 1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 for box in boxes + names)
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
