"""MLflow, the real one on SQLite: everything arrives once, whatever happens to the sender or to what it remembers."""

from __future__ import annotations

import json
import re
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
from filelock import FileLock

from drpo_bench.config import RunConfig, canonical
from drpo_bench.records import cut_back, read_json, read_records, write_json
from drpo_bench.tracking import Sender, contents, tracker
from drpo_bench.tracking.sync import ExperimentSync
from drpo_bench.tracking.tail import Tail
from tests.mlflow_store import add_records, add_run, check_complete, find

LEGAL = re.compile(r"[A-Za-z0-9_./ -]+")  # for every store that MLflow has


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / tmp_path.name  # a name of its own in the store that all tests share


def test_parent_child_params_state_and_files(uri, folder):
    run_dir = add_run(folder, question="?" * 7000)
    write_json(folder / "experiment.json", {"name": "x", "question": "Which?", "file": "x.toml"})
    write_json(folder / "runner.json", {"command": "/bin/drpo-bench run x.toml --set a=1"})
    assert Sender(folder, uri).attempt()
    child = check_complete(uri, folder)[run_dir.path.name]
    assert child.info.run_name == "drpo fp32 s0 nano 00000000"
    assert child.data.params["loss.delta"] == "inf"
    assert child.data.params["question"] == "?" * 5997 + "..."
    assert child.info.status == "RUNNING"
    client, parent, _ = find(uri, folder)
    assert parent.data.tags["command"] == "drpo-bench run x.toml --set a=1"
    assert "Which?" in client.get_experiment(parent.info.experiment_id).tags["mlflow.note.content"]

    write_json(run_dir.config, json.loads(run_dir.config.read_text()) | {"warmstart_sha256": "abc"})
    run_dir.set_status("collapsed", seconds=1.5)
    (folder / "figures").mkdir()
    (folder / "figures" / "curves.png").write_bytes(b"png")
    (folder / "report.md").write_text("# report")
    assert Sender(folder, uri).attempt(artifacts=True)
    child = check_complete(uri, folder)[run_dir.path.name]
    assert child.info.status == "FINISHED"
    assert child.info.end_time - child.info.start_time == 1250  # of the last record, at 1.25 s
    assert child.data.params["warmstart_sha256"] == "abc"
    client, parent, _ = find(uri, folder)
    assert parent.info.status == "FINISHED"
    assert {artifact.path for artifact in client.list_artifacts(parent.info.run_id)} == {"figures", "report.md"}


def test_new_records_are_sent_once_and_by_one_sender_that_reads_on(uri, folder):
    run_dir = add_run(folder)
    sender = Sender(folder, uri)
    assert sender.attempt() and sender.records == 3
    assert sender.attempt() and sender.records == 3
    add_records(run_dir, range(3, 5))
    assert sender.attempt() and sender.records == 5
    other = Sender(folder, uri)  # a new process asks MLflow
    assert other.attempt() and other.records == 0
    check_complete(uri, folder)


@pytest.mark.parametrize("lost", ["the steps since the checkpoint", "every step"])
def test_a_resumed_run_sends_no_step_again(uri, folder, lost):
    run_dir = add_run(folder, steps=5)
    sender = Sender(folder, uri)
    assert sender.attempt()
    kept = 0 if lost == "every step" else 2
    lines = run_dir.metrics.read_bytes().splitlines(keepends=True)
    cut_back(run_dir.metrics, sum(len(line) for line in lines[:kept]))
    add_records(run_dir, range(kept, 8), pace=0.75)  # the same values, other seconds
    assert sender.attempt() and sender.records == 8
    assert Sender(folder, uri).attempt()
    check_complete(uri, folder, resumed=True)


def test_a_run_started_over_with_other_numerics_is_another_run(uri, folder):
    run_dir = add_run(folder)
    assert Sender(folder, uri).attempt()
    shutil.rmtree(run_dir.path)
    run_dir = add_run(folder, numerics_version=4)
    sender = Sender(folder, uri)
    assert sender.attempt() and sender.records == 3
    client, parent, _ = find_many(uri, folder)
    runs = client.search_runs([parent.info.experiment_id])
    assert sorted(run.data.tags["drpo_bench.run"].split("/")[-1] for run in runs) == ["3", "4", "parent"]


def find_many(uri, folder):
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(folder.name).experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    return client, parent, runs


