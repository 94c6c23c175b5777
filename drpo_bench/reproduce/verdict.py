"""What a replay shows: the same bits, other numbers within what the environment explains, or a difference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from drpo_bench.checkpoint import checkpoint_steps
from drpo_bench.manifest import file_hash
from drpo_bench.records import DONE, plain
from drpo_bench.reproduce import environments
from drpo_bench.reproduce.compare import Comparison, Difference, compare
from drpo_bench.reproduce.recorded import Recorded
from drpo_bench.reproduce.replay import Replay
from drpo_bench.reproduce.tolerances import Judgement, judge

OUTCOME = ("state", "step", "collapse_step", "reason")  # of status.json: the run's result
WORST = 8  # metrics told of
Result = Literal["identical", "within tolerances", "different"]


@dataclass(frozen=True)
class Verdict:
    """A run and its replay, compared. `steps` batches of it were replayed."""

    recorded: Recorded
    replay: Replay
    steps: int

    @property
    def result(self) -> Result:
        """Identical where everything is; else what the excuses allow."""
        same_outcome = self.outcome is None or self.outcome[0] == self.outcome[1]
        if self.comparison.differences or not same_outcome or not all(self.weights.values()) or not self.same_start:
            return "within tolerances" if self.excuses and self.is_within else "different"
        return "identical"

    @cached_property
    def comparison(self) -> Comparison:
        """All values of the records up to the step that was replayed."""
        return compare([r for r in self.recorded.records if r["step"] <= self.steps], self.replay.records)

    @cached_property
    def changes(self) -> list[environments.Change]:
        """What env.json says otherwise."""
        return environments.changes(self.recorded.environments, self.replay.environment)

    @cached_property
    def excuses(self) -> list[str]:
        """Why other numbers may be."""
        return environments.excuses(self.recorded.config, self.recorded.environments, self.replay.environment)

    @property
    def same_start(self) -> bool:
        """Whether both began with the same weights, as far as config.json tells."""
        return self.recorded.warmstart_sha256 in (None, self.replay.warmstart_sha256)

    @property
    def is_whole(self) -> bool:
        """Whether the run had come to its end, and was replayed to it."""
        return self.recorded.status["state"] in DONE and self.steps == self.recorded.last_step

    @cached_property
    def outcome(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The result then and now, of a run that was replayed whole."""
        if not self.is_whole:
            return None
        then, now = ({k: s[k] for k in OUTCOME if k in s} for s in (self.recorded.status, self.replay.status))
        return then, now

    @cached_property
    def weights(self) -> dict[int, bool]:
        """Whether the weights are the same bytes, at the checkpoints that both still have."""
        then, now = self.recorded.run_dir.checkpoints, self.replay.run_dir.checkpoints
        hashes = {
            step: [
                {path.name: file_hash(path) for path in (folder / f"step_{step}").glob("model*.safetensors")}
                for folder in (then, now)
            ]
            for step in sorted({*checkpoint_steps(then)} & {*checkpoint_steps(now)})
        }
        return {step: left == right for step, (left, right) in hashes.items()}

    @cached_property
    def judgements(self) -> list[Judgement]:
        """Every metric that other arithmetic may change only so far."""
        fell = any("collapse_step" in status for status in (self.recorded.status, self.replay.status))
        records = [r for r in self.recorded.records if r["step"] <= self.steps]
        return judge(self.recorded.config, records, self.replay.records, self.same_start, fell)

    @property
    def is_within(self) -> bool:
        """Whether everything that is judged lies within its tolerance, and the run ended in the same state."""
        same_state = self.outcome is None or self.outcome[0]["state"] == self.outcome[1]["state"]
        ended = self.replay.failure is None
        return same_state and ended and all(judgement.outside == 0 for judgement in self.judgements)

    def data(self) -> dict[str, Any]:
        """All of it as JSON."""
        found = self.comparison
        return {
            "run_dir": str(self.recorded.run_dir.path),
            "run_id": self.recorded.config.run_id,
            "result": self.result,
            "steps": self.steps,
            "whole": self.is_whole,
            "records": found.records,
            "metrics": list(found.metrics),
            "values": found.values,
            "differing": len(found.differences),
            "first": [entry(d) for d in found.first()],
            "worst": [entry(d) for d in found.worst(WORST)],
            "outcome": None if self.outcome is None else {"then": self.outcome[0], "now": self.outcome[1]},
            "weights": {str(step): same for step, same in self.weights.items()},
            "warmstart": {
                "then": self.recorded.warmstart_sha256,
                "now": self.replay.warmstart_sha256,
                "from": self.replay.warmstart_from,
            },
            "environment": [
                vars(change) | {"may_change_numbers": change.may_change_numbers} for change in self.changes
            ],
            "excuses": self.excuses,
            "tolerances": [strict(vars(j) | {"difference": j.difference}) for j in self.judgements],
            "altered": self.recorded.was_altered,
            "failure": self.replay.failure,
        }


def entry(difference: Difference) -> dict[str, Any]:
    """A difference as JSON."""
    return strict(vars(difference) | {"relative": difference.relative})


def strict(values: dict[str, Any]) -> dict[str, Any]:
    """Infinities and NaN as metrics.jsonl has them."""
    return {key: plain(value) if isinstance(value, float) else value for key, value in values.items()}
