"""The RL loop of one run: sample, update, measure, record, checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drpo_bench.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from drpo_bench.collapse import CollapseDetector
from drpo_bench.collect import Collector
from drpo_bench.config import RunConfig
from drpo_bench.environment import describe_environment
from drpo_bench.evaluate import Evaluator
from drpo_bench.head import TokenScores
from drpo_bench.losses import make_loss
from drpo_bench.metrics import divergence_metrics, offpolicy_metrics, routing_metrics, topk_metrics
from drpo_bench.model_check import check_model
from drpo_bench.models import Policy
from drpo_bench.models import load_checkpoint as load_pretrained
from drpo_bench.ops import kl_k3
from drpo_bench.optim import Collapse, Optimizer
from drpo_bench.precision import emulated_parts, refuse_emulation
from drpo_bench.random_state import seed_everything
from drpo_bench.recorder import Recorder
from drpo_bench.records import RunDir, State, cut_back, extent, sync_file
from drpo_bench.rollout.alarm import find_mismatch, too_large
from drpo_bench.rollout.batch import RolloutBatch, RolloutQueue
from drpo_bench.rollout.engines import make_engine
from drpo_bench.rollout.torch_engine import TorchEngine
from drpo_bench.routing import routers
from drpo_bench.scoring import score
from drpo_bench.tasks import make_task
from drpo_bench.text import TextCodec
from drpo_bench.update import Updater, flatten
from drpo_bench.warmstart import ensure_warmstart
from drpo_bench.wiring import MismatchGrew, explain_mismatch, is_deterministic

PROBED_PROBLEMS = 16


class Trainer:
    """One run: its policy, engines, queue and files."""

    def __init__(self, config: RunConfig, run_dir: RunDir, cache: Path) -> None:
        self.config, self.run_dir = config, run_dir
        self.device = torch.device(config.runtime.device)
        if not config.runtime.allow_emulation:  # asked again here: a worker's machine can be another
            refuse_emulation(config.precision, config.rollout.engine, self.device)
        self.recorder = Recorder(config, run_dir)
        self.timed = self.recorder.timed

        self.source, self.warmstart_sha256 = config.model.name, None
        if config.model.from_scratch:
            warmstart = ensure_warmstart(config, cache, self.recorder.report_warmstart)
            self.source, self.warmstart_sha256 = str(warmstart.directory), warmstart.sha256
        seed_everything(config.seed)
        model, tokenizer = load_pretrained(self.source)
        if not config.model.from_scratch:
            check_model(model, config.model.name)
        if config.train.routing_replay != "off" and not routers(model):
            raise ValueError(f"train.routing_replay: {type(model).__name__} has no router that can be told its choice")
        model.to(self.device)
        self.task, self.codec = make_task(config.task), TextCodec(tokenizer)
        self.engine = make_engine(model, config.rollout, config.precision.rollout, self.device)
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
        self.wiring_is_sound = False  # as shown by `explain`
        self.fresh: tuple[int, int, TokenScores] | None = None  # batch, step, scores of what was sampled for it
        self.step = 0  # batches trained on, which is also the policy's version
        try:
            self._write_environment()
            self._resume()
            self.recorder.write_config(self.warmstart_sha256)
        except BaseException:
            self.close()
            raise

    def train(self, until: int | None = None) -> None:
        """Train to the end, or until `until` batches are done; every batch leaves one record.

        The last state is the run's status, `running` if it has not come to its end.
        """
        config = self.config
        end = config.train.steps if until is None else min(until, config.train.steps)
        if self.step == 0:
            self.record(self.evaluate())
        while self.step < end:
            record: dict[str, Any] = {}
            try:
                batch = self.queue.next(self.step)
                record |= batch.metrics
                record |= self.train_on(batch)
            except Collapse as collapse:
                self.step += 1
                self.finish_collapsed(collapse, record)
                return
            self.step += 1
            last = self.step == config.train.steps
            if last or self.step % config.eval.every == 0:
                record |= self.evaluate()
                self.recorder.write_samples(self.step, batch, self.codec)
            self.record(record)
            if last or self.step % config.checkpoint.every == 0:
                self.save()
        if self.step < config.train.steps:
            return
        self.conclude("finished" if self.collapse.step is None else "collapsed")

    def close(self) -> None:
        """Give the engine's memory back."""
        self.engine.close()

    def generate(self, number: int) -> RolloutBatch:
        """Sample and grade rollout batch `number` with the current weights; measure the mismatch."""
        config, replay = self.config, self.config.train.routing_replay
        batch = self.collector.collect(number, self.policy, version=self.step)
        if broken := int((~torch.isfinite(batch.mu_logprobs)).sum()):
            raise MismatchGrew(self.explain(f"{broken} of {len(batch.mu_logprobs)} mu_logprobs are not finite", batch))
        if self.is_measured(number) or "old" in config.needs:
            with self.timed("mismatch"):
                fresh = number == self.step and replay in ("off", "R3")  # it is trained on next, by these weights
                old = self.score(batch, replay="R3" if replay == "R3" else "off", entropy=fresh)
            batch.old_logprobs, batch.old_routes = old.logprobs, old.routes
            if fresh:
                self.fresh = (number, self.step, old)
            mismatch = divergence_metrics("mismatch", old.logprobs, batch.mu_logprobs, batch.lengths)
            mismatch |= topk_metrics("mismatch", old.topk_logprobs, batch.topk) | routing_metrics(
                old.routes, batch.rollouts
            )
            batch.metrics |= mismatch
            self.check_mismatch(old.logprobs, batch)
        return batch

    def check_mismatch(self, old: Tensor, batch: RolloutBatch) -> None:
        """The alarm. Wrong wiring fails the run; a policy that the formats cannot follow has collapsed.

        Where the wiring proves sound, the questions that only wrong wiring answers are not asked again.
        """
        ask = too_large if self.wiring_is_sound else find_mismatch
        if problem := ask(old, batch.mu_logprobs, self.config.precision):
            saw = self.explain(problem, batch)
            self.wiring_is_sound = True
            if too_large(old, batch.mu_logprobs, self.config.precision):
                raise MismatchGrew(saw)

    def explain(self, problem: str, batch: RolloutBatch) -> str:
        """What the alarm saw, where the wiring is sound; else MismatchAlarm or HandoverFailed."""
        initial, _ = load_pretrained(self.source)
        initial.to(self.device)
        prompts = [rollout.prompt_ids for rollout in batch.rollouts[:: self.config.rollout.group_size]]
        stop_ids = self.codec.stop_ids
        return explain_mismatch(problem, self.config, self.engine, initial, prompts, stop_ids, self.step)

    def train_on(self, batch: RolloutBatch) -> dict[str, float]:
        """The updates of one batch, with what is measured before and after them. Raises NonFinite."""
        config, record = self.config, dict(batch.metrics)
        measured, prox_logprobs, ref_logprobs = self.is_measured(batch.step), None, None
        if measured or "prox" in config.needs:
            with self.timed("staleness"):
                prox = self.score_before(batch)
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

    def score_before(self, batch: RolloutBatch) -> TokenScores:
        """What the policy says of a batch before its updates: known already where it has just sampled it (lag 0)."""
        if self.fresh is not None and self.fresh[:2] == (batch.step, self.step):
            return self.fresh[2]
        return self.score(batch, entropy=True)

    def score(
        self, batch: RolloutBatch, policy: Policy | None = None, replay: str | None = None, entropy: bool = False
    ) -> TokenScores:
        """What the current policy, or another, says of the batch's response tokens and of mu's top-k at each.

        The current policy takes the routes that its updates take, unless `replay` says otherwise; another its own.
        """
        temperature, budget = self.config.rollout.temperature, self.config.train.microbatch_tokens
        topk_ids = None if batch.topk is None else batch.topk[0]
        mode = "off" if policy else self.config.train.routing_replay
        routes = batch.replayed(replay or mode)
        return score(policy or self.policy, batch.rollouts, temperature, budget, topk_ids, routes, entropy)

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
        """Append the record of the current step."""
        self.recorder.record(self.step, values, self.collector.sampled_tokens)
        self.collector.sampled_tokens = 0
        self.run_dir.set_status("running", **self.progress())

    def finish_collapsed(self, collapse: Collapse, known: dict[str, Any]) -> None:
        """The run ends here, which is its result; what is known of the last batch is recorded."""
        self.record(known)
        if self.collapse.step is None:
            self.collapse.step = self.step
        self.conclude("collapsed", reason=collapse.reason, detail=str(collapse))

    def conclude(self, state: State, **fields: Any) -> None:
        """The run has its result: its status, and what the records were, so that damage to them is noticed."""
        for path in filter(Path.exists, self.run_dir.records):
            sync_file(path)
        extents = {path.name: extent(path) for path in self.run_dir.records}
        self.run_dir.set_status(state, **self.progress() | fields | {"records": extents})

    def progress(self) -> dict[str, Any]:
        """What status.json says of a run that has started."""
        fields: dict[str, Any] = {
            "step": self.step,
            "steps": self.config.train.steps,
            "seconds": self.recorder.seconds(),
        }
        fields["accuracy"] = self.collapse.last
        if self.collapse.step is not None:
            fields |= {"collapse_step": self.collapse.step, "reason": "accuracy"}
        return fields

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        with self.timed("checkpoint"):
            state = {
                "collapse": self.collapse.state(),
                "seconds": self.recorder.seconds(),
                "warmstart_sha256": self.warmstart_sha256,
            }
            save_checkpoint(
                self.run_dir.checkpoints,
                self.step,
                self.policy,
                self.optimizer,
                self.codec,
                self.queue.waiting,
                self.run_dir.records,
                state,
                self.config.checkpoint.keep,
            )

    def _write_environment(self) -> None:
        config = self.config
        environment = describe_environment(config.runtime.threads, self.device)
        parts = emulated_parts(config.precision, config.rollout.engine, self.device)
        environment["emulated"] = {side: bool(names) for side, names in parts.items()}
        environment["engine"] = self.engine.description
        # Many requests at a time, as in training: engines that are deterministic for a few need not be for many.
        prompts = self.codec.encode([problem.prompt for problem in self.evaluator.problems[:PROBED_PROBLEMS]])
        environment["deterministic"] = is_deterministic(
            self.engine, self.policy.master, prompts, config.rollout.group_size, config.seed, self.collector.sampling
        )
        self.recorder.write_environment(environment)

    def _resume(self) -> None:
        """Continue from the last checkpoint that is whole; records that were written after it are dropped."""
        found = newest_checkpoint(self.run_dir.checkpoints, self.run_dir.records)
        for path in self.run_dir.records:
            cut_back(path, found[1]["records"][path.name]["bytes"] if found else 0)
        if found:
            path, state = found
            if state["warmstart_sha256"] != self.warmstart_sha256:
                raise ValueError(
                    f"warmstart: its weights are not those that the run began with ({path}): another machine or "
                    "library trained them; use --out to start anew"
                )
            self.queue.waiting = load_checkpoint(path, state, self.policy, self.optimizer)
            self.step, self.recorder.time_before = state["step"], state["seconds"]
            self.collapse.restore(state["collapse"])
            print(f"goes on from {path.name}", flush=True)  # noqa: T201


def train(config: RunConfig, experiment_dir: Path, cache: Path) -> None:
    """Train one configuration into `<experiment_dir>/runs/<run_id>/`, or finish what is there."""
    torch.set_num_threads(config.runtime.threads)
    trainer = Trainer(config, RunDir(experiment_dir / "runs" / config.run_id), cache)
    try:
        trainer.train()
    finally:
        trainer.close()