@pytest.mark.parametrize("damage", ["{", "", '{"run_id": 3}', "[]", "\x00" * 40])
def test_damaged_files_of_the_sender_count_as_absent(uri, folder, damage):
    run_dir = add_run(folder)
    assert Sender(folder, uri).attempt()
    files = [folder / "mlflow.json", run_dir.path / "mlflow.json"]
    for path in files:
        path.write_text(damage)
    sender = Sender(folder, uri)
    assert sender.attempt() and sender.records == 0
    (folder / "mlflow.id").write_text(damage)  # the runs' files have copies
    assert Sender(folder, uri).attempt()
    check_complete(uri, folder)
    assert json.loads(files[1].read_text())["folder"] == (folder / "mlflow.id").read_text().strip()


def test_another_store_and_back_again(uri, folder, tmp_path):
    add_run(folder)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    for store in (uri, other, uri, other):
        assert Sender(folder, store).attempt()
        check_complete(store, folder)


def test_a_store_that_lost_everything_is_filled_again(uri, folder, tmp_path):
    add_run(folder)
    lost = tmp_path / "lost.db"
    assert Sender(folder, f"sqlite:///{lost}").attempt()
    lost.rename(tmp_path / "backup.db")
    assert Sender(folder, uri).attempt()
    check_complete(uri, folder)


@pytest.mark.parametrize("deleted", ["runs", "experiment"])
def test_what_was_deleted_on_the_page_comes_back(uri, folder, deleted):
    run_dir = add_run(folder)
    assert Sender(folder, uri).attempt()
    client, parent, children = find(uri, folder)
    if deleted == "experiment":
        client.delete_experiment(parent.info.experiment_id)
    else:
        for run in (parent, *children.values()):
            client.delete_run(run.info.run_id)
    add_records(run_dir, range(3, 4))
    sender = Sender(folder, uri)
    assert sender.attempt() and sender.records == 1
    check_complete(uri, folder)


def test_of_two_runs_that_a_late_answer_made_one_is_kept(uri, folder):
    run_dir = add_run(folder)
    first = ExperimentSync(folder, uri)
    first.runs.known.clear()  # both ask before either has created
    second = ExperimentSync(folder, uri)
    second.runs.known.clear()
    kept = first.runs.child(run_dir, read_json(run_dir.config), run_dir.status())
    first.send_records(run_dir, kept)
    second.runs.create(f"{run_dir.path.name}/3", run_dir.path.name, {"mlflow.parentRunId": first.runs.parent.run_id}, 0)
    assert Sender(folder, uri).attempt()
    assert check_complete(uri, folder)[run_dir.path.name].info.run_id == kept.run_id


