"""A sweep's file, `mlflow server`, PostgreSQL: what the tests with real services start, and how."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from drpo_bench.tracking.ui import stop, wait_until_it_answers

SWEEP = """
[experiment]
name = "small"
question = "Does every number arrive?"
[task]
name = "arithmetic"
min_terms = 2
max_terms = 2
max_operand = 9
[warmstart]
target = 0.0
max_steps = 10
eval_every = 10
eval_problems = 16
[rollout]
problems_per_batch = 4
group_size = 4
max_new_tokens = 24
[train]
steps = 20
updates_per_batch = 2
[eval]
every = 5
problems = 8
[sweep]
seed = [0]
precision = ["fp32"]
loss = [{ id = "pg_is" }, { id = "drpo", delta = 0.15 }]
"""


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return server.getsockname()[1]


def drpo_bench(*arguments: str, cwd: Path, store: str | None = None) -> dict[str, Any]:
    """Arguments of subprocess for a command in a folder, with the store that its environment names."""
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    environment |= {"MLFLOW_TRACKING_URI": store} if store else {}
    return {"args": [sys.executable, "-m", "drpo_bench.cli", *arguments], "cwd": cwd, "env": environment, "text": True}


class MLflowServer:
    """`mlflow server` before a database, as a team would run it; it can be stopped and started again."""

    def __init__(self, backend: str, folder: Path) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend, "--workers", "1"]
        self.command += ["--artifacts-destination", (folder / "artifacts").as_uri()]
        self.command += ["--host", "127.0.0.1", "--port", str(self.port)]
        self.log = (folder / "server.log").open("w+b")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.process = subprocess.Popen(
            self.command, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )
        wait_until_it_answers(self.process, f"{self.address}/health", self.log)

    def stop(self) -> None:
        if self.process:
            stop(self.process)
        self.process = None


class Cluster:
    """A PostgreSQL of our own, on a free port of the loopback address, with a password."""

    user, password = "drpo", "hunter2"

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.programs, self.port = folder, programs, free_port()
        self.prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
        if self.prefix:
            shutil.chown(folder, "postgres")
        (folder / "password").write_text(self.password)
        (folder / "password").chmod(0o644)
        self.run("initdb", "--username", self.user, "--auth", "scram-sha-256", "--pwfile", str(folder / "password"))

    def run(self, program: str, *arguments: str) -> None:
        command = [*self.prefix, str(self.programs / program), "--pgdata", str(self.folder / "data"), *arguments]
        with (self.folder / "log.txt").open("a") as log:  # the server keeps it open, which a pipe would wait for
            subprocess.run(command, check=True, stdout=log, stderr=log, cwd=self.folder)

    def start(self) -> None:
        options = f"-c port={self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self.run("pg_ctl", "--wait", "--options", options, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "--wait", "--mode", "immediate", "stop")

    def uri(self, database: str, password: str = password) -> str:
        return f"postgresql+psycopg2://{self.user}:{password}@127.0.0.1:{self.port}/{database}"
