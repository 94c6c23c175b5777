"""An experiment's runs in MLflow: found again by two tags, the folder's id and their own name, else created.

So creating is repeatable: a process that is killed right after it, or a request whose answer is lost, leaves a run
that the next process finds.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drpo_bench.records import RunDir, write_json, write_text
from drpo_bench.tracking.contents import (
    SOURCE,
    TIME,
    experiment_note,
    experiment_tags,
    optional_json,
    run_note,
    run_title,
)
from drpo_bench.tracking.store import DATABASES, scheme_of, sqlite_file

FOLDER_ID, RUN_FILE = "mlflow.id", "mlflow.json"
FOLDER_TAG, RUN_TAG, STATE_TAG = "drpo_bench.folder", "drpo_bench.run", "state"
PARENT = "parent"
PAGE = 100  # runs a request, with their params and latest metrics


@dataclass
class Sent:
    """What MLflow has of one run."""

    run_id: str
    start_ms: int
    state: str | None = None
    status: str = "RUNNING"
    params: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None  # `time_s` of the last record
    next_step: int | None = None  # None: MLflow has not been asked
    deleted: bool = False  # on the page, by a person


class Runs:
    """The runs of one folder in one store: a parent, and a child a run directory."""

    def __init__(self, client: Any, directory: Path, uri: str) -> None:
        self.client, self.directory = client, directory
        self.name = directory.absolute().name
        self.folder = folder_id(directory)
        self.tags = experiment_tags(directory)
        self.note = {"mlflow.note.content": experiment_note(directory, self.tags)}
        self.experiment_id = self.experiment(artifact_folder(directory, uri))
        self.known = self.find()
        self.parent = self.present(PARENT) or self.create_parent()

    def experiment(self, artifacts: str | None) -> str:
        """The experiment's id; it is made where it is missing, and brought back where it was deleted."""
        found = self.client.get_experiment_by_name(self.name)
        if found is None:
            kind = {"mlflow.experimentKind": "custom_model_development"}  # the page shows runs and charts first
            tags = self.tags | self.note | kind
            return str(self.client.create_experiment(self.name, artifact_location=artifacts, tags=tags))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def find(self) -> dict[str, Sent]:
        """This folder's runs by RUN_TAG. Of two of a name (the first one's answer came too late) one is kept."""
        from mlflow.entities import ViewType

        runs, token = [], None
        query = f"tags.`{FOLDER_TAG}` = '{self.folder}'"
        while True:
            page = self.client.search_runs([self.experiment_id], query, ViewType.ALL, PAGE, page_token=token)
            runs += page
            token = page.token
            if not token:
                break
        known: dict[str, Sent] = {}
        for run in sorted(runs, key=lambda run: (is_deleted(run), TIME not in run.data.metrics, run.info.run_id)):
            name = run.data.tags[RUN_TAG]
            if name not in known:
                sent = Sent(run.info.run_id, run.info.start_time, run.data.tags.get(STATE_TAG), run.info.status)
                sent.params, sent.seconds = dict(run.data.params), run.data.metrics.get(TIME)
                sent.deleted = is_deleted(run)
                known[name] = sent
            elif not is_deleted(run):
                self.client.delete_run(run.info.run_id)
        return known

    def present(self, name: str) -> Sent | None:
        """A run that MLflow knows; one that was deleted there is brought back, with what it has."""
        sent = self.known.get(name)
        if sent and sent.deleted:
            self.client.restore_run(sent.run_id)
            sent.deleted = False
        return sent

    def create_parent(self) -> Sent:
        """The run that stands for the sweep."""
        parent = self.create(PARENT, self.name, self.tags | self.note, None)
        write_json(self.directory / RUN_FILE, {"folder": self.folder, "run_id": parent.run_id})
        return parent

    def child(self, run_dir: RunDir, config: dict[str, Any], status: dict[str, Any]) -> Sent:
        """The run of a run directory; one that was started over with other numerics is another run."""
        name = f"{run_dir.path.name}/{config['numerics_version']}"
        sent = self.present(name)
        if sent is None:
            tags = SOURCE | {"mlflow.parentRunId": self.parent.run_id, "mlflow.note.content": run_note(run_dir)}
            written = status.get("updated_at", run_dir.config.stat().st_mtime)
            start_ms = int(1000 * (written - status.get("seconds", 0.0)))
            sent = self.create(name, run_title(run_dir.path.name, config), tags, start_ms)
        if optional_json(run_dir.path / RUN_FILE).get("run_id") != sent.run_id:
            write_json(run_dir.path / RUN_FILE, {"folder": self.folder, "run_id": sent.run_id})
        return sent

    def create(self, name: str, title: str, tags: dict[str, str], start_ms: int | None) -> Sent:
        """A new run, of which MLflow has nothing yet."""
        tags = tags | {FOLDER_TAG: self.folder, RUN_TAG: name}
        run = self.client.create_run(self.experiment_id, start_time=start_ms, tags=tags, run_name=title)
        self.known[name] = Sent(run.info.run_id, run.info.start_time, next_step=0)
        return self.known[name]


def is_deleted(run: Any) -> bool:
    """Whether the run was deleted on MLflow's page, or is a second one that `find` deleted."""
    return bool(run.info.lifecycle_stage == "deleted")


def folder_id(directory: Path) -> str:
    """What this folder is called in MLflow, wherever it is moved to; the file of every run has a copy."""
    path = directory / FOLDER_ID
    files = [directory / RUN_FILE, *sorted(directory.glob(f"runs/*/{RUN_FILE}"))]
    own = path.read_text(errors="replace").strip() if path.exists() else ""
    copies = [own, *(str(optional_json(file).get("folder")) for file in files)]
    known = next((copy for copy in copies if re.fullmatch("[0-9a-f]{32}", copy)), uuid.uuid4().hex)
    if known != own:
        write_text(path, known + "\n")
    return known


def artifact_folder(directory: Path, uri: str) -> str | None:
    """Where artifacts go: beside a database (a server has a place of its own)."""
    if scheme_of(uri) not in DATABASES:
        return None
    beside = sqlite_file(uri).absolute().parent if scheme_of(uri) == "sqlite" else directory.absolute().parent
    return (beside / "mlflow").as_uri()
