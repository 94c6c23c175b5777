"""Fixtures of real services. Absent ones skip a test on a user's machine, and fail it in CI."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.services.servers import Cluster, MLflowServer


def absent(what: str) -> None:
    """Skip the test, or fail it in CI."""
    message = f"{what} is not installed: make setup-services"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[str], MLflowServer]]:
    """Starts an `mlflow server` before a database."""
    servers = []

    def start(backend: str) -> MLflowServer:
        servers.append(MLflowServer(backend, tmp_path))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
        server.log.close()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        absent("PostgreSQL")
    folder = Path(tempfile.mkdtemp(prefix="drpo-postgres-"))  # pytest's folders are closed to other users
    cluster = Cluster(folder, programs[-1].parent)
    cluster.start()
    yield cluster
    cluster.stop()
    shutil.rmtree(folder)


@pytest.fixture
def postgres(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """The address of a database of the test's own."""
    import psycopg2

    name = f"test_{abs(hash(request.node.nodeid))}"
    with closing(psycopg2.connect(cluster.uri("postgres").replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"CREATE DATABASE {name}")
    return cluster.uri(name)
