"""Which runs are averaged, what the tables hold, and what is said about the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drpo_bench.analysis.captions import captions, emulation_text, figure_notes, sample_text
from drpo_bench.analysis.cells import current, label_runs, seeds_text
from drpo_bench.analysis.load import read_results
from drpo_bench.analysis.notes import notes
from drpo_bench.analysis.tables import curve_table, final_table, stability_table


@pytest.fixture(scope="module")
def results(study):
    return read_results(study)


@pytest.fixture(scope="module")
def summary(results):
    return label_runs(current(results.summary))


def cell(table, precision, loss):
    rows = table[table["setting_label"].str.startswith(precision) & (table["loss"] == loss)]
    return rows.iloc[0] if "step" not in table else rows.set_index("step")


def test_final_scores_worked_by_hand(summary):
    row = cell(final_table(summary), "bf16", "pg_is")  # finals 0.6, 0.7, 0.8 from a start at 0.4
    assert (row["n"], row["seeds"]) == (3, "0-2")
    assert [row[name] for name in ("initial", "final", "final_worst", "gain")] == pytest.approx([0.4, 0.7, 0.6, 0.3])
    # With three seeds a resample repeats the worst (or best) one three times with probability 1/27 > 2.5%.
    assert [row["final_low"], row["final_high"]] == pytest.approx([0.6, 0.8])
    assert row["collapsed"] == 0 and row["finals"] == "0.6 0.7 0.8"


def test_collapsed_runs_are_data(summary):
    table = final_table(summary)
    accuracy, non_finite = cell(table, "fp8", "pg_is"), cell(table, "fp8", "spo")
    assert accuracy["final"] == pytest.approx((0.0 + 0.7 + 0.8) / 3)
    assert (accuracy["collapsed"], accuracy["collapse_steps"], accuracy["final_worst"]) == (1, "30", 0.0)
    assert non_finite["final"] == pytest.approx((0.6 + 0.0 + 0.8) / 3)
    assert (non_finite["collapsed"], non_finite["collapse_steps"]) == (1, "25*")
    # 1 of 3, exactly: 1 - (1 - p)^3 = 0.025 below.
    assert accuracy["collapsed_low"] == pytest.approx(1 - 0.975 ** (1 / 3))


def test_a_failed_run_is_shown_and_enters_no_mean(summary, results):
    row = cell(final_table(summary), "fp8", "grpo")  # seed 2 failed at accuracy 0.7
    assert (row["n"], row["seeds"], row["unfinished"]) == (2, "0, 1", "1 failed")
    assert row["final"] == pytest.approx(0.65)
    curve = cell(curve_table(summary, results.curves), "fp8", "grpo")
    assert curve.loc[20, "accuracy"] == pytest.approx(0.6) and set(curve["n"]) == {2}  # 0.55, 0.65


def test_curves_worked_by_hand(summary, results):
    table = curve_table(summary, results.curves)
    spo = cell(table, "fp8", "spo")
    assert spo["accuracy"].tolist()[:4] == pytest.approx([0.4, 1.7 / 3, 1.85 / 3, 1.4 / 3])
    assert spo.loc[60, "accuracy"] == pytest.approx((0.6 + 0.0 + 0.8) / 3)
    assert spo["collapses"].tolist() == [0, 0, 0, 1, 0, 0, 0]  # at batch 25: the next evaluation is at 30
    assert cell(table, "fp8", "pg_is")["collapses"].tolist() == [0, 0, 0, 1, 0, 0, 0]


def test_a_mean_curve_never_changes_its_seeds(summary, results):
    short = cell(curve_table(summary, results.curves), "bf16", "dppo_tv")  # seed 2 was evaluated to 30 only
    assert short.index.tolist() == [0, 10, 20, 30] and set(short["n"]) == {3}


def test_stability_shows_the_seed_that_runs_away(summary, results):
    table = stability_table(summary, results.curves)
    rows = cell(table[table["metric"] == "optim/grad_norm"], "fp8", "pg_is")
    assert rows.loc[60, ["median", "low", "high"]].tolist() == [0.3, 0.2, 9.0]
    entropy = cell(table[table["metric"] == "policy/entropy"], "bf16", "drpo")
    assert set(entropy["n"]) == {2}
    assert 0 not in rows.index  # nothing was trained on before step 0


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(make_run, tmp_path):
    make_run(seed=0)
    make_run(seed=1)
    make_run(seed=0, changes={"train": {"steps": 60, "lr": 1e-3}})
    make_run(seed=0, changes={"task": {"name": "arithmetic", "max_operand": 9}})
    make_run(seed=0, changes={"rollout": {"lag": 0}})
    table = final_table(label_runs(read_results(tmp_path / "study").summary))
    assert dict(zip(table["setting_label"], table["n"], strict=True)) == {
        "bf16, lag 0, lr 0.0003": 1,
        "bf16, lag 2, lr 0.0003": 2,
        "bf16, lag 2, lr 0.0003, task.max_operand 9": 1,
        "bf16, lag 2, lr 0.001": 1,
    }


def test_parameters_of_a_loss_are_told_apart_in_the_order_of_their_numbers(make_run, tmp_path):
    for delta in (12.5, "inf", 2.5, 0.15, 0.02):
        make_run(loss={"id": "drpo", "delta": delta})
    make_run(loss="pg_is")
    table = final_table(label_runs(read_results(tmp_path / "study").summary))
    assert table["loss_label"].tolist() == [
        "PG-IS", "DRPO delta=0.02", "DRPO delta=0.15", "DRPO delta=2.5", "DRPO delta=12.5", "DRPO delta=inf",
    ]  # fmt: skip
    assert table["variant"].tolist() == [0, -1, 0, 1, 2, 3]  # the default 0.15 looks like DRPO everywhere


def test_a_losss_parameters_do_not_name_a_setting(make_run, tmp_path):
    make_run(loss={"id": "drpo", "delta": 2.5}, changes={"rollout": {"lag": 0}})
    make_run(loss="drpo")
    table = final_table(label_runs(read_results(tmp_path / "study").summary))
    assert table["setting_label"].tolist() == ["bf16, lag 0", "bf16, lag 2"]


def test_only_the_newest_numerics_version_is_compared(make_run, tmp_path):
    make_run(seed=0, numerics_version=1)
    make_run(seed=1, numerics_version=2)
    results = read_results(tmp_path / "study")
    summary = label_runs(current(results.summary))
    assert summary["seed"].tolist() == [1]
    assert "1 rows of numerics versions before 2 are kept in the csv files, but not shown." in notes(results, summary)


def test_notes_say_what_means_would_hide(summary, results):
    text = "\n".join(notes(results, summary))
    assert "mu <= 0.01 in the first batch, arithmetic, nano: 8.0%" in text
    assert "fp8_rollout, lag 2: the losses have results of different seeds (PG-IS: 0-2; GRPO: 0, 1;" in text
    assert "bf16, lag 2: fewer evaluations than other runs have: nano-bf16-dppo_tv-s2-" in text
    assert "policy/entropy is recorded by 28 of 29 runs." in captions(summary, results.curves)["stability"]


def test_notes_of_broken_pairs_and_missing_curves(make_run, tmp_path):
    make_run(loss="drpo", accuracies=(0.4, *[0.5] * 6))
    make_run(loss="grpo", accuracies=(0.3, *[0.5] * 6))
    results = read_results(tmp_path / "study")
    summary = label_runs(results.summary)
    assert any("differ in accuracy before training (by up to 0.100)" in note for note in notes(results, summary))
    bare = replace(results, curves=results.curves.head(0))
    assert any(note.startswith("curves.csv lacks evaluations of 2 runs") for note in notes(bare, summary))


def test_captions_name_seeds_interval_problems_and_emulation(summary, results):
    assert sample_text(summary) == "seeds 0-2, n = 2 to 3 (see the table)"
    for name, text in captions(summary, results.curves).items():
        assert "seeds 0-2" in text and "Emulated: bf16, fp8_rollout (trainer and rollout)" in text
        assert name == "stability" or ("512 fixed held-out problems" in text and "95% percentile bootstrap" in text)


def test_a_single_seed_is_called_an_illustration(make_run, tmp_path):
    make_run(precision="fp32", emulated=False)
    results = read_results(tmp_path / "study")
    summary = label_runs(results.summary)
    assert emulation_text(summary) == "nothing is emulated"
    assert all("illustration, n = 1 (seed 0)" in text for text in captions(summary, results.curves).values())
    assert all("illustration, n = 1" in text for text in figure_notes(summary).values())
    assert all("bootstrap" not in text for text in captions(summary, results.curves).values())


def test_seeds_in_words(summary):
    assert seeds_text(summary["seed"].head(0)) == ""
    assert [seeds_text(summary["seed"] * factor) for factor in (1, 2)] == ["0-2", "0, 2, 4"]
