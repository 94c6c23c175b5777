"""What the tests of tracking share: folders of records, and the comparison of a store with every one of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from drpo_bench.records import RunDir, append_record, read_records, write_json

LARGEST = 1.7976931348623157e308  # what MLflow stores for an infinity


def add_run(folder: Path, name: str = "nano-fp32-drpo-s0-00000000", steps: int = 3, **config: Any) -> RunDir:
    """A run directory with records of `steps` steps, still running."""
    run_dir = RunDir(folder / "runs" / name)
    run_dir.path.mkdir(parents=True)
    identity = {"loss": {"id": "drpo", "delta": "inf"}, "seed": 0, "numerics_version": 3, "warmstart_sha256": None}
    write_json(run_dir.config, identity | config)
    run_dir.set_status("running", step=steps - 1, seconds=steps / 2)
    add_records(run_dir, range(steps))
    return run_dir


def add_records(run_dir: RunDir, steps: range, pace: float = 0.5) -> None:
    """Records whose values follow from the step, except for the seconds."""
    for step in steps:
        values = {"reward/mean": step / 10, "optim/grad_norm": [math.nan, math.inf, -math.inf, 0.1 + step][step % 4]}
        append_record(run_dir.metrics, {"step": step, "time_s": 0.25 + step * pace, **values, "time/update": pace})


def stored(value: float) -> float | str:
    """A value as MLflow gives it back, comparable also where it is NaN."""
    if math.isnan(value):
        return "nan"
    return math.copysign(LARGEST, value) if math.isinf(value) else value


def find(uri: str, folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The client, the one parent, and the children by run id; each run exactly once, deleted ones aside."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(folder.name)
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(runs) - 1
    named = {run.data.tags["drpo_bench.run"].split("/")[0]: run for run in children}
    assert len(named) == len(children)
    return client, parent, named


def check_complete(uri: str, folder: Path, resumed: bool = False) -> dict[str, Any]:
    """Every key's history in the store is that of metrics.jsonl, and state and params are there; the children.

    Of a run that was resumed the seconds of a step may be those of the sitting that was sent first.
    """
    client, _, children = find(uri, folder)
    run_dirs = [RunDir(path.parent) for path in folder.glob("runs/*/config.json")]
    assert set(children) == {run_dir.path.name for run_dir in run_dirs}
    for run_dir in run_dirs:
        child = children[run_dir.path.name]
        expected: dict[str, dict[int, Any]] = {}
        for record in read_records(run_dir.metrics):
            for key in record.keys() - {"step"}:
                expected.setdefault(key, {})[record["step"]] = stored(record[key])
        assert set(child.data.metrics) == set(expected)
        for key, values in expected.items():
            history = sorted((m.step, stored(m.value)) for m in client.get_metric_history(child.info.run_id, key))
            if resumed and (key == "time_s" or key.startswith("time/")):
                assert [step for step, _ in history] == sorted(values)
            else:
                assert history == sorted(values.items()), key
        assert child.data.tags["state"] == run_dir.status()["state"]
        assert child.data.params["loss.id"] == json.loads(run_dir.config.read_text())["loss"]["id"]
        assert "config.json" in {artifact.path for artifact in client.list_artifacts(child.info.run_id)}
        assert json.loads((run_dir.path / "mlflow.json").read_text())["run_id"] == child.info.run_id
    return children
