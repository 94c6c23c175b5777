"""What a run writes besides its checkpoints: config.json, env.json, metrics.jsonl, samples.jsonl; and its clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from drpo_bench.config import NUMERICS_VERSION, SCHEMA_VERSION, RunConfig, canonical
from drpo_bench.records import DamagedFile, RunDir, append_record, read_json, remove_leftovers, write_json
from drpo_bench.rollout.batch import RolloutBatch
from drpo_bench.same_run import check_same_run
from drpo_bench.text import TextCodec

SAMPLES_KEPT = 4  # rollouts written to samples.jsonl at each evaluation


class Recorder:
    """The files of one run, and the seconds it has taken over all its sittings."""

    def __init__(self, config: RunConfig, run_dir: RunDir) -> None:
        self.config, self.run_dir = config, run_dir
        self.clock: dict[str, float] = {}  # seconds by phase since the last record
        self.started, self.time_before = time.monotonic(), 0.0
        check_same_run(run_dir, config)
        run_dir.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(run_dir.path)
        run_dir.set_status("running", phase="start", step=0, steps=config.train.steps)
        self.write_config(None)

    def seconds(self) -> float:
        """Seconds of this run, over all its sittings."""
        return self.time_before + time.monotonic() - self.started

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's seconds to `time/<phase>`."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.clock[phase] = self.clock.get(phase, 0.0) + time.monotonic() - begin

    def record(self, step: int, values: dict[str, Any], sampled_tokens: int) -> None:
        """Append the record of a step; phases' seconds since the last one under `time/`."""
        times = {f"time/{phase}": seconds for phase, seconds in self.clock.items()}
        if sampled_tokens:
            times["perf/rollout_tokens_per_s"] = sampled_tokens / self.clock["rollout"]
        if self.clock.get("update") and "response/tokens" in values:
            times["perf/update_tokens_per_s"] = values["response/tokens"] / self.clock["update"]
        self.clock.clear()
        line = {"step": step, "time_s": self.seconds()} | dict(sorted(values.items())) | times
        append_record(self.run_dir.metrics, line)

    def write_samples(self, step: int, batch: RolloutBatch, codec: TextCodec) -> None:
        """A few of the batch's rollouts as text with their logprobs, for people to read."""
        for rollout, reward in list(zip(batch.rollouts, batch.rewards.flatten().tolist(), strict=True))[:SAMPLES_KEPT]:
            prompt, response = codec.decode([rollout.prompt_ids, rollout.response_ids])
            line = {"step": step, "problem": prompt, "response": response, "reward": reward}
            line["policy_version"] = rollout.policy_version
            line["mu_logprobs"] = [round(value, 5) for value in rollout.mu_logprobs.tolist()]
            append_record(self.run_dir.samples, line)

    def write_config(self, warmstart_sha256: str | None) -> None:
        """config.json: everything that determines the run."""
        identity = {
            "run_id": self.config.run_id,
            "schema_version": SCHEMA_VERSION,
            "numerics_version": NUMERICS_VERSION,
        }
        resolved = canonical(self.config.model_dump()) | identity | {"warmstart_sha256": warmstart_sha256}
        write_json(self.run_dir.config, resolved)

    def write_environment(self, environment: dict[str, Any]) -> None:
        """env.json; what a run was begun on, where it goes on elsewhere, stays under `earlier`."""
        try:
            before = read_json(self.run_dir.env) if self.run_dir.env.exists() else {}
        except DamagedFile:
            before = {}
        earlier = before.pop("earlier", [])
        if before not in ({}, environment):
            earlier = [*earlier, before]
        write_json(self.run_dir.env, environment | ({"earlier": earlier} if earlier else {}))

    def report_warmstart(self, step: int, accuracy: float) -> None:
        """status.json of a run whose warm start is being trained."""
        if step % 10 == 0:
            maximum = self.config.warmstart.max_steps
            self.run_dir.set_status("running", phase="warm start", step=step, steps=maximum, accuracy=accuracy)
