"""`drpo-bench ui`: MLflow's own page for the store in use, on the loopback address, until Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import typer

from drpo_bench.errors import UserError
from drpo_bench.tracking.store import SERVERS, check_store, scheme_of, shown, sqlite_file

START_SECONDS = 120.0  # an idle machine takes 10
STOP_SECONDS = 10.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(uri: str, host: str, port: int) -> None:
    """Serve the store until Ctrl-C. Raises UserError where there is nothing to serve, or no place for it."""
    if scheme_of(uri) in SERVERS:
        typer.echo(f"{shown(uri)} is a server already: open it in a browser")
        return
    if scheme_of(uri) == "sqlite" and not sqlite_file(uri).exists():
        raise UserError(f"{sqlite_file(uri)}: no MLflow store; `drpo-bench run` makes one, `drpo-bench sync` fills it")
    check_store(uri)
    check_free(host, port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    try:
        with tempfile.TemporaryFile() as log, server(uri, host, port, log) as process:
            address = f"http://{host}:{port}"
            wait_until_it_answers(process, f"{address}/health", log)
            if host not in LOOPBACK:
                typer.echo(f"warning: {host} is not the loopback address; MLflow asks nobody for a password", err=True)
            typer.echo(f"MLflow: {address} (Ctrl-C to stop)")
            for name, page in pages(address):
                typer.echo(f"  {name}: {page}")
            process.wait()
            raise UserError(f"MLflow ended: {last_line(log)}")
    except KeyboardInterrupt:
        return


def check_free(host: str, port: int) -> None:
    """Raise UserError unless the port can be listened on."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: {os.strerror(error.errno or 0)}; choose another --port"
        ) from None


@contextmanager
def server(uri: str, host: str, port: int, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """An `mlflow server` in a session of its own; when the block ends, so does every process of it."""
    artifacts = sqlite_file(uri).absolute().parent if scheme_of(uri) == "sqlite" else Path.cwd()
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", (artifacts / "mlflow").as_uri()]
    settings = {
        "MLFLOW_BACKEND_STORE_URI": uri,  # not an argument: the list of processes is for all to read
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"} | settings
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its workers: asked first, then made to."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def wait_until_it_answers(process: subprocess.Popen[bytes], address: str, log: IO[bytes]) -> None:
    """Return when the server is up. Raises UserError if it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UserError(f"MLflow did not start: {last_line(log)}")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise UserError(f"MLflow did not answer within {START_SECONDS:.0f} s: {last_line(log)}")


def pages(address: str) -> list[tuple[str, str]]:
    """Name and page of every experiment that drpo-bench made, newest first: MLflow's own links open on another view."""
    with urllib.request.urlopen(f"{address}/api/2.0/mlflow/experiments/search?max_results=1000", timeout=30) as answer:
        found = json.load(answer).get("experiments", [])
    ours = [e for e in found if any(tag["key"] == "drpo_bench.version" for tag in e.get("tags", []))]
    view = "runs?workflowType=machine_learning"
    return [(e["name"], f"{address}/#/experiments/{e['experiment_id']}/{view}") for e in ours]


def last_line(log: IO[bytes]) -> str:
    """The last line that the server wrote."""
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
