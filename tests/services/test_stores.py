"""mlflow server and PostgreSQL, the real ones: every number arrives once, also when they stop in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from drpo_bench.errors import UserError
from drpo_bench.records import cut_back
from drpo_bench.tracking import Sender
from drpo_bench.tracking.store import check_store
from tests.mlflow_store import add_records, add_run, check_complete
from tests.services.servers import SWEEP, Cluster, drpo_bench, free_port


@pytest.fixture(params=["server on SQLite", "server on PostgreSQL", "PostgreSQL"])
def store(request, serve, tmp_path) -> str:
    """The address to send to: of a database, or of the server before it."""
    if request.param == "server on SQLite":
        return serve(f"sqlite:///{tmp_path}/server.db").address
    postgres = request.getfixturevalue("postgres")
    return serve(postgres).address if request.param == "server on PostgreSQL" else postgres


def test_records_arrive_once_and_non_finite_ones_too(store, tmp_path):
    folder = tmp_path / "study"
    first, second = add_run(folder, "a", steps=300), add_run(folder, "b", steps=4)
    sender = Sender(folder, store)
    assert sender.attempt() and sender.records == 304
    add_records(first, range(300, 302))
    cut_back(second.metrics, second.metrics.read_bytes().index(b'{"step": 2,'))
    add_records(second, range(2, 7), pace=0.75)
    for run_dir in (first, second):
        run_dir.set_status("finished", seconds=9.0)
    (folder / "mlflow.json").write_text("{")
    assert Sender(folder, store).attempt(artifacts=True)
    check_complete(store, folder, resumed=True)


def test_a_database_that_stops_and_comes_back(postgres, cluster: Cluster, tmp_path, capfd):
    folder = tmp_path / "study"
    run_dir = add_run(folder)
    sender = Sender(folder, postgres)
    assert sender.attempt()
    cluster.stop()
    try:
        add_records(run_dir, range(3, 30))
        assert not sender.attempt() and not sender.attempt()
        with pytest.raises(UserError, match="onnection refused"):
            check_store(postgres)
    finally:
        cluster.start()
    errors = capfd.readouterr().err
    assert errors.count("warning: ") == 1 and cluster.password not in errors
    assert sender.attempt() and sender.records == 30
    check_complete(postgres, folder)


def test_a_database_that_lets_nobody_in(cluster: Cluster, tmp_path):
    (tmp_path / "runs").mkdir()
    done = subprocess.run(
        **drpo_bench("sync", ".", cwd=tmp_path, store=cluster.uri("postgres", "wrong")), capture_output=True
    )
    assert done.returncode == 2
    assert "password authentication failed" in done.stderr and "wrong" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_server_that_stops_while_a_sweep_runs(serve, tmp_path):
    """Training goes on with one warning; the next start, and `drpo-bench sync`, send the rest."""
    server = serve(f"sqlite:///{tmp_path}/server.db")
    (tmp_path / "small.toml").write_text(SWEEP.replace("steps = 20", "steps = 60"))
    command = drpo_bench("run", "small.toml", "--workers", "1", cwd=tmp_path, store=server.address)
    log = tmp_path / "run.txt"
    with log.open("w") as file, subprocess.Popen(**command, stdout=file, stderr=file) as sweep:
        folder = tmp_path / "results" / "small"
        deadline = time.monotonic() + 120
        while not list(folder.glob("runs/*/mlflow.json")):
            assert time.monotonic() < deadline and sweep.poll() is None, log.read_text()
            time.sleep(0.05)
        server.stop()
        assert sweep.wait(180) == 0, log.read_text()
    assert log.read_text().count("warning: MLflow at") == 1, log.read_text()
    statuses = [json.loads(path.read_text()) for path in folder.glob("runs/*/status.json")]
    assert [status["state"] for status in statuses] == ["finished", "finished"]
    server.start()
    done = subprocess.run(**drpo_bench("sync", str(folder), cwd=tmp_path, store=server.address), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert f"records sent to {server.address}" in done.stdout
    check_complete(server.address, folder)
    records = {path: path.read_bytes() for path in folder.glob("runs/*/metrics.jsonl")}
    again = subprocess.run(**command, capture_output=True)
    assert again.returncode == 0 and f"MLflow: {server.address}" in again.stdout
    assert records == {path: path.read_bytes() for path in folder.glob("runs/*/metrics.jsonl")}
    check_complete(server.address, folder)
    assert Path(tmp_path / "artifacts").is_dir()  # the server's place, and none of ours
    assert not (tmp_path / "results" / "mlflow").exists() and not (tmp_path / "mlruns").exists()


def test_the_page_of_a_database(postgres, cluster: Cluster, tmp_path):
    folder = tmp_path / "study"
    add_run(folder)
    assert Sender(folder, postgres).attempt()
    port = free_port()
    command = drpo_bench("ui", "--port", str(port), cwd=tmp_path, store=postgres)
    with subprocess.Popen(**command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline().startswith(f"MLflow: http://127.0.0.1:{port} ")
            assert process.stdout.readline().startswith("  study: ")
            everyone = [process, *psutil.Process(process.pid).children(recursive=True)]
            assert not any(cluster.password in " ".join(psutil.Process(p.pid).cmdline()) for p in everyone)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
