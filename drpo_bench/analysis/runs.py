"""One run directory as table rows: its row of summary.csv and its rows of curves.csv."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from drpo_bench.config import RunConfig, acting, canonical, content_hash, flat_items, load_run_config
from drpo_bench.records import DONE, RunDir, read_json, read_records

Row = dict[str, Any]

KEY = ("run_id", "numerics_version")
# Column -> how it is read back from the csv.
SUMMARY_COLUMNS: dict[str, type] = {
    "run_id": str,
    "numerics_version": int,
    "experiment": str,
    "model": str,
    "architecture": str,
    "task": str,
    "precision": str,
    "loss": str,
    "loss_params": str,
    "lag": int,
    "updates": int,
    "lr": float,
    "seed": int,
    "state": str,
    "reason": str,
    "collapse_step": int,
    "step": int,
    "steps": int,
    "evaluations": int,
    "eval_problems": int,
    "initial_accuracy": float,
    "final_accuracy": float,
    "gain": float,
    "peak_accuracy": float,
    "lowprob_frac": float,  # of the first batch: the warm start's tail of rare tokens
    "mismatch_k3": float,  # before the first update
    "emulated": str,
    "seconds": float,
    "setting": str,  # hash of everything that determines a run but its loss and seed
    "fields": str,  # what differs from the defaults, to tell settings apart in words
    "warnings": str,  # what the plan said of the run
    "commit": str,
    "machine": str,
    "threads": int,
    "versions": str,
}
# Means over the batches since the evaluation before; of a `_max`, the largest.
CURVE_METRICS = (
    "reward/mean",
    "reward/zero_variance_frac",
    "response/length_mean",
    "response/truncated_frac",
    "policy/entropy",
    "mismatch/k3",
    "staleness/k3",
    "drift/k3",
    "offpolicy/tv_mean",
    "offpolicy/ratio_max",
    "offpolicy/ess_token",
    "offpolicy/lowprob_frac",
    "update/w_neg_frac",
    "update/clip_frac_pos",
    "update/clip_frac_neg",
    "optim/grad_norm",
    "optim/grad_norm_max",
)
EVAL_METRICS = ("accuracy", "greedy_accuracy", "length_mean")
CURVE_COLUMNS: dict[str, type] = {"run_id": str, "numerics_version": int, "step": int}
CURVE_COLUMNS |= {f"eval/{name}": float for name in EVAL_METRICS} | dict.fromkeys(CURVE_METRICS, float)

# Entries of config.json that do not tell settings apart.
NOT_SETTING = {
    *("run_id", "schema_version", "numerics_version", "warmstart_sha256"),
    *("experiment", "checkpoint", "seed", "loss"),
}
ENDS_THE_RUN = ("non_finite", "mismatch")  # reasons of a collapse after which there are no evaluations
FINAL_SHARE = 5  # the final score is the mean of the last fifth of the evaluations


@dataclass(frozen=True)
class RunRows:
    """What the two tables hold of one run."""

    summary: Row
    curves: list[Row]


def read_run(run_dir: RunDir) -> RunRows:
    """The rows of one run. Raises ValueError or KeyError where its files are not what we write."""
    data = read_json(run_dir.config)
    config = load_run_config(data)
    status, records = run_dir.status(), list(read_records(run_dir.metrics))
    curves = list(curve_rows(config, status, records))
    key = {"run_id": data["run_id"], "numerics_version": data["numerics_version"]}
    summary = key | identity_row(config, setting_hash(data)) | result_row(status, records, curves)
    summary |= environment_row(run_dir)
    return RunRows(summary, [key | row for row in curves])


def setting_hash(data: Row) -> str:
    """Hash of what determines a run, but seed and loss.

    Of config.json as it was written: a field that a later version adds must not move a run to another setting.
    """
    return content_hash({key: value for key, value in acting(data).items() if key not in NOT_SETTING})[:8]


def identity_row(config: RunConfig, setting: str) -> Row:
    """What was run."""
    return {
        "experiment": config.experiment.name,
        "model": config.model.name,
        "architecture": config.model.architecture if config.model.from_scratch else "checkpoint",
        "task": config.task.name,
        "precision": config.precision.name,
        "loss": config.loss.id,
        "loss_params": compact({name: value for name, value in config.loss.settings.items() if name != "preset"}),
        "lag": config.rollout.lag,
        "updates": config.train.updates_per_batch,
        "lr": config.train.lr,
        "seed": config.seed,
        "steps": config.train.steps,
        "eval_problems": config.eval.problems,
        "setting": setting,
        "fields": differing_fields(config),
        "warnings": "; ".join(config.warnings()),
    }


def result_row(status: Row, records: Sequence[Row], curves: Sequence[Row]) -> Row:
    """How it went. Only a run with a result has a final accuracy, so that no other enters a mean."""
    accuracies = [row["eval/accuracy"] for row in curves]
    initial = accuracies[0] if accuracies and curves[0]["step"] == 0 else None
    row: Row = {
        "state": status["state"],
        "reason": " ".join(str(status.get("reason", "")).split())[:200],
        "collapse_step": status.get("collapse_step"),
        "step": max((record["step"] for record in records), default=0),
        "evaluations": len(accuracies),
        "initial_accuracy": initial,
        "lowprob_frac": first(records, "offpolicy/lowprob_frac"),
        "mismatch_k3": first(records, "mismatch/k3"),
        "seconds": status.get("seconds", records[-1]["time_s"] if records else None),
    }
    if status["state"] in DONE and accuracies:
        final = final_score(accuracies)
        row |= {"final_accuracy": final, "peak_accuracy": max(accuracies)}
        row["gain"] = None if initial is None else final - initial
    return row


def environment_row(run_dir: RunDir) -> Row:
    """What it ran on; `emulated` is a list of sides, "none", or "unknown" without an env.json."""
    if not run_dir.env.exists():
        return {"emulated": "unknown"}
    env = read_json(run_dir.env)
    sides = [side for side, emulated in sorted(env["emulated"].items()) if emulated]
    return {
        "emulated": "+".join(sides) or "none",
        "commit": env.get("commit"),
        "machine": env.get("gpu") or env.get("cpu"),
        "threads": env.get("threads"),
        "versions": compact(env.get("versions", {})),
    }


def curve_rows(config: RunConfig, status: Row, records: Sequence[Row]) -> Iterator[Row]:
    """A row an evaluation. After an end before its time the evaluations that never took place count as 0."""
    prefix = f"eval/{config.task.name}"
    evaluated = {record["step"]: record for record in records if f"{prefix}/accuracy" in record}
    steps = set(evaluated)
    if status["state"] == "collapsed" and status.get("reason") in ENDS_THE_RUN:
        steps |= {step for step in evaluation_grid(config) if step >= status["collapse_step"]}
    before = -1
    for step in sorted(steps):
        record = evaluated.get(step, {f"{prefix}/accuracy": 0.0})
        row: Row = {"step": step}
        row |= {f"eval/{name}": record.get(f"{prefix}/{name}") for name in EVAL_METRICS}
        window = [r for r in records if before < r["step"] <= step]
        row |= {metric: window_value(metric, window) for metric in CURVE_METRICS}
        yield row
        before = step


def evaluation_grid(config: RunConfig) -> list[int]:
    """The steps at which a run that reaches its end is evaluated."""
    last = config.train.steps
    return sorted({*range(0, last + 1, config.eval.every), last})


def window_value(metric: str, window: Sequence[Row]) -> float | None:
    """Mean of a metric over the records that have it (diagnostics may be measured every k-th step only)."""
    values = [float(record[metric]) for record in window if metric in record]
    if not values:
        return None
    if metric.endswith("_max"):
        return math.nan if any(map(math.isnan, values)) else max(values)
    return sum(values) / len(values)


def final_score(accuracies: Sequence[float]) -> float:
    """Mean of the last 20% of the evaluations, rounded up."""
    count = -(-len(accuracies) // FINAL_SHARE)
    return sum(accuracies[-count:]) / count


def first(records: Sequence[Row], metric: str) -> float | None:
    """A metric where it was first measured."""
    return next((float(record[metric]) for record in records if metric in record), None)


def compact(values: Row) -> str:
    """`delta=0.15 ratio_cap=inf`."""
    return " ".join(f"{key}={number_text(value)}" for key, value in values.items())


def number_text(value: Any) -> str:
    """A value as a person would write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def differing_fields(config: RunConfig) -> str:
    """`loss.delta=0.5; rollout.lag=2`: what is not at its default, beside the columns with a name."""
    named = {"experiment", "checkpoint", "seed", "model", "precision"}
    different = dict(flat_items(acting(canonical(config.model_dump(exclude_defaults=True, exclude=named)))))
    if config.correction.id != "none":
        different["correction.id"] = config.correction.id  # a tag is its own class's default
    return "; ".join(f"{key}={number_text(value)}" for key, value in sorted(different.items()))
