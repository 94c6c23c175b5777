"""The address of an MLflow store: how it is shown, and whether the store behind it lets one in."""

from __future__ import annotations

import os
import re
import sqlite3
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from drpo_bench.errors import UserError, did_you_mean

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https", "databricks")
LIMITS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "PGCONNECT_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
LONGEST_REASON = 200  # characters of what a library said


class StoreError(Exception):
    """The store cannot be used now, for the reason that the message tells."""


class StoreBusy(StoreError):
    """Another process holds the database; it comes back by itself."""


def store_uri(out: Path) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file in the results directory."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(out / 'mlflow.db').absolute()}"
    if uri.startswith("postgresql://") and find_spec("psycopg") is None:  # SQLAlchemy's choice from 2.1 on
        return uri.replace("postgresql://", "postgresql+psycopg2://", 1)
    return uri


def limit_waiting() -> None:
    """A server that does not answer costs seconds, not minutes: the next sync is the retry."""
    for name, value in LIMITS.items():
        os.environ.setdefault(name, value)


def check_store(uri: str) -> None:
    """Raise UserError where the store refuses; one that is merely busy is waited for later. Writes nothing."""
    limit_waiting()
    try:
        probe(uri)
    except StoreBusy:
        return
    except StoreError as error:
        raise UserError(
            f"MLflow at {shown(uri)}: {error}; set MLFLOW_TRACKING_URI, or run with --no-tracking and "
            "`drpo-bench sync` later"
        ) from None


def probe(uri: str) -> None:
    """Raise StoreError unless the store answers; a database that is still to be made needs a folder for it."""
    scheme = scheme_of(uri)
    if scheme == "sqlite":
        probe_sqlite(sqlite_file(uri))
    elif scheme in DATABASES:
        probe_database(uri)
    elif scheme in SERVERS:
        probe_server(uri)
    else:
        known = "sqlite:///FILE, postgresql://USER@HOST/NAME or http://HOST:PORT"
        raise StoreError(f"is no store: {known}{did_you_mean(scheme, (*DATABASES, *SERVERS))}")


def probe_sqlite(file: Path) -> None:
    """Whether the database can be read, or its folder made, and files be written there."""
    folder = next(p for p in file.absolute().parents if os.path.exists(p) or p == p.parent)
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise StoreError(f"{folder} cannot be written")
    if not file.exists():
        return
    if not os.access(file, os.W_OK):
        raise StoreError(f"{file} cannot be written")
    try:
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=1)
        try:
            connection.execute("SELECT name FROM sqlite_master LIMIT 1").fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        kind = StoreBusy if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY") else StoreError
        raise kind(str(error)) from None


def probe_database(uri: str) -> None:
    """Whether the database server lets one in."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    try:
        with create_engine(uri, poolclass=NullPool).connect():
            pass
    except ModuleNotFoundError as error:
        hint = " (pip install -e '.[postgres]')" if str(error.name).startswith("psycopg") else ""
        raise StoreError(f"needs {error.name}, which is not installed{hint}") from None
    except SQLAlchemyError as error:
        raise StoreError(reason(getattr(error, "orig", None) or error)) from None


def probe_server(uri: str) -> None:
    """Whether an MLflow server answers there, and lets one in."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        MlflowClient(uri).search_experiments(max_results=1)
    except (MlflowException, OSError, ValueError) as error:  # ValueError: an address that requests cannot read
        raise StoreError(reason(error)) from None


def reason(error: BaseException) -> str:
    """What a library's exception says, as one short line: the innermost cause of a failed request."""
    text = " ".join(str(error).split("\n[SQL:")[0].split()) or type(error).__name__
    innermost = re.search(r"Caused by .*: (?!.*: )(.*)", text)
    return (innermost[1].strip("'\")") if innermost else text)[:LONGEST_REASON]


def scheme_of(uri: str) -> str:
    """`postgresql` of postgresql+psycopg2://...; databricks may stand alone."""
    return "databricks" if uri == "databricks" else urlsplit(uri).scheme.split("+")[0]


def sqlite_file(uri: str) -> Path:
    """The file of sqlite:///relative or sqlite:////absolute."""
    path = urlsplit(uri).path.removeprefix("/")
    if not path or path == ":memory:":
        raise StoreError("names no file: sqlite:///FILE")
    return Path(path)


def shown(uri: str) -> str:
    """The address without user and password."""
    secret = urlsplit(uri).netloc.rpartition("@")[0]
    visible = uri.replace(f"{secret}@", "***@", 1) if secret else uri
    return re.sub(r"(password=)[^&]*", r"\1***", visible)
