"""MLflow, the real one on SQLite: everything arrives once, and a broken store never hurts."""

from __future__ import annotations

import json

import pytest

from drpo_bench.records import RunDir, append_record, write_json
from drpo_bench.tracking import ExperimentSync, Tracker, TrackingWarning


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def experiment(tmp_path, request):
    """A folder with one run of three records."""
    folder = tmp_path / f"study_{request.node.name}"
    run_dir = RunDir(folder / "runs" / "nano-fp32-drpo-s0-00000000")
    run_dir.path.mkdir(parents=True)
    write_json(run_dir.config, {"loss": {"id": "drpo", "delta": "inf"}, "seed": 0})
    run_dir.set_status("running", step=2)
    for step in range(3):
        append_record(
            run_dir.metrics, {"step": step, "time_s": step / 2, "reward/mean": step / 10, "eval/x/pass_at_8": 1.0}
        )
    return folder, run_dir


def history(uri, folder, key="reward/mean"):
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    child = json.loads((folder / "runs" / "nano-fp32-drpo-s0-00000000" / "mlflow.json").read_text())["run_id"]
    return client, child, [(m.step, m.value) for m in client.get_metric_history(child, key)]


def test_parent_child_params_and_metrics(uri, experiment):
    folder, run_dir = experiment
    assert ExperimentSync(folder, uri).sync() == 3
    client, child, values = history(uri, folder)
    assert values == [(0, 0.0), (1, 0.1), (2, 0.2)]
    run = client.get_run(child)
    assert run.data.params["loss.id"] == "drpo"
    assert run.data.tags["mlflow.parentRunId"] == json.loads((folder / "mlflow.json").read_text())["parent_run_id"]
    assert run.info.status == "RUNNING"
    run_dir.set_status("collapsed")
    ExperimentSync(folder, uri).sync()
    run = client.get_run(child)
    assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "collapsed")


def test_new_records_are_sent_once_even_if_the_cursor_is_lost(uri, experiment):
    folder, run_dir = experiment
    ExperimentSync(folder, uri).sync()
    append_record(run_dir.metrics, {"step": 3, "time_s": 9.0, "reward/mean": 0.3})
    assert ExperimentSync(folder, uri).sync() == 1
    cursor = json.loads((run_dir.path / "mlflow.json").read_text())
    write_json(run_dir.path / "mlflow.json", cursor | {"next_step": 0})  # died between sending and remembering
    ExperimentSync(folder, uri).sync()
    assert history(uri, folder)[2] == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3)]


def test_figures_and_report_are_artifacts_of_the_parent(uri, experiment):
    folder, _ = experiment
    (folder / "figures").mkdir()
    (folder / "figures" / "curves.png").write_bytes(b"png")
    (folder / "report.md").write_text("# report")
    tracker = Tracker(folder, uri)
    assert tracker.finish()
    client, _, _ = history(uri, folder)
    parent = json.loads((folder / "mlflow.json").read_text())["parent_run_id"]
    assert {artifact.path for artifact in client.list_artifacts(parent)} == {"figures", "report.md"}


def test_a_store_that_fails_warns_once_and_the_gap_is_replayed(uri, experiment):
    folder, _ = experiment
    broken = Tracker(folder, "sqlite:////proc/none/mlflow.db")
    with pytest.warns(TrackingWarning, match="sends it later") as warned:
        outcomes = [broken.attempt(artifacts=False) for _ in range(2)]
    assert outcomes == [False, False]
    assert len(warned) == 1
    assert Tracker(folder, uri).finish()
    assert len(history(uri, folder)[2]) == 3


def test_a_store_that_lost_the_runs_is_filled_again(uri, experiment):
    folder, run_dir = experiment
    ExperimentSync(folder, uri).sync()
    for path in (folder / "mlflow.json", run_dir.path / "mlflow.json"):  # as after deleting mlflow.db
        text = path.read_text()
        known = json.loads(text)
        lost = {known.get("parent_run_id"), known.get("run_id")} - {None}
        path.write_text(text.replace(lost.pop(), "0" * 32))
    assert ExperimentSync(folder, uri).sync() == 3
    assert len(history(uri, folder)[2]) == 3


def test_another_store_has_cursors_of_its_own(uri, experiment, tmp_path):
    folder, _ = experiment
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert ExperimentSync(folder, uri).sync() == 3
    assert ExperimentSync(folder, other).sync() == 3
    assert len(history(other, folder)[2]) == 3


def test_a_failure_while_describing_a_run_makes_no_second_one(uri, experiment, monkeypatch):
    folder, _ = experiment
    sync = ExperimentSync(folder, uri)
    monkeypatch.setattr(sync.client, "log_artifact", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            sync.sync()
    assert ExperimentSync(folder, uri).sync() == 3
    client, child, _ = history(uri, folder)
    experiment_id = client.get_run(child).info.experiment_id
    assert len(client.search_runs([experiment_id])) == 2  # the parent and one child
