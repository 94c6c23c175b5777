"""MLflow's database is locked, or its server dies: training goes on, one warning, later everything is sent once."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.tools import TWO_RUNS, check_tracked, cli, command, environment, states, write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
RUN = ("run", "small.toml", "--workers", "1")
SLACK = 8.0  # seconds that a sweep may take longer: SQLite waits for a lock before it gives up


def warnings(said: str) -> list[str]:
    """The lines that warn of MLflow."""
    return re.findall(r".*MLflow at .* cannot be written.*|warning: MLflow.*", said)


def test_a_locked_database_costs_no_run_no_record_and_little_time(tmp_path):
    write_sweep(tmp_path, TWO_RUNS, steps=20)
    results = tmp_path / "results"
    begin = time.monotonic()
    before = cli(*RUN, "--set", "experiment.name=before", cwd=tmp_path)  # which also makes the tables
    undisturbed = time.monotonic() - begin
    assert before.returncode == 0, before.stderr
    holder = sqlite3.connect(results / "mlflow.db", isolation_level=None)
    holder.execute("begin exclusive")
    begin = time.monotonic()
    done = cli(*RUN, cwd=tmp_path)
    elapsed = time.monotonic() - begin
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(warnings(done.stderr)) == 1, done.stderr
    assert "locked" in warnings(done.stderr)[0]
    assert "Traceback" not in done.stderr
    assert set(states(results / "small").values()) == {"finished"}
    assert elapsed < undisturbed + SLACK
    holder.rollback()
    holder.close()

    sync = cli("sync", "results/small", cwd=tmp_path)
    assert sync.returncode == 0, sync.stderr
    assert check_tracked(results / "mlflow.db", results / "small") == []
    assert cli("sync", "results/small", cwd=tmp_path).returncode == 0  # there is nothing left to send
    assert check_tracked(results / "mlflow.db", results / "small") == []


class Server:
    """`mlflow server` on a free port of the loopback address, with all of its processes."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{port}"
        self.database = folder / "server.db"
        self.command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        self.command += ["--backend-store-uri", f"sqlite:///{self.database}", "--workers", "1"]
        self.command += ["--artifacts-destination", str(folder / "artifacts")]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_DISABLE_TELEMETRY="true"),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.05)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """Everything at once, as when its machine is switched off."""
        if self.process:
            os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


def test_a_server_that_dies_while_a_sweep_runs_gets_the_rest_later(server, tmp_path):
    write_sweep(tmp_path, TWO_RUNS, steps=60)
    folder, tracking = tmp_path / "results" / "small", {"MLFLOW_TRACKING_URI": server.uri}
    with (tmp_path / "said.txt").open("ab") as said:
        runner = subprocess.Popen(
            command(*RUN), cwd=tmp_path, env=environment(**tracking), stdout=said, stderr=said, start_new_session=True
        )
    try:
        while not list(folder.glob("runs/*/mlflow.json")):
            assert runner.poll() is None, (tmp_path / "said.txt").read_text()
            time.sleep(0.01)
        server.kill()
        assert runner.wait(timeout=240) == 0, (tmp_path / "said.txt").read_text()
    finally:
        if runner.poll() is None:
            os.killpg(runner.pid, 9)
            runner.wait()
    said = (tmp_path / "said.txt").read_text()
    assert len(warnings(said)) == 1, said
    assert "Traceback" not in said
    assert set(states(folder).values()) == {"finished"}

    server.start()
    sync = cli("sync", "results/small", cwd=tmp_path, **tracking)
    assert sync.returncode == 0, sync.stderr
    assert check_tracked(server.database, folder) == []
