"""The warm start: supervised training of a from-scratch model on worked solutions, cached by content."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from drpo_bench.batching import MicroBatch, micro_batch
from drpo_bench.config import RunConfig, canonical
from drpo_bench.evaluate import accuracy
from drpo_bench.manifest import damage, describe_files
from drpo_bench.models import build_model, head_logits, response_hidden, save_model, wrap_tokenizer
from drpo_bench.records import DamagedFile, append_record, read_json, sync_file, write_json, write_text
from drpo_bench.rollout.engine import Sampling
from drpo_bench.rollout.torch_engine import TorchEngine
from drpo_bench.tasks import Task, distinct_problems, make_task
from drpo_bench.text import TextCodec
from drpo_bench.types import Rollout

HELD_OUT_SEED = -1  # of the problems that decide when to stop, from the train split; no run has this seed
DESCRIPTION = "warmstart.json"  # settings, result and the sha256 of every other file
Report = Callable[[int, float], None]  # (step, sampled accuracy so far)


class TargetMissed(RuntimeError):
    """The warm start did not reach its target; trained again it would not reach it again."""


@dataclass(frozen=True)
class Warmstart:
    """A trained starting point on disk, as `from_pretrained` loads it."""

    directory: Path
    sha256: str


def ensure_warmstart(config: RunConfig, cache: Path, report: Report) -> Warmstart:
    """The warm start of a run, trained now unless the cache has it.

    Safe when several workers want it at once: one trains under a lock, the others wait. Raises
    TargetMissed if the target accuracy is not reached within max_steps; that is remembered too.
    """
    from filelock import FileLock

    directory = cache / config.warmstart_key()
    cache.mkdir(parents=True, exist_ok=True)
    failure = directory.with_suffix(".missed")
    with FileLock(f"{directory}.lock", poll_interval=0.5, fallback_to_soft=False):
        if failure.exists():
            raise TargetMissed(failure.read_text())
        if directory.exists() and (problem := cache_damage(directory)):
            warnings.warn(f"{directory}: {problem}: the warm start is trained again", stacklevel=2)
            shutil.rmtree(directory)
        if not directory.exists():
            unfinished = directory.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                train_warmstart(config, unfinished, report)
            except TargetMissed as error:
                write_text(failure, str(error))
                raise
            for path in unfinished.iterdir():
                sync_file(path)
            os.replace(unfinished, directory)
            sync_file(cache)
    return Warmstart(directory, read_json(directory / DESCRIPTION)["files"]["model.safetensors"])


def cache_damage(directory: Path) -> str | None:
    """What is wrong with a cached warm start, or None."""
    try:
        return damage(directory, read_json(directory / DESCRIPTION)["files"])
    except (DamagedFile, FileNotFoundError, KeyError):
        return f"{DESCRIPTION} is damaged"


def train_warmstart(config: RunConfig, directory: Path, report: Report) -> None:
    """Train from scratch until the sampled held-out accuracy reaches the target; write model and log."""
    settings, device = config.warmstart, torch.device(config.runtime.device)
    task = make_task(config.task)
    tokenizer = wrap_tokenizer(task.tokenizer())
    codec = TextCodec(tokenizer)
    model = build_model(config.model, len(tokenizer), config.seed).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.01, fused=True)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))
    engine = TorchEngine.shared(average.module, device)
    sampling = Sampling(1.0, settings.max_new_tokens, codec.stop_ids)
    held_out = distinct_problems(task, "train", HELD_OUT_SEED, settings.eval_problems, "warmstart.eval_problems")

    reached = 0.0
    for step in range(1, settings.max_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * min(1.0, step / max(1, settings.warmup_steps))
        batch = solutions(task, codec, config.seed, step, settings.batch_size, device)
        loss = F.cross_entropy(head_logits(model, response_hidden(model, batch)), batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        if step % settings.eval_every == 0 or step == settings.max_steps:
            measured = accuracy(engine, task, codec, held_out, sampling)
            append_record(directory / "warmstart.jsonl", {"step": step, "loss": loss.item()} | measured)
            reached = max(reached, measured["accuracy"])
            if measured["accuracy"] >= settings.target:
                break
        report(step, reached)
    else:
        raise TargetMissed(
            f"warmstart.target: sampled accuracy reached {reached:.3f} of {settings.target} "
            f"in warmstart.max_steps = {settings.max_steps}"
        )
    save_model(average.module, tokenizer, directory)
    fields = config.model_dump(include={"seed", "model", "task", "warmstart", "runtime"})
    result = {"step": step, "accuracy": measured["accuracy"], "files": describe_files(directory)}
    write_json(directory / DESCRIPTION, canonical(fields) | result)


def solutions(task: Task, codec: TextCodec, seed: int, step: int, count: int, device: torch.device) -> MicroBatch:
    """A batch of worked solutions, each with its stop token; a pure function of (seed, step)."""
    problems = [task.problem("warmstart", seed, (step - 1) * count + i) for i in range(count)]
    prompts = codec.encode([problem.prompt for problem in problems])
    answers = codec.encode([problem.solution for problem in problems])
    none = torch.empty(0)
    rollouts = [
        Rollout(i, prompt, answer + codec.stop_ids[:1], none, False, 0)
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    return micro_batch(rollouts, range(count), device)