def test_two_senders_at_once_send_once(uri, folder):
    for number in range(3):
        add_run(folder, f"run-{number}", steps=20)
    senders = [Sender(folder, uri) for _ in range(2)]
    threads = [threading.Thread(target=sender.attempt) for sender in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(sender.records for sender in senders) == 60
    check_complete(uri, folder)


def test_a_sender_waits_for_the_other(uri, folder, monkeypatch, capsys):
    add_run(folder)
    monkeypatch.setattr(tracker, "LOCK_SECONDS", 0.1)
    with FileLock(folder / "mlflow.lock"):
        assert not Sender(folder, uri).attempt()
    assert "mlflow.lock" in capsys.readouterr().err
    assert Sender(folder, uri).attempt()


def test_a_run_with_a_damaged_file_is_left_out_and_told_of(uri, folder, capsys):
    broken, whole = add_run(folder, "a"), add_run(folder, "b")
    lines = broken.metrics.read_text().splitlines(keepends=True)
    broken.metrics.write_text(lines[0] + lines[1][:9] + "\n" + lines[2])
    sender = Sender(folder, uri)
    assert not sender.attempt() and not sender.attempt()
    assert capsys.readouterr().err.count("warning: MLflow: left out: ") == 1
    shutil.rmtree(broken.path)
    client, _, children = find(uri, folder)
    assert len(client.get_metric_history(children[whole.path.name].info.run_id, "reward/mean")) == 3


class Killed(BaseException):
    """Stands for a SIGKILL: nothing may catch it."""


class DyingClient:
    """A client that fails with an error just before, or just after, its n-th call."""

    def __init__(self, client, call, before, error):
        self.client, self.left, self.before, self.error = client, call, before, error

    def __getattr__(self, name):
        method = getattr(self.client, name)

        def call(*args, **kwargs):
            self.left -= 1
            if self.left == 0 and self.before:
                raise self.error
            result = method(*args, **kwargs)
            if self.left == 0:
                raise self.error
            return result

        return call


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("error", [Killed, ConnectionError])
@pytest.mark.parametrize("start", ["fresh", "resumed"])
def test_a_failure_at_any_call_leaves_nothing_twice_and_nothing_missing(
    uri, tmp_path, monkeypatch, start, error, before
):
    monkeypatch.setattr(contents, "METRICS_A_REQUEST", 10)  # several requests a run
    real, calls, failed = mlflow.MlflowClient, 0, True
    while failed:
        calls += 1
        folder = tmp_path / f"{tmp_path.name}_{calls}"
        first = add_run(folder, "a", steps=6)
        (folder / "report.md").write_text("# report")
        if start == "resumed":
            assert Sender(folder, uri).attempt()
            lines = first.metrics.read_bytes().splitlines(keepends=True)
            cut_back(first.metrics, sum(len(line) for line in lines[:3]))
            add_records(first, range(3, 9), pace=0.75)
        add_run(folder, "b", steps=4).set_status("finished", seconds=2.0)
        first.set_status("failed", reason="?")
        sender = Sender(folder, uri)
        with monkeypatch.context() as patch:
            patch.setattr(mlflow, "MlflowClient", lambda uri, call=calls: DyingClient(real(uri), call, before, error))
            with suppress(Killed):
                failed = not sender.attempt(artifacts=True)
        if error is Killed or not failed:
            sender = Sender(folder, uri)  # the next process; after an error it is the same one that tries again
        assert sender.attempt(artifacts=True)
        children = check_complete(uri, folder, resumed=start == "resumed")
        assert {name: run.info.status for name, run in children.items()} == {"a": "FAILED", "b": "FINISHED"}
        assert find(uri, folder)[1].info.status == "FAILED"
    assert calls == {"fresh": 22, "resumed": 18}[start]  # all of them, and one that was not reached


def test_a_tail_reads_on_and_starts_over_where_the_file_was_cut(tmp_path):
    run_dir = add_run(tmp_path, steps=3)
    tail = Tail(run_dir.metrics)
    assert [r["step"] for r in tail.read()] == [0, 1, 2]
    with run_dir.metrics.open("a") as file:
        file.write('{"step": 3, "ti')
    assert tail.read() == []
    with run_dir.metrics.open("a") as file:
        file.write('me_s": 9.0}\n')
    assert tail.read() == [{"step": 3, "time_s": 9.0}]
    whole = run_dir.metrics.read_bytes()
    cut_back(run_dir.metrics, whole.index(b'{"step": 1,'))
    assert [r["step"] for r in tail.read()] == [0]
    add_records(run_dir, range(1, 2), pace=0.75)
    assert [r["step"] for r in tail.read()] == [1]
    lines = run_dir.metrics.read_bytes().splitlines(keepends=True)
    cut_back(run_dir.metrics, len(lines[0]))
    add_records(run_dir, range(1, 9), pace=0.125)  # longer than before
    assert [r["step"] for r in tail.read()] == list(range(9))


def test_requests_hold_whole_records_up_to_the_limit(monkeypatch):
    monkeypatch.setattr(contents, "METRICS_A_REQUEST", 7)
    records = [{"step": step, "time_s": 0.5, "a": 1.0, "b": 2.0} for step in range(5)]
    sent = list(contents.requests(records, 1000))
    assert [(last, len(metrics)) for last, metrics in sent] == [(1, 6), (3, 6), (4, 3)]
    assert {metric.timestamp for _, metrics in sent for metric in metrics} == {1500}
    assert list(contents.requests([], 0)) == []


def test_every_name_is_legal_everywhere(uri, tmp_path):
    """Metrics as docs/metrics.md names them (test_docs.py holds the page to what is logged), params of a config."""
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    names = {name.replace("<task>", "word_problems") for name in re.findall(r"`([A-Za-z0-9_./<>]+[a-z0-9])`", page)}
    names |= {f"{name}_pos" for name in names} | {f"{name}/u_le_0.01" for name in names}
    names = {name for name in names if not name.startswith(".")}
    params = contents.params(canonical(RunConfig.model_validate({"experiment": {"name": "x"}}).model_dump()))
    assert len(names) > 100 and len(params) > 50
    assert all(LEGAL.fullmatch(name) and len(name) <= 250 for name in names | params.keys())
    run_dir = add_run(tmp_path / "names", steps=0, **params)
    with run_dir.metrics.open("w") as file:
        file.write(
            json.dumps({"step": 0, "time_s": 0.5} | dict.fromkeys(sorted(names - {"step", "time_s"}), 1.0)) + "\n"
        )
    assert len(next(read_records(run_dir.metrics))) > 100
    assert Sender(run_dir.path.parents[1], uri).attempt()
    check_complete(uri, run_dir.path.parents[1])
