"""The RL loop of one run: sample, grade, update, measure, record, checkpoint."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from drpo_bench.checkpoint import checkpoint_steps, load_checkpoint, save_checkpoint
from drpo_bench.collapse import CollapseDetector
from drpo_bench.collect import Collector
from drpo_bench.config import NUMERICS_VERSION, SCHEMA_VERSION, RunConfig, canonical
from drpo_bench.environment import describe_environment
from drpo_bench.evaluate import Evaluator
from drpo_bench.head import TokenScores
from drpo_bench.losses import make_loss
from drpo_bench.metrics import divergence_metrics, offpolicy_metrics, topk_metrics
from drpo_bench.models import Policy
from drpo_bench.models import load_checkpoint as load_pretrained
from drpo_bench.ops import kl_k3
from drpo_bench.optim import NonFinite, Optimizer
from drpo_bench.precision import refuse_emulation
from drpo_bench.records import RunDir, append_record, read_json, sync_file, truncate_records, write_json
from drpo_bench.rollout.alarm import check_mismatch
from drpo_bench.rollout.batch import RolloutBatch, RolloutQueue
from drpo_bench.rollout.engine import sample_seeds
from drpo_bench.rollout.torch_engine import TorchEngine
from drpo_bench.scoring import score
from drpo_bench.tasks import make_task
from drpo_bench.text import TextCodec
from drpo_bench.update import Updater, flatten
from drpo_bench.warmstart import ensure_warmstart

SAMPLES_KEPT = 4  # rollouts written to samples.jsonl at each evaluation


class Trainer:
    """One run: its policy, engines, queue and files."""

    def __init__(self, config: RunConfig, run_dir: RunDir, cache: Path) -> None:
        self.config, self.run_dir = config, run_dir
        self.device = torch.device(config.runtime.device)
        if not config.runtime.allow_emulation:  # asked again here: a worker's machine can be another
            refuse_emulation(config.precision, self.device)
        self.clock: dict[str, float] = {}  # seconds by phase since the last record
        self.started, self.time_before = time.monotonic(), 0.0
        drop_other_numerics(run_dir)
        run_dir.path.mkdir(parents=True, exist_ok=True)
        run_dir.set_status("running", phase="start", step=0, steps=config.train.steps)
        self._write_config(None)

        source, sha256 = config.model.name, None
        if config.model.from_scratch:
            warmstart = ensure_warmstart(config, cache, self._report_warmstart)
            source, sha256 = str(warmstart.directory), warmstart.sha256
        model, tokenizer = load_pretrained(source)
        self.task, self.codec = make_task(config.task), TextCodec(tokenizer)
        self.engine = TorchEngine(model, config.precision.rollout, self.device)
        self.reference: Policy | None = None  # the initial policy, where the loss is penalised for leaving it
        if "ref" in config.needs:
            self.reference = Policy(copy.deepcopy(model), config.precision.trainer, self.device)
            self.reference.master = self.reference.model.requires_grad_(False)  # never trained: one copy is enough
        self.policy = Policy(model, config.precision.trainer, self.device)
        self.optimizer = Optimizer(self.policy, config.train)
        params = config.loss.model_dump(exclude={"id", "preset"})
        self.loss = make_loss(config.loss.id, config.train.anchor, config.correction, **params)
        self.collector = Collector(config, self.task, self.codec, self.engine, self.timed)
        rollout = config.rollout
        self.evaluator = Evaluator(
            self.task, self.codec, config.eval.problems, rollout.max_new_tokens, config.eval.greedy
        )
        self.eval_engine = TorchEngine.shared(self.policy.model, self.device, self.policy.dtype)
        self.queue = RolloutQueue(self.generate, rollout.lag, config.train.steps)
        self.collapse = CollapseDetector(config.eval.collapse_fraction, config.eval.collapse_patience)
        self.step = 0  # batches trained on, which is also the policy's version
        self._write_config(sha256)
        self._write_environment()
        self._resume()

    def train(self) -> None:
        """Train to the end; every batch leaves one record, and the last state is the run's status."""
        config = self.config
        if self.step == 0:
            self.record(self.evaluate())
        while self.step < config.train.steps:
            record: dict[str, Any] = {}
            batch = self.queue.next(self.step)
            try:
                record |= self.train_on(batch)
            except NonFinite as error:
                self.step += 1
                self.finish_non_finite(batch, str(error))
                return
            self.step += 1
            last = self.step == config.train.steps
            if last or self.step % config.eval.every == 0:
                record |= self.evaluate()
                self.write_samples(batch)
            self.record(record)
            if last or self.step % config.checkpoint.every == 0:
                self.save()
        collapsed = self.collapse.step is not None
        self.run_dir.set_status("collapsed" if collapsed else "finished", **self.progress())

    def generate(self, number: int) -> RolloutBatch:
        """Sample and grade rollout batch `number` with the current weights; measure the mismatch."""
        config = self.config
        batch = self.collector.collect(number, self.policy, version=self.step)
        if self.is_measured(number) or "old" in config.needs:
            with self.timed("mismatch"):
                old = self.score(batch)
            batch.old_logprobs = old.logprobs
            mismatch = divergence_metrics("mismatch", old.logprobs, batch.mu_logprobs, batch.lengths)
            mismatch |= topk_metrics("mismatch", old.topk_logprobs, batch.topk)
            check_mismatch(mismatch["mismatch/logprob_absdiff_mean"], config.precision)
            batch.metrics |= mismatch
        return batch

    def train_on(self, batch: RolloutBatch) -> dict[str, float]:
        """The updates of one batch, with what is measured before and after them. Raises NonFinite."""
        config, record = self.config, dict(batch.metrics)
        measured, prox_logprobs, ref_logprobs = self.is_measured(batch.step), None, None
        if measured or "prox" in config.needs:
            with self.timed("staleness"):
                prox = self.score(batch)
            assert prox.entropy is not None
            prox_logprobs = prox.logprobs
            record["policy/entropy"] = float(prox.entropy.double().mean())
        if self.reference is not None:
            with self.timed("reference"):
                ref_logprobs = self.score(batch, self.reference).logprobs
        flat = flatten(batch, config.train.advantage, self.device, prox_logprobs, ref_logprobs)
        with self.timed("update"):
            record |= Updater(self.policy, self.optimizer, self.loss, batch, flat, config).run()
        if measured:
            assert prox_logprobs is not None and batch.old_logprobs is not None
            with self.timed("drift"):
                scores = self.score(batch)
            after = scores.logprobs
            if ref_logprobs is not None:
                record["reference/k3"] = float(kl_k3(ref_logprobs.double(), after.double()).mean())
            mu, lengths = batch.mu_logprobs, batch.lengths
            record |= divergence_metrics("staleness", prox_logprobs, batch.old_logprobs, lengths)
            record |= divergence_metrics("drift", after, prox_logprobs, lengths)
            record |= offpolicy_metrics(after, mu, flat.advantages.cpu(), lengths)
            record |= topk_metrics("offpolicy", scores.topk_logprobs, batch.topk)
        return record

    def score(self, batch: RolloutBatch, policy: Policy | None = None) -> TokenScores:
        """What the current policy, or another, says of the batch's response tokens and of mu's top-k at each."""
        temperature, budget = self.config.rollout.temperature, self.config.train.microbatch_tokens
        topk_ids = None if batch.topk is None else batch.topk[0]
        return score(policy or self.policy, batch.rollouts, temperature, budget, topk_ids)

    def is_measured(self, number: int) -> bool:
        """Whether mismatch, staleness and drift of batch `number` are measured; the first always is."""
        return number % self.config.metrics.every == 0

    def evaluate(self) -> dict[str, float]:
        """`eval/*` of the current weights, and the collapse detector's verdict on them."""
        with self.timed("eval"):
            result = self.evaluator(self.eval_engine)
        self.collapse.observe(self.step, result[f"eval/{self.task.name}/accuracy"])
        return result

    def record(self, values: dict[str, Any]) -> None:
        """Append the record of the current step; phases' seconds since the last one under `time/`."""
        times = {f"time/{phase}": seconds for phase, seconds in self.clock.items()}
        if self.collector.sampled_tokens:
            times["perf/rollout_tokens_per_s"] = self.collector.sampled_tokens / self.clock["rollout"]
        if self.clock.get("update"):
            times["perf/update_tokens_per_s"] = values["response/tokens"] / self.clock["update"]
        self.clock.clear()
        self.collector.sampled_tokens = 0
        line = {"step": self.step, "time_s": self.seconds()} | dict(sorted(values.items())) | times
        append_record(self.run_dir.metrics, line)
        self.run_dir.set_status("running", **self.progress())

    def finish_non_finite(self, batch: RolloutBatch, reason: str) -> None:
        """A loss or gradient was not finite: the run ends here, collapsed, with what is known of its last batch."""
        self.record(dict(batch.metrics))
        if self.collapse.step is None:
            self.collapse.step = self.step
        status = self.progress() | {"reason": "non_finite", "detail": reason}
        self.run_dir.set_status("collapsed", **status)

    def progress(self) -> dict[str, Any]:
        """What status.json says of a run that has started."""
        fields: dict[str, Any] = {
            "step": self.step,
            "steps": self.config.train.steps,
            "seconds": self.seconds(),
        }
        fields["accuracy"] = self.collapse.last
        if self.collapse.step is not None:
            fields |= {"collapse_step": self.collapse.step, "reason": "accuracy"}
        return fields

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

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        with self.timed("checkpoint"):
            sync_file(self.run_dir.metrics)  # a checkpoint never outlives the records before it
            state = {"collapse": self.collapse.state(), "seconds": self.seconds()}
            save_checkpoint(
                self.run_dir.checkpoints,
                self.step,
                self.policy,
                self.optimizer,
                self.codec,
                self.queue.waiting,
                state,
                self.config.checkpoint.keep,
            )

    def write_samples(self, batch: RolloutBatch) -> None:
        """A few of the batch's rollouts as text with their logprobs, for people to read."""
        for rollout, reward in list(zip(batch.rollouts, batch.rewards.flatten().tolist(), strict=True))[:SAMPLES_KEPT]:
            prompt, response = self.codec.decode([rollout.prompt_ids, rollout.response_ids])
            line = {"step": self.step, "problem": prompt, "response": response, "reward": reward}
            line["policy_version"] = rollout.policy_version
            line["mu_logprobs"] = [round(value, 5) for value in rollout.mu_logprobs.tolist()]
            append_record(self.run_dir.samples, line)

    def _write_config(self, warmstart_sha256: str | None) -> None:
        config = self.config
        identity = {
            "run_id": config.run_id,
            "schema_version": SCHEMA_VERSION,
            "numerics_version": NUMERICS_VERSION,
        }
        resolved = canonical(config.model_dump()) | identity | {"warmstart_sha256": warmstart_sha256}
        write_json(self.run_dir.config, resolved)

    def _write_environment(self) -> None:
        config = self.config
        environment = describe_environment(config.runtime.threads, self.device)
        environment["emulated"] = {"trainer": self.policy.emulated, "rollout": self.engine.emulated}
        environment["deterministic"] = self._probe_determinism()
        write_json(self.run_dir.env, environment)

    def _probe_determinism(self) -> bool:
        """Whether one small batch, sampled twice, is the same bit for bit."""
        count = min(4, len(self.evaluator.problems))
        prompts = self.codec.encode([problem.prompt for problem in self.evaluator.problems[:count]])
        seeds = sample_seeds(self.config.seed, "probe", 0, count, 2)
        first, second = (self.engine.generate(prompts, 2, seeds, self.collector.sampling) for _ in range(2))
        pairs = [pair for groups in zip(first, second, strict=True) for pair in zip(*groups, strict=True)]
        return all(a.token_ids == b.token_ids and torch.equal(a.logprobs, b.logprobs) for a, b in pairs)

    def _resume(self) -> None:
        """Continue from the last checkpoint; records that were written after it are dropped."""
        steps = checkpoint_steps(self.run_dir.checkpoints)
        last = steps[-1] if steps else -1
        truncate_records(self.run_dir.metrics, last)
        truncate_records(self.run_dir.samples, last)
        if steps:
            state, self.queue.waiting = load_checkpoint(self.run_dir.checkpoints, last, self.policy, self.optimizer)
            self.step, self.time_before = state["step"], state["seconds"]
            self.collapse.restore(state["collapse"])

    def _report_warmstart(self, step: int, accuracy: float) -> None:
        if step % 10 == 0:
            maximum = self.config.warmstart.max_steps
            self.run_dir.set_status("running", phase="warm start", step=step, steps=maximum, accuracy=accuracy)


def drop_other_numerics(run_dir: RunDir) -> None:
    """Start over where a run directory was written by a version whose numbers differ; summary.csv keeps its row."""
    if run_dir.config.exists() and read_json(run_dir.config)["numerics_version"] != NUMERICS_VERSION:
        shutil.rmtree(run_dir.path)


def train(config: RunConfig, experiment_dir: Path, cache: Path) -> None:
    """Train one configuration into `<experiment_dir>/runs/<run_id>/`, or finish what is there."""
    torch.set_num_threads(config.runtime.threads)
    Trainer(config, RunDir(experiment_dir / "runs" / config.run_id), cache).train()
