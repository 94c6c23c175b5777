"""What a run's directory must be for the run to go on in it, and what a changed experiment file is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from drpo_bench.analysis.load import read_results
from drpo_bench.cli import app
from drpo_bench.config import CHECKPOINT_VERSION, NUMERICS_VERSION, SCHEMA_VERSION
from drpo_bench.errors import UserError
from drpo_bench.records import RunDir, extent, read_json, write_json
from drpo_bench.same_run import check_same_run
from drpo_bench.sweep.folder import check_folder, has_result, unfinished_runs
from drpo_bench.sweep.plan import load_experiment
from tests.runs import stop_at_the_first_checkpoint

FILE = """
[experiment]
name = "study"
[train]
lr = 3e-4
[sweep]
seed = [0, 1]
loss = [{ id = "pg_is" }, { id = "drpo", delta = 0.15 }]
"""


def begin(run, out: Path) -> RunDir:
    """A run of the plan as a killed sweep leaves it: config and a checkpoint, no result."""
    run_dir = RunDir(out / run.experiment.name / "runs" / run.run_id)
    identity = {"schema_version": SCHEMA_VERSION, "numerics_version": NUMERICS_VERSION, "run_id": run.run_id}
    (run_dir.checkpoints / "step_2").mkdir(parents=True)
    write_json(run_dir.config, run.model_dump(mode="json") | identity)
    write_json(run_dir.checkpoints / "step_2" / "state.json", {"checkpoint_version": CHECKPOINT_VERSION})
    run_dir.set_status("pending", reason="stopped")
    write_json(out / "study" / "experiment.json", {"name": "study", "file": "study.toml"})
    return run_dir


@pytest.fixture
def plan(tmp_path):
    def load(text: str = FILE, *overrides: str):
        (tmp_path / "study.toml").write_text(text)
        return load_experiment(str(tmp_path / "study.toml"), overrides)

    return load


def change(path: Path, **fields) -> None:
    write_json(path, read_json(path) | fields)


def test_a_changed_field_of_a_begun_run_is_named(plan, tmp_path):
    run_dir = begin(plan().runs[0], tmp_path)
    check_folder(plan(), tmp_path)
    with pytest.raises(UserError, match=rf"{run_dir.path.name} was begun with train\.lr = 0\.0003 \(now 0\.0004\)"):
        check_folder(plan(FILE.replace("3e-4", "4e-4")), tmp_path)
    with pytest.raises(UserError, match=r"rollout\.lag = 0 \(now 5\), train\.lr = 0\.0003 \(now 0\.0004\)"):
        check_folder(plan(FILE.replace("3e-4", "4e-4"), "rollout.lag=5"), tmp_path)


def test_a_study_may_grow_and_shrink_along_its_axes(plan, tmp_path):
    begin(plan().runs[0], tmp_path)
    check_folder(plan(FILE.replace("[0, 1]", "[2, 3]")), tmp_path)
    check_folder(plan(FILE, "sweep.loss=[{id='spo'}]"), tmp_path)
    check_folder(plan(FILE, "checkpoint.every=3"), tmp_path)  # no part of a run's identity


def test_runs_that_are_done_do_not_bind_the_file(plan, tmp_path):
    begin(plan().runs[0], tmp_path).set_status("finished")
    check_folder(plan(FILE.replace("3e-4", "4e-4")), tmp_path)


def test_an_edited_config_json_is_named(plan, tmp_path):
    run = plan().runs[0]
    run_dir = begin(run, tmp_path)
    check_same_run(run_dir, run)
    change(run_dir.config, seed=9)
    with pytest.raises(UserError, match=r"config\.json: the run was begun with seed = 9 \(now 0\)"):
        check_folder(plan(), tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, "written by a newer drpo-bench"),
        ({"numerics_version": NUMERICS_VERSION + 1}, "written by a newer drpo-bench"),
        ({"numerics_version": NUMERICS_VERSION - 1}, "the two would not be one run"),
    ],
)
def test_a_run_of_another_version_is_refused_and_kept(fields, message, plan, tmp_path):
    run_dir = begin(plan().runs[0], tmp_path)
    change(run_dir.config, **fields)
    before = {path: path.read_bytes() for path in run_dir.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message):
        check_folder(plan(), tmp_path)
    assert before == {path: path.read_bytes() for path in run_dir.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("version", "hint"), [(CHECKPOINT_VERSION + 1, "update drpo-bench"), (1, "use --out")])
def test_a_checkpoint_of_another_version_is_refused(version, hint, plan, tmp_path):
    run_dir = begin(plan().runs[0], tmp_path)
    change(run_dir.checkpoints / "step_2" / "state.json", checkpoint_version=version)
    with pytest.raises(UserError, match=f"a checkpoint of version {version}, .*{hint}"):
        check_folder(plan(), tmp_path)


def test_a_folder_of_a_newer_drpo_bench_is_refused(plan, tmp_path):
    begin(plan().runs[0], tmp_path)
    change(tmp_path / "study" / "experiment.json", schema_version=SCHEMA_VERSION + 1)
    for look in (lambda: check_folder(plan(), tmp_path), lambda: read_results(tmp_path / "study")):
        with pytest.raises(UserError, match=r"experiment\.json: written by a newer drpo-bench"):
            look()
    done = CliRunner().invoke(app, ["sync", str(tmp_path / "study")])
    assert "written by a newer drpo-bench" in str(done.exception)


def test_a_damaged_result_is_to_be_done_again_although_the_summary_has_it(plan, tmp_path):
    run = plan().runs[0]
    run_dir = begin(run, tmp_path)
    run_dir.metrics.write_text('{"step": 0}\n')
    run_dir.samples.write_text("")
    write_json(run_dir.env, {})
    run_dir.set_status("finished", records={path.name: extent(path) for path in run_dir.records})
    summary = f"run_id,state,numerics_version\n{run.run_id},finished,{NUMERICS_VERSION}\n"
    (tmp_path / "study" / "summary.csv").write_text(summary)
    assert has_result(run_dir)
    assert run not in unfinished_runs(plan(), tmp_path, force=False)
    for damage in (
        lambda: run_dir.metrics.write_text('{"step": 1}\n'),
        lambda: run_dir.samples.write_text("{}\n"),
        lambda: run_dir.env.write_text("{"),
        lambda: run_dir.env.unlink(),
        lambda: (run_dir.path / "status.json").write_text(""),
    ):
        kept = {path: path.read_bytes() for path in run_dir.path.glob("*.json*")}
        damage()
        assert not has_result(run_dir)
        assert run in unfinished_runs(plan(), tmp_path, force=False)
        for path, data in kept.items():
            path.write_bytes(data)
        assert has_result(run_dir)


def test_a_warm_start_that_became_another_is_no_beginning(tiny_config, tmp_path, warmstart_cache):
    from drpo_bench.trainer import train

    config = tiny_config(train={"steps": 3}, checkpoint={"every": 1})
    stop_at_the_first_checkpoint(config, tmp_path, warmstart_cache)
    other = tmp_path / "other" / config.warmstart_key()
    train(tiny_config(seed=1, train={"steps": 1}), tmp_path / "seed1", warmstart_cache)
    other.parent.mkdir()
    (warmstart_cache / tiny_config(seed=1).warmstart_key()).rename(other)
    with pytest.raises(ValueError, match="warmstart: its weights are not those that the run began with"):
        train(config, tmp_path, other.parent)
