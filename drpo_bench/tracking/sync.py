"""Sends what is new in an experiment's folder to one MLflow store, nothing twice and nothing missing.

What a store has is asked of that store, once a process and again after every failure: the cursor is the history of
`time_s` in MLflow itself, stored in one transaction with the records that it counts.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from drpo_bench.records import DamagedFile, RunDir, State, read_json
from drpo_bench.tracking.contents import PARAMS_A_REQUEST, STATUS, TIME, params, requests
from drpo_bench.tracking.runs import STATE_TAG, Runs, Sent
from drpo_bench.tracking.tail import Tail

FILES = ("config.json", "env.json", "samples.jsonl", "log.txt")  # of a run, beside its metrics


class ExperimentSync:
    """One folder and one store. Every method raises what MLflow raises; then this object is done with."""

    def __init__(self, directory: Path, uri: str) -> None:
        from mlflow import MlflowClient

        for noisy in ("alembic", "mlflow"):  # what they would say is in the exception
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
        self.directory, self.client = directory, MlflowClient(uri)
        self.runs = Runs(self.client, directory, uri)
        self.tails: dict[Path, Tail] = {}
        self.damaged: list[str] = []

    def sync(self) -> int:
        """Send every new record; returns how many. A run whose files are damaged is left out, see `damaged`."""
        count = 0
        self.damaged = []
        for path in sorted((self.directory / "runs").glob("*/config.json")):
            try:
                count += self.sync_run(RunDir(path.parent))
            except DamagedFile as error:
                self.damaged.append(str(error))
        self.set_parent_status()
        return count

    def log_artifacts(self) -> None:
        """Attach figures and report to the parent run."""
        figures, report = self.directory / "figures", self.directory / "report.md"
        if figures.is_dir():
            self.client.log_artifacts(self.runs.parent.run_id, str(figures), "figures")
        if report.exists():
            self.client.log_artifact(self.runs.parent.run_id, str(report))

    def sync_run(self, run_dir: RunDir) -> int:
        """Metrics, then what changes with the state; its tag comes last, and says that the rest is there."""
        status = run_dir.status()  # before the records: those of a run that is done are complete
        config = read_json(run_dir.config)
        sent = self.runs.child(run_dir, config, status)
        count = self.send_records(run_dir, sent)
        if status["state"] != sent.state:
            self.describe(run_dir, config, sent)
            self.set_status(sent, STATUS[status["state"]])
            self.client.set_tag(sent.run_id, STATE_TAG, status["state"])
            sent.state = status["state"]
        return count

    def send_records(self, run_dir: RunDir, sent: Sent) -> int:
        """The records that MLflow does not have; returns how many."""
        records = self.tails.setdefault(run_dir.path, Tail(run_dir.metrics)).read()
        if records and sent.next_step is None:
            sent.next_step = self.next_step(sent, records[-1])
        records = [record for record in records if record["step"] >= (sent.next_step or 0)]
        for last_step, metrics in requests(records, sent.start_ms):
            self.client.log_batch(sent.run_id, metrics=metrics)
            sent.next_step = last_step + 1
        if records:
            sent.seconds = records[-1][TIME]
        return len(records)

    def next_step(self, sent: Sent, last: dict[str, Any]) -> int:
        """The step after the last one that MLflow has."""
        if sent.seconds == last[TIME]:
            return int(last["step"]) + 1
        history = [] if sent.seconds is None else self.client.get_metric_history(sent.run_id, TIME)
        return max((metric.step + 1 for metric in history), default=0)

    def describe(self, run_dir: RunDir, config: dict[str, Any], sent: Sent) -> None:
        """Params that MLflow has not (they cannot be changed there) and the files; repeating it changes nothing."""
        from mlflow.entities import Param

        missing = [Param(key, value) for key, value in params(config).items() if key not in sent.params]
        for start in range(0, len(missing), PARAMS_A_REQUEST):
            self.client.log_batch(sent.run_id, params=missing[start : start + PARAMS_A_REQUEST])
        sent.params |= {param.key: param.value for param in missing}
        for name in FILES:
            if (run_dir.path / name).exists():
                self.client.log_artifact(sent.run_id, str(run_dir.path / name))

    def set_status(self, sent: Sent, status: str) -> None:
        """FINISHED and FAILED end a run, after the seconds that it trained: its duration on the page."""
        if status in ("FINISHED", "FAILED"):
            end = None if sent.seconds is None else sent.start_ms + int(1000 * sent.seconds)
            self.client.set_terminated(sent.run_id, status, end)
        else:
            self.client.update_run(sent.run_id, status)
        sent.status = status

    def set_parent_status(self) -> None:
        """A sweep is at work while one of its runs is, and ends with the last of them."""
        states = {RunDir(path.parent).status()["state"] for path in self.directory.glob("runs/*/config.json")}
        order: tuple[State, ...] = ("running", "pending", "failed", "collapsed", "finished")
        status = STATUS[next((state for state in order if state in states), "running")]
        if status != self.runs.parent.status:
            self.set_status(self.runs.parent, status)
