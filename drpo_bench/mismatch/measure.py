"""What `drpo-bench mismatch` measures: sequences are sampled once, every side scores them, every pair is compared."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from drpo_bench.config import RunConfig
from drpo_bench.environment import describe_environment
from drpo_bench.errors import UserError
from drpo_bench.evaluate import EVAL_SEED
from drpo_bench.mismatch.pairs import Row, check_control, pair_rows
from drpo_bench.mismatch.progress import Progress
from drpo_bench.mismatch.scores import Sequences, SideScores, opened, score_twice
from drpo_bench.mismatch.sides import Side, parse_sampler, parse_sides
from drpo_bench.mismatch.source import describe, load_weights, resolve
from drpo_bench.mismatch.tables import sampled_against_scored, sequence_rows, token_rows, write_csv
from drpo_bench.records import write_json
from drpo_bench.rollout.engine import Sampling, sample_seeds
from drpo_bench.tasks import distinct_problems, make_task
from drpo_bench.text import TextCodec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REFERENCE = "trainer:fp32"  # pi of scatter plots and histograms; the first side where it is not asked for
TOPK = 20
OWNER = "mismatch.json"


@dataclass(frozen=True)
class Request:
    """The command's options."""

    model: str
    architecture: str | None
    task: str | None
    sides: str | None
    sampler: str
    problems: int
    samples: int
    max_new_tokens: int
    seed: int
    threads: int
    device: str
    out: Path | None
    warmstarts: Path


def measure(request: Request) -> Path:
    """Write pairs.csv, tokens.csv, sequences.csv and mismatch.json; returns their folder.

    Raises UserError for what the user got wrong, before anything is written, and ControlFailed.
    """
    config = resolve(request.model, request.architecture, request.task, request.seed, request.threads, request.device)
    if request.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here")
    sides, sampler = parse_sides(request.sides, config), parse_sampler(request.sampler)
    out = request.out or Path("results") / "mismatch" / default_name(config)
    check_out(out)
    torch.set_num_threads(request.threads)
    with Progress() as progress:
        compare(request, config, sides, sampler, out, progress)
    return out


def compare(
    request: Request, config: RunConfig, sides: list[Side], sampler: Side, out: Path, progress: Progress
) -> None:
    """Sample, score, control, compare, write."""
    device = torch.device(request.device)
    progress.start("weights")
    model, tokenizer = load_weights(config, request.warmstarts, progress.warmstart)
    model.to(device)
    progress.done(f"weights: {request.model}")
    codec = TextCodec(tokenizer)
    prompts = encode_problems(config, codec, request.problems)
    sampling = Sampling(1.0, request.max_new_tokens, codec.stop_ids, min(TOPK, model.config.vocab_size))
    progress.start(f"{sampler.name} samples")
    sequences = sample_once(sampler, model, prompts, request, sampling, device)
    ids, lengths = sequences.token_ids, sequences.lengths
    progress.done(f"sampled by {sampler.name}: {len(lengths)} sequences, {len(ids)} tokens")

    scores, seconds, controls = {}, {}, {}
    # vLLM last: it pins threads and memory of this process.
    for side in sorted(sides, key=lambda side: side.engine == "vllm"):
        progress.start(f"{side.name} scores")
        scores[side.name], again = score_side(side, model, sequences, device)
        controls[side.name] = pair_rows((side.name, side.name), scores[side.name], again, ids, lengths)
        check_control(controls[side.name])
        seconds[side.name] = progress.done(f"[{len(scores)}/{len(sides)}] {side.name}: twice the same, bit for bit")
    progress.start("pairs")
    names, pairs = [side.name for side in sides], list[Row]()
    for mu, pi in itertools.product(names, names):
        pairs += controls[mu] if mu == pi else pair_rows((mu, pi), scores[mu], scores[pi], ids, lengths)
    reference = REFERENCE if REFERENCE in names else names[0]
    description = describe(config, model) | {
        "sampler": sampler.name,
        "reference": reference,
        "problems": request.problems,
        "samples": request.samples,
        "max_new_tokens": request.max_new_tokens,
        "sequences": len(lengths),
        "tokens": len(ids),
        "topk": sampling.topk,
        "sides": [
            {"name": side.name, "emulated": side.is_emulated(device), "seconds": round(seconds[side.name], 2)}
            for side in sides
        ],
        "sampled_against_scored": sampled_against_scored(scores.get(sampler.name), sequences),
        "environment": describe_environment(request.threads, device),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    write_csv(out / "pairs.csv", pairs)
    write_csv(out / "tokens.csv", token_rows(scores, names, reference, request.seed))
    write_csv(out / "sequences.csv", sequence_rows(scores, names, reference, lengths))
    write_json(out / OWNER, description)
    progress.done(f"{len(names) * (len(names) - 1)} pairs compared")


def default_name(config: RunConfig) -> str:
    """Folder of a model: `nano-qwen3`, `<run_id>-step_60`."""
    path = Path(config.model.name)
    name = f"{path.absolute().parents[1].name}-{path.name}" if path.name.startswith("step_") else path.name
    return f"{name}-{config.model.architecture}" if config.model.from_scratch else name


def check_out(out: Path) -> None:
    """Refuse a folder that holds something else. Writes nothing."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file, not a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / OWNER).exists():
        raise UserError(f"--out {out}: holds files that this command did not write ({OWNER} is missing)")


def encode_problems(config: RunConfig, codec: TextCodec, count: int) -> list[tuple[int, ...]]:
    """The first held-out problems of the task, as the model's tokenizer reads them."""
    try:
        problems = distinct_problems(make_task(config.task), "eval", EVAL_SEED, count, "--problems")
    except ValueError as error:
        raise UserError(str(error)) from None
    prompts = codec.encode([problem.prompt for problem in problems])
    unknown = codec.tokenizer.unk_token_id
    if unknown is not None and any(unknown in prompt for prompt in prompts):
        raise UserError(f"--task {config.task.name}: the checkpoint's tokenizer does not know its words; name another")
    return prompts


def sample_once(
    sampler: Side,
    model: PreTrainedModel,
    prompts: list[tuple[int, ...]],
    request: Request,
    sampling: Sampling,
    device: torch.device,
) -> Sequences:
    """The sequences that every side scores; a pure function of weights, seed and sampler."""
    seeds = sample_seeds(request.seed, "mismatch", 0, len(prompts), request.samples)
    with opened(sampler, model, (max(map(len, prompts)), request.max_new_tokens), device) as engine:
        return Sequences(prompts, engine.generate(prompts, request.samples, seeds, sampling), sampling)


def score_side(
    side: Side, model: PreTrainedModel, sequences: Sequences, device: torch.device
) -> tuple[SideScores, SideScores]:
    """`score_twice`; what vLLM cannot compute here is told in a line that names the side."""
    try:
        return score_twice(side, model, sequences, device)
    except (ValueError, RuntimeError) as error:
        if side.engine != "vllm":
            raise
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"--sides {side.name}: vLLM cannot compute it on this {device.type}: {reason}") from error
