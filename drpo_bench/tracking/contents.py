"""What MLflow is told of an experiment and its runs: metrics in requests, params, tags, descriptions."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drpo_bench import __version__
from drpo_bench.config import flat_items
from drpo_bench.records import EXPERIMENT_FILE, DamagedFile, RunDir, State, read_json

TIME = "time_s"  # in every record, so its history in MLflow tells which records have arrived
METRICS_A_REQUEST = 1000  # the server's limits
PARAMS_A_REQUEST = 100
LONGEST_PARAM = 6000
SOURCE = {"mlflow.source.name": "drpo-bench", "mlflow.source.type": "LOCAL"}
STATUS: dict[State, str] = {
    "pending": "SCHEDULED",
    "running": "RUNNING",
    "finished": "FINISHED",
    "collapsed": "FINISHED",
    "failed": "FAILED",
}


def requests(records: list[dict[str, Any]], start_ms: int) -> Iterator[tuple[int, list[Any]]]:
    """The last step and the metrics of each request: whole records, as many as fit.

    A request is stored as a whole or not at all; timestamps follow from the records, so that one that is
    repeated because its answer was lost stores nothing twice.
    """
    from mlflow.entities import Metric

    batch: list[Any] = []
    last_step = 0
    for record in records:
        step, time_ms = record["step"], start_ms + int(1000 * record[TIME])
        metrics = [Metric(key, float(value), time_ms, step) for key, value in record.items() if key != "step"]
        if batch and len(batch) + len(metrics) > METRICS_A_REQUEST:
            yield last_step, batch
            batch = []
        batch += metrics
        last_step = step
    if batch:
        yield last_step, batch


def params(config: dict[str, Any]) -> dict[str, str]:
    """Every field of a config by its dotted name; a value beyond the limit is cut, config.json has it whole."""
    texts = {key: str(value) for key, value in flat_items(config) if value is not None}
    return {
        key: text if len(text) <= LONGEST_PARAM else text[: LONGEST_PARAM - 3] + "..." for key, text in texts.items()
    }


def experiment_tags(directory: Path) -> dict[str, str]:
    """Tags of the experiment and of the parent run: question, version, command."""
    tags = {"drpo_bench.version": __version__}
    about = optional_json(directory / EXPERIMENT_FILE)
    if about.get("question"):
        tags["question"] = about["question"]
    owner = optional_json(directory / "runner.json")  # there while a runner is at work
    words = shlex.split(owner.get("command", "")) or ["drpo-bench", "run", about.get("file", directory.name)]
    tags["command"] = shlex.join(["drpo-bench", *words[1:]])
    return tags | SOURCE


def experiment_note(directory: Path, tags: dict[str, str]) -> str:
    """The description of the experiment and of the parent run, Markdown."""
    parts = [tags.get("question", ""), f"`{tags['command']}` (drpo-bench {tags['drpo_bench.version']})"]
    parts.append(f"Results: `{directory}`. The parent run has figures and report; a child is one run of the sweep.")
    return "\n\n".join(part for part in parts if part)


def run_title(run_id: str, config: dict[str, Any]) -> str:
    """The loss first: MLflow's columns show some fifteen letters, and in a run id these are model and precision."""
    loss, seed = config["loss"]["id"], config["seed"]
    setting, found, digest = run_id.partition(f"-{loss}-s{seed}-")
    model, _, precision = setting.partition("-")
    return f"{loss} {precision} s{seed} {model} {digest}" if found else run_id


def run_note(run_dir: RunDir) -> str:
    """The description of a child run, Markdown."""
    return f"`drpo-bench reproduce {run_dir.path}` runs it again and compares every metric."


def optional_json(path: Path) -> dict[str, Any]:
    """The data of a json file; nothing where it is absent or damaged."""
    try:
        data = read_json(path) if path.exists() else {}
    except DamagedFile:
        return {}
    return data if isinstance(data, dict) else {}
