"""MLflow as a replayable sink: fed from metrics.jsonl with a stored cursor, never in the way of training.

One parent run an experiment, one child a run. What was sent is remembered in `mlflow.json` beside the
files it was read from, and timestamps follow from the records, so that sending twice stores once.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drpo_bench.records import RunDir, read_json, read_records, write_json

CURSOR = "mlflow.json"
BATCH = 1000  # metrics a request; the server's limit
SYNC_SECONDS = 3.0
MLFLOW_STATUS = {
    "pending": "SCHEDULED",
    "running": "RUNNING",
    "finished": "FINISHED",
    "collapsed": "FINISHED",
    "failed": "FAILED",
}


class TrackingWarning(UserWarning):
    """MLflow could not be written; training goes on and the gap is replayed later."""


class ExperimentSync:
    """Sends what is new in an experiment's folder to one MLflow store."""

    def __init__(self, directory: Path, uri: str) -> None:
        from mlflow import MlflowClient

        for noisy in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self.directory, self.uri = directory, uri
        self.client = MlflowClient(uri)
        self.state = self._load(directory)
        if "parent_run_id" not in self.state or not self._knows(self.state["parent_run_id"]):
            self._forget()
            self._create_parent()

    def sync(self) -> int:
        """Send every new record; returns how many. Raises what MLflow raises; nothing is lost then."""
        paths = sorted((self.directory / "runs").glob("*/config.json"))
        return sum(self._sync_run(RunDir(path.parent)) for path in paths)

    def log_artifacts(self) -> None:
        """Attach figures and report to the parent run, and end it."""
        parent = self.state["parent_run_id"]
        figures, report = self.directory / "figures", self.directory / "report.md"
        if figures.is_dir():
            self.client.log_artifacts(parent, str(figures), "figures")
        if report.exists():
            self.client.log_artifact(parent, str(report))
        self.client.set_terminated(parent)

    def _knows(self, run_id: str) -> bool:
        """Whether the store has this run: it may have been deleted since."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def _forget(self) -> None:
        """Drop the cursors of a store that does not have these runs; everything is sent anew."""
        for path in [self.directory / CURSOR, *self.directory.glob(f"runs/*/{CURSOR}")]:
            path.unlink(missing_ok=True)
        self.state = {}

    def _create_parent(self) -> None:
        from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

        name = self.directory.name
        found = self.client.get_experiment_by_name(name)
        if found is None:
            local = self.uri.startswith("sqlite:")
            artifacts = (self.directory.parent / "mlflow").absolute().as_uri() if local else None
            self.state["experiment_id"] = self.client.create_experiment(name, artifact_location=artifacts)
        else:
            self.state["experiment_id"] = found.experiment_id
        parent = self.client.create_run(self.state["experiment_id"], tags={MLFLOW_RUN_NAME: name})
        self.state |= {"parent_run_id": parent.info.run_id, "start_ms": parent.info.start_time}
        self._save(self.directory, self.state)

    def _sync_run(self, run_dir: RunDir) -> int:
        cursor = self._load(run_dir.path)
        if "run_id" not in cursor:
            cursor = self._create_child(run_dir)
            self._save(run_dir.path, cursor)  # at once: what follows may fail, and is repeated on this run
        if not cursor["described"]:
            self._describe_child(cursor["run_id"], run_dir)
            cursor["described"] = True
            self._save(run_dir.path, cursor)
        records = [r for r in read_records(run_dir.metrics) if r["step"] >= cursor["next_step"]]
        for metrics in batches(records, cursor["start_ms"]):
            self.client.log_batch(cursor["run_id"], metrics=metrics)
        state = run_dir.status()["state"]
        if records or state != cursor["state"]:
            if state != cursor["state"]:
                self.client.set_tag(cursor["run_id"], "state", state)
                self.client.update_run(cursor["run_id"], status=MLFLOW_STATUS[state])
            next_step = records[-1]["step"] + 1 if records else cursor["next_step"]
            self._save(run_dir.path, cursor | {"next_step": next_step, "state": state})
        return len(records)

    def _create_child(self, run_dir: RunDir) -> dict[str, Any]:
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

        tags = {MLFLOW_PARENT_RUN_ID: self.state["parent_run_id"], MLFLOW_RUN_NAME: run_dir.path.name}
        child = self.client.create_run(self.state["experiment_id"], tags=tags)
        return {
            "run_id": child.info.run_id,
            "described": False,
            "start_ms": child.info.start_time,
            "next_step": 0,
            "state": "pending",
        }

    def _describe_child(self, run_id: str, run_dir: RunDir) -> None:
        """Params and config of a child; repeating it changes nothing."""
        from mlflow.entities import Param

        config = read_json(run_dir.config)
        params = [Param(key, str(value)) for key, value in flat_items(config) if key != "warmstart_sha256"]
        self.client.log_batch(run_id, params=params)
        self.client.log_artifact(run_id, str(run_dir.config))

    def _load(self, directory: Path) -> dict[str, Any]:
        """What was sent to this store; a cursor of another store does not count."""
        path = directory / CURSOR
        state = read_json(path) if path.exists() else {}
        return state if state.get("uri") == self.uri else {}

    def _save(self, directory: Path, state: dict[str, Any]) -> None:
        write_json(directory / CURSOR, state | {"uri": self.uri})


def batches(records: list[dict[str, Any]], start_ms: int) -> Iterator[list[Any]]:
    """MLflow metrics of the records, in requests of at most BATCH."""
    from mlflow.entities import Metric

    metrics = [
        Metric(key, float(value), start_ms + int(1000 * record["time_s"]), record["step"])
        for record in records
        for key, value in record.items()
        if key not in ("step", "time_s")
    ]
    for start in range(0, len(metrics), BATCH):
        yield metrics[start : start + BATCH]


def flat_items(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and leaf values of nested tables."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flat_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class Tracker(threading.Thread):
    """Syncs in the background while runs train; a store that fails is warned about once and tried again."""

    def __init__(self, directory: Path, uri: str) -> None:
        super().__init__(name="mlflow", daemon=True)
        self.directory, self.uri = directory, uri
        self.stopping = threading.Event()
        self.synced: ExperimentSync | None = None
        self.warned = False

    def run(self) -> None:
        """Sync every few seconds until told to stop."""
        while not self.stopping.wait(SYNC_SECONDS):
            self.attempt(artifacts=False)

    def finish(self) -> bool:
        """Stop, and send what is left with figures and report. False if the store did not take it."""
        self.stopping.set()
        if self.is_alive():
            self.join()
        return self.attempt(artifacts=True)

    def attempt(self, artifacts: bool) -> bool:
        """One sync; whether it worked."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            self.synced = self.synced or ExperimentSync(self.directory, self.uri)
            self.synced.sync()
            if artifacts:
                self.synced.log_artifacts()
        except (MlflowException, SQLAlchemyError, OSError) as error:
            if not self.warned:
                first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                message = f"MLflow at {self.uri} cannot be written ({first_line}); `drpo-bench sync` sends it later"
                warnings.warn(message, TrackingWarning, stacklevel=2)
            self.warned = True
            return False
        return True
