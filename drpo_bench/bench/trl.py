"""Peer `trl`: a rollout batch of TRL's GRPOTrainer, generation and updates, from the same checkpoint and problems."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from drpo_bench.bench import trl_server
from drpo_bench.bench.shapes import Shape
from drpo_bench.bench.timing import Comparison, Measured, loaded_is_kept
from drpo_bench.config import RunConfig
from drpo_bench.errors import UserError
from drpo_bench.records import RunDir, read_records
from drpo_bench.tasks import make_task
from drpo_bench.trainer import Trainer

NAME = "TRL GRPOTrainer"
WHATS = ("batch, 4 updates", "batch, drift unmeasured")  # TRL measures no drift of its updates
PEERS = Path(".venv-peers/bin/python")  # what `make test-peers` sets up
INSTALL = "TRL is not installed; `make test-peers` sets it up in .venv-peers, or name another with --peer-python"
UPDATES, LR, PROBLEMS = 4, 1e-4, 2048
NEVER = 10_000  # evaluations and checkpoints, which TRL's batches have none of


def find_python(named: Path | None) -> Path | None:
    """A Python that has TRL: the one that was named, this one, or that of the peers' environment."""
    if named is not None:
        if not named.exists():
            raise UserError(f"--peer-python {named}: no such file")
        return named
    if find_spec("trl") is not None:
        return Path(sys.executable)
    return PEERS.absolute() if PEERS.exists() else None


def run_config(size: str, threads: int, shape: Shape, measure_every: int) -> RunConfig:
    """GRPO on arithmetic problems of about the shape's lengths, in fp32, rollouts fresh; as TRL's side does it.

    The ratio is to the trainer's own logprobs, so a batch is scored once before its updates on either side.
    """
    fields: dict[str, Any] = {
        "experiment": {"name": "bench"},
        "model": {"name": size},
        "task": {"name": "arithmetic", "min_terms": 4, "max_terms": 4, "max_operand": 9, "guesses": 0.5},
        "warmstart": {"target": 0.3, "lr": 4e-3, "eval_every": 10},
        "rollout": {
            "problems_per_batch": shape.problems,
            "group_size": shape.group_size,
            "max_new_tokens": shape.response + 5,
            "lag": 0,
        },
        "train": {"steps": NEVER, "updates_per_batch": UPDATES, "lr": LR, "anchor": "old"},
        "eval": {"every": NEVER, "problems": 64},
        "checkpoint": {"every": NEVER},
        "metrics": {"every": measure_every},
        "precision": "fp32",
        "loss": {"id": "grpo", "clip_low": 0.2, "clip_high": 0.28},
        "runtime": {"threads": threads},
    }
    return RunConfig.model_validate(fields)


def compare(
    size: str, threads: int, shape: Shape, repeats: int, warmstarts: Path, peer_python: Path | None
) -> list[Comparison]:
    """Whole batches, in turn: sampling, grading, updates, and what each side records of them.

    We take two turns: with drift measured at every batch, which is the default and scores it again, and at none.
    """
    python = find_python(peer_python)
    if python is None:
        return [Comparison(what, None, NAME, not_measured=INSTALL) for what in WHATS]
    configs = [run_config(size, threads, shape, measure_every) for measure_every in (1, NEVER)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        trainers = [
            stack.enter_context(closing(Trainer(config, RunDir(Path(folder) / str(i)), warmstarts)))
            for i, config in enumerate(configs)
        ]
        server = stack.enter_context(closing(Server(python, trainers[0])))
        for trainer in trainers:
            own_batch(trainer)
        server.batch()
        with loaded_is_kept():
            turns = [(*map(own_batch, trainers), server.batch()) for _ in range(repeats)]
    *ours, theirs = (Measured(*zip(*side, strict=True)) for side in zip(*turns, strict=True))
    return [Comparison(what, own, NAME, theirs, by_rate=False) for what, own in zip(WHATS, ours, strict=True)]


def own_batch(trainer: Trainer) -> tuple[float, int]:
    """Seconds and response tokens of the next batch; the first call also evaluates the warm start."""
    begin = time.perf_counter()
    trainer.train(until=trainer.step + 1)
    seconds = time.perf_counter() - begin
    *_, last = read_records(trainer.run_dir.metrics)
    return seconds, int(last["response/tokens"])


class Server:
    """TRL in a process of its own, idle between its turns."""

    def __init__(self, python: Path, trainer: Trainer) -> None:
        config, task = trainer.config, make_task(trainer.config.task)
        problems = [task.problem("train", config.seed, i) for i in range(PROBLEMS)]
        lines = [json.dumps({"prompt": p.prompt, "answer": str(p.answer)}) for p in problems]
        file = trainer.run_dir.path / "problems.jsonl"
        file.write_text("\n".join(lines))
        self.errors = (trainer.run_dir.path / "trl.txt").open("w+")
        rollout = config.rollout
        options = {
            "model": trainer.source,
            "problems": file,
            "problems-per-batch": rollout.problems_per_batch,
            "group-size": rollout.group_size,
            "updates": config.train.updates_per_batch,
            "max-new-tokens": rollout.max_new_tokens,
            "threads": config.runtime.threads,
            "lr": config.train.lr,
        }
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self.process = subprocess.Popen(
            [python, "-P", trl_server.__file__, *arguments],  # -P: beside it stands this file, which is no TRL
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def batch(self) -> tuple[float, int]:
        """Seconds and response tokens of the next batch."""
        assert self.process.stdin and self.process.stdout
        with suppress(BrokenPipeError):  # it has ended, and said why
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(f"TRL's process ended: {self.errors.read().strip().splitlines()[-1:]}")
        answer = json.loads(line)
        return answer["seconds"], answer["tokens"]

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()
