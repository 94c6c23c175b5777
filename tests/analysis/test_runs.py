"""One run directory as rows: final score, filled evaluations, windows, identity."""

from __future__ import annotations

import pytest

from drpo_bench.analysis.runs import CURVE_COLUMNS, final_score, read_run
from drpo_bench.records import RunDir, append_record, read_json, write_json


def accuracies(run):
    return [(row["step"], row["eval/accuracy"]) for row in run.curves]


@pytest.mark.parametrize(
    ("values", "score"),
    [
        ([0.1, 0.5], 0.5),  # ceil(0.4) = 1
        ([0.1, 0.2, 0.3, 0.4, 0.5], 0.5),  # ceil(1.0) = 1
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.9], 0.7),  # ceil(1.2) = 2
        ([0.0] * 9 + [0.4, 0.6], 1 / 3),  # ceil(2.2) = 3
    ],
)
def test_final_score_is_the_mean_of_the_last_fifth(values, score):
    assert final_score(values) == pytest.approx(score)


def test_a_finished_run(make_run):
    row = read_run(make_run(accuracies=(0.4, 0.5, 0.7, 0.65, 0.6, 0.5, 0.58))).summary
    assert (row["initial_accuracy"], row["peak_accuracy"]) == (0.4, 0.7)
    assert row["final_accuracy"] == pytest.approx(0.54)  # (0.5 + 0.58) / 2
    assert row["gain"] == pytest.approx(0.14)
    assert (row["emulated"], row["seconds"], row["evaluations"]) == ("rollout+trainer", 30.0, 7)
    assert (row["lowprob_frac"], row["mismatch_k3"]) == (0.08, 1e-3)


def test_after_a_non_finite_end_evaluations_count_as_zero(make_run):
    run = read_run(
        make_run(accuracies=(0.4, 0.5, 0.6), state="collapsed", reason="non_finite", collapse_step=25, step=25)
    )
    assert accuracies(run) == [(0, 0.4), (10, 0.5), (20, 0.6), (30, 0.0), (40, 0.0), (50, 0.0), (60, 0.0)]
    assert run.summary["final_accuracy"] == 0.0


def test_a_late_non_finite_end_keeps_what_was_measured_before(make_run):
    options = {"state": "collapsed", "reason": "non_finite", "collapse_step": 57}
    run = read_run(make_run(accuracies=(0.4, 0.5, 0.6, 0.6, 0.6, 0.6), **options))
    assert run.summary["final_accuracy"] == pytest.approx(0.3)  # (0.6 + 0.0) / 2


def test_a_collapse_by_accuracy_is_scored_as_measured(make_run):
    options = {"state": "collapsed", "reason": "accuracy", "collapse_step": 30}
    run = read_run(make_run(accuracies=(0.4, 0.5, 0.2, 0.1, 0.0, 0.1, 0.05), **options))
    assert run.summary["final_accuracy"] == pytest.approx(0.075)


@pytest.mark.parametrize("state", ["pending", "running", "failed"])
def test_an_unfinished_run_has_no_final_score(make_run, state):
    row = read_run(make_run(accuracies=(0.4, 0.9), state=state, step=10, reason="two\nlines")).summary
    assert "final_accuracy" not in row and "gain" not in row and "peak_accuracy" not in row
    assert (row["state"], row["initial_accuracy"], row["reason"]) == (state, 0.4, "two lines")


def test_metrics_are_means_since_the_evaluation_before_and_maxima_the_largest(make_run):
    run_dir = make_run(accuracies=(0.4,), without=["optim/grad_norm"])
    for step, norm in ((1, 1.0), (2, 3.0), (3, None), (11, 50.0)):
        record = {"step": step, "time_s": 1.0}
        if norm is not None:  # measured every so often only
            record |= {"optim/grad_norm": norm, "optim/grad_norm_max": norm, "offpolicy/ratio_max": norm}
        append_record(run_dir.metrics, record)
    append_record(run_dir.metrics, {"step": 20, "time_s": 2.0, "eval/arithmetic/accuracy": 0.5})
    row = read_run(run_dir).curves[1]
    assert row["optim/grad_norm"] == pytest.approx(18.0)  # (1 + 3 + 50) / 3
    assert row["optim/grad_norm_max"] == row["offpolicy/ratio_max"] == 50.0
    assert row["policy/entropy"] is None


def test_identity_comes_from_the_config_not_from_the_name(make_run):
    run_dir = make_run(loss={"id": "dppo_tv", "delta_low": 0.3}, changes={"train": {"steps": 60, "lr": 1e-3}})
    moved = RunDir(run_dir.path.rename(run_dir.path.with_name("fp32-grpo-s9")))
    row = read_run(moved).summary
    assert (row["loss"], row["precision"], row["seed"]) == ("dppo_tv", "bf16", 0)
    assert row["loss_params"] == "delta_low=0.3 delta_high=0.15 ratio_cap=inf"
    assert row["fields"] == "eval.problems=512; loss.delta_low=0.3; rollout.lag=2; train.lr=0.001; train.steps=60"


def test_the_setting_is_everything_but_loss_and_seed(make_run):
    settings = [read_run(make_run(loss=loss, seed=seed)).summary["setting"] for loss, seed in (("drpo", 0), ("spo", 1))]
    other = read_run(make_run(changes={"task": {"name": "arithmetic", "max_operand": 9}})).summary["setting"]
    assert settings[0] == settings[1] != other


def test_a_setting_is_that_of_the_file_whatever_defaults_a_later_version_adds(make_run):
    run_dir = make_run()
    before = read_run(run_dir).summary["setting"]
    data = read_json(run_dir.config)
    write_json(run_dir.config, data | {"checkpoint": {"every": 1, "keep": 1}, "warmstart_sha256": "ab"})
    assert read_run(run_dir).summary["setting"] == before
    del data["metrics"]  # a table that this run's version did not know
    write_json(run_dir.config, data)
    assert read_run(run_dir).summary["setting"] != before


def test_a_checkpoint_has_no_architecture_of_ours(make_run):
    row = read_run(make_run(changes={"model": {"name": "Qwen/Qwen3-0.6B"}})).summary
    assert (row["model"], row["architecture"]) == ("Qwen/Qwen3-0.6B", "checkpoint")


def test_emulation_is_unknown_without_an_environment(make_run):
    run_dir = make_run()
    env = read_json(run_dir.env) | {"emulated": {"trainer": False, "rollout": True}}
    write_json(run_dir.env, env)
    assert read_run(run_dir).summary["emulated"] == "rollout"
    run_dir.env.unlink()
    assert read_run(run_dir).summary["emulated"] == "unknown"


def test_curves_can_be_committed():
    assert len(CURVE_COLUMNS) <= 25
