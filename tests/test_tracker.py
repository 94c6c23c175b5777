"""A store that is locked, full, dead or mute: training goes on, one warning, and everything arrives later."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from drpo_bench.errors import UserError
from drpo_bench.tracking import Sender, Tracker, tracker
from drpo_bench.tracking.store import StoreError, check_store, probe, reason, shown, store_uri
from tests.mlflow_store import add_records, add_run, check_complete


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / tmp_path.name


@contextmanager
def locked(uri):
    """The database in the hands of another connection."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def full_disk(uri):
    """No file of this process can grow beyond the size that the database has now."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(uri.removeprefix("sqlite:///")), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("trouble", [locked, full_disk])
def test_a_gap_is_warned_about_once_and_filled(uri, folder, capfd, trouble):
    run_dir = add_run(folder)
    sender = Sender(folder, uri)
    assert sender.attempt()
    add_records(run_dir, range(3, 400))
    with trouble(uri):
        assert not sender.attempt()
        assert not sender.attempt()
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1, errors
    assert "cannot be written" in errors[0] and f"`drpo-bench sync {folder}`" in errors[0]
    add_records(run_dir, range(400, 402))
    assert sender.attempt() and sender.records == 402
    check_complete(uri, folder)


@pytest.mark.slow
def test_the_process_sends_and_survives_ctrl_c_and_a_locked_database(uri, folder, capfd):
    run_dir = add_run(folder)
    process = Tracker(folder, uri)
    process.start()
    wait_for(lambda: (run_dir.path / "mlflow.json").exists())
    os.kill(process.running[0].pid, signal.SIGINT)
    add_records(run_dir, range(3, 6))
    with locked(uri):
        assert not process.finish()
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("warning: "), errors
    run_dir.set_status("finished", seconds=3.0)
    again = Tracker(folder, uri)  # the next `drpo-bench run`
    assert again.finish()
    check_complete(uri, folder)


@pytest.mark.slow
def test_the_end_of_a_sweep_does_not_hang(folder, capfd, monkeypatch):
    add_run(folder)
    monkeypatch.setattr(tracker, "STOP_SECONDS", 1.0)
    monkeypatch.setattr(tracker, "FINISH_SECONDS", 3.0)
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:  # accepts, and never answers
        process = Tracker(folder, f"http://127.0.0.1:{mute.getsockname()[1]}")
        process.start()
        begin = time.monotonic()
        assert not process.finish()
    assert time.monotonic() - begin < 10
    assert not multiprocessing.active_children()
    assert "is not done after 3 s" in capfd.readouterr().err


@pytest.mark.slow
def test_what_a_killed_process_did_not_send_arrives_in_the_end(uri, folder, capfd):
    add_run(folder)
    process = Tracker(folder, uri)
    process.start()
    process.running[0].kill()
    process.running[0].join()
    assert process.finish()
    assert not capfd.readouterr().err
    check_complete(uri, folder)


@pytest.mark.slow
def test_the_process_ends_with_its_runner_however_that_goes(uri, folder):
    run_dir = add_run(folder)
    script = folder / "runner.py"
    script.write_text(
        "import sys, time; from pathlib import Path; from drpo_bench.tracking import Tracker\n"
        "if __name__ == '__main__':\n    Tracker(Path(sys.argv[1]), sys.argv[2]).start(); time.sleep(600)\n"
    )
    runner = subprocess.Popen([sys.executable, script, folder, uri])
    wait_for(lambda: (run_dir.path / "mlflow.json").exists())
    children = psutil.Process(runner.pid).children(recursive=True)
    runner.kill()
    runner.wait()
    assert children and not psutil.wait_procs(children, timeout=30)[1]


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def closed_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("foo://x", "foo://x: is no store: sqlite:///FILE"),
        ("postgres://me:secret@host/x", "did you mean 'postgresql'?"),
        ("mlruns", "mlruns: is no store"),
        ("file:///tmp/mlruns", "is no store"),
        ("sqlite://", "names no file"),
        ("sqlite:///{tmp}/text/x/mlflow.db", "text cannot be written"),
        ("sqlite:///{tmp}/text", "file is not a database"),
        ("sqlite:///{tmp}", "unable to open database file"),
        ("http://me:secret@127.0.0.1:{port}", "onnection refused"),
        ("http://127.0.0.1:port", "port"),
        ("postgresql+psycopg2://me:secret@127.0.0.1:{port}/x", "onnection refused"),
        ("postgresql+nodriver://127.0.0.1/x", "nodriver"),
        ("mysql://127.0.0.1/x", "needs MySQLdb"),
    ],
)
def test_a_store_that_refuses_is_one_line(address, message, tmp_path):
    (tmp_path / "text").write_text("not a database, and longer than its header of sixteen bytes" * 20)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as refusal:
        check_store(address.format(tmp=tmp_path, port=closed_port()))
    assert message in str(refusal.value)
    assert "--no-tracking" in str(refusal.value) and "drpo-bench sync" in str(refusal.value)
    assert "\n" not in str(refusal.value) and "secret" not in str(refusal.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_store_that_is_locked_or_still_to_be_made_is_not_refused(uri, folder, tmp_path):
    add_run(folder)
    assert Sender(folder, uri).attempt()
    with locked(uri):
        check_store(uri)
        with pytest.raises(StoreError, match="locked"):
            probe(uri)
    check_store(f"sqlite:///{tmp_path}/new/folder/mlflow.db")
    assert not (tmp_path / "new").exists()


def test_the_store_in_use(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://host/x")
    monkeypatch.setattr("drpo_bench.tracking.store.find_spec", lambda name: None)
    assert store_uri(tmp_path) == "postgresql+psycopg2://host/x"
    monkeypatch.setattr("drpo_bench.tracking.store.find_spec", lambda name: name)
    assert store_uri(tmp_path) == "postgresql://host/x"


def test_passwords_are_not_shown_and_reasons_are_short():
    assert shown("postgresql://me:hunter2@host:5432/x") == "postgresql://***@host:5432/x"
    assert shown("postgresql://host/x?user=me&password=hunter2&a=b") == "postgresql://host/x?user=me&password=***&a=b"
    assert shown("sqlite:///a.db") == "sqlite:///a.db"
    text = "request failed with exception Pool(host='x'): retries (Caused by E('<a at 0x>: no connection: refused'))"
    assert reason(ConnectionError(text)) == "refused"
    assert reason(OSError("x" * 999)) == "x" * 200
    assert reason(ValueError()) == "ValueError"


def cli(*arguments: str, cwd: Path, store: str | None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    environment |= {"MLFLOW_TRACKING_URI": store} if store else {}
    command = [sys.executable, "-m", "drpo_bench.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quickstart"], "onnection refused"),
        (["sync", "."], "onnection refused"),
    ],
)
def test_commands_refuse_before_anything_is_written(arguments, message, tmp_path):
    (tmp_path / "runs").mkdir()
    done = cli(*arguments, cwd=tmp_path, store=f"http://127.0.0.1:{closed_port()}")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs"] and not list((tmp_path / "runs").iterdir())


def test_a_page_that_cannot_be_served(uri, folder, tmp_path):
    add_run(folder)
    assert Sender(folder, uri).attempt()
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        done = cli("ui", "--port", port, cwd=tmp_path, store=uri)
    assert done.returncode == 2
    assert f"--port {port}: Address already in use; choose another --port" in done.stderr
    missing = cli("ui", "results", cwd=tmp_path, store=None)
    assert missing.returncode == 2 and "no MLflow store; `drpo-bench run` makes one" in missing.stderr
    served = cli("ui", cwd=tmp_path, store="https://me:secret@mlflow.example")
    assert served.returncode == 0 and served.stdout.startswith("https://***@mlflow.example is a server already")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_page_is_served_until_ctrl_c_and_leaves_no_process(folder, number):
    add_run(folder)
    assert Sender(folder, f"sqlite:///{folder.parent}/mlflow.db").attempt()
    port = closed_port()
    command = [sys.executable, "-m", "drpo_bench.cli", "ui", str(folder), "--port", str(port)]
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment)
    before = sorted(folder.rglob("*"))
    try:
        assert process.stdout.readline() == f"MLflow: http://127.0.0.1:{port} (Ctrl-C to stop)\n"
        page = f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning"
        assert process.stdout.readline() == f"  {folder.name}: {page}\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
            assert answer.status == 200
        everyone = psutil.Process(process.pid).children(recursive=True)
        assert everyone
    finally:
        process.send_signal(number)
        assert process.wait(30) == 0
    assert not psutil.wait_procs(everyone, timeout=10)[1]
    assert sorted(folder.rglob("*")) == before
