"""The configuration of one run: a frozen pydantic tree, its canonical JSON and its run id."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, Literal

from pydantic import Field, model_validator

from drpo_bench.correction_configs import CorrectionConfig, NoCorrection
from drpo_bench.loss_configs import AnchorName, DRPOConfig, LossConfig, Number
from drpo_bench.loss_presets import apply_preset, find_preset
from drpo_bench.precision_configs import PrecisionConfig
from drpo_bench.rollout_configs import RolloutConfig
from drpo_bench.task_configs import ArithmeticConfig, Frozen, TaskConfig

SCHEMA_VERSION = 1  # of config.json: raised when a field changes its name or meaning
NUMERICS_VERSION = 4  # of the numbers: raised when the same config gives other results than before
CHECKPOINT_VERSION = 2  # of what a run resumes from: raised when its files change

SIZES = ("nano", "micro", "mini", "small")
Architecture = Literal["qwen3", "llama", "qwen3_moe", "qwen3_next", "gemma3", "gpt_oss"]

MIXTURES = ("qwen3_moe", "qwen3_next", "gpt_oss")


class ModelConfig(Frozen):
    """The policy: a size trained from scratch, or a Hugging Face checkpoint."""

    name: str = Field(default="nano", min_length=1, description="nano, micro, mini, small, a directory or a hub id.")
    architecture: Architecture = Field(default="qwen3", description="Of from-scratch models.")

    @property
    def from_scratch(self) -> bool:
        """Whether the weights come from the warm start and not from a checkpoint."""
        return self.name in SIZES


class WarmstartConfig(Frozen):
    """Supervised training of a from-scratch model on worked solutions, in fp32."""

    target: float = Field(default=0.3, ge=0, le=1, description="Sampled held-out accuracy at which it stops.")
    max_steps: int = Field(default=2000, ge=1, description="It fails if the target is not reached by then.")
    batch_size: int = Field(default=64, ge=1, description="Worked solutions a step.")
    lr: float = Field(default=2e-3, gt=0, description="AdamW's learning rate, after a linear warm-up.")
    ema_decay: float = Field(default=0.95, ge=0, lt=1, description="The result is a moving average of the weights.")
    warmup_steps: int = Field(default=50, ge=0, description="Steps of linear warm-up.")
    eval_every: int = Field(default=25, ge=1, description="Steps between measurements of the accuracy.")
    max_new_tokens: int = Field(default=64, ge=1, description="A longer sample counts as truncated.")
    eval_problems: int = Field(default=256, ge=1, description="Held-out problems of a measurement.")


class TrainConfig(Frozen):
    """How the policy is updated."""

    steps: int = Field(default=100, ge=1, description="Rollout batches.")
    updates_per_batch: int = Field(default=4, ge=1, description="Optimizer steps a rollout batch, one pass.")
    lr: float = Field(default=3e-4, gt=0, description="AdamW's learning rate.")
    warmup_updates: int = Field(default=0, ge=0, description="Optimizer steps of linear learning-rate warm-up.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's decoupled weight decay.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's first-moment decay.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's second-moment decay.")
    aggregation: Literal["token_mean", "seq_mean_token_sum", "seq_mean_token_mean", "seq_mean_token_sum_norm"] = Field(
        default="token_mean", description="How token losses become one number."
    )
    advantage: Literal["mean", "group_std", "batch_std", "rloo", "none"] = Field(
        default="mean", description="How rewards become advantages, within each group."
    )
    anchor: AnchorName = Field(default="mu", description="The ratio's denominator.")
    kl_coef: float = Field(default=0.0, ge=0, description="Of KL(pi || ref) by k3, ref being the initial policy.")
    entropy_coef: float = Field(default=0.0, ge=0, description="Of the policy's entropy, which is then maximised.")
    horizon: int | None = Field(
        default=None, ge=1, description="Norm of seq_mean_token_sum_norm; rollout.max_new_tokens by default."
    )
    max_grad_norm: Number = Field(default=1.0, gt=0, description="Gradient-norm clip; inf turns it off.")
    routing_replay: Literal["off", "R2", "R3"] = Field(
        default="off",
        description="Experts that a mixture's updates take: its own choice, the trainer's at the sampling weights "
        "(R2), or the rollout engine's (R3).",
    )
    microbatch_tokens: int = Field(
        default=16384,
        ge=1,
        description="Padded tokens of one forward pass; the gradient does not depend on it.",
    )


class EvalConfig(Frozen):
    """Evaluation on fixed held-out problems, and the collapse detector that reads it."""

    every: int = Field(default=10, ge=1, description="Steps between evaluations; 0 and the last are always measured.")
    problems: int = Field(default=256, ge=1, description="Held-out problems.")
    greedy: bool = Field(default=True, description="Also measure greedy accuracy.")
    collapse_fraction: float = Field(default=0.5, gt=0, lt=1, description="Collapsed below this share of the peak...")
    collapse_patience: int = Field(default=2, ge=1, description="...for so many evaluations in a row.")


class MetricsConfig(Frozen):
    """The cost of looking: mismatch, staleness and drift take a forward pass over the batch each."""

    every: int = Field(default=1, ge=1, description="Steps between measurements of mismatch, staleness and drift.")


class RuntimeConfig(Frozen):
    """Where a run computes; threads and device are part of its identity, since they change the order of sums."""

    threads: int = Field(default=1, ge=1, description="CPU threads of a run.")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="Device of trainer and torch engine.")
    allow_emulation: bool = Field(
        default=True, description="False: refuse to start where the device lacks a number format of the run."
    )


class CheckpointConfig(Frozen):
    """How often a run can be resumed from; not part of its identity."""

    every: int = Field(default=20, ge=1, description="Steps between checkpoints; the last step always has one.")
    keep: int = Field(
        default=2, ge=1, description="Checkpoints kept; the last serves, or if it is damaged the one before."
    )


class ExperimentInfo(Frozen):
    """What an experiment is called and what it asks; not part of a run's identity."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Folder under the results directory.")
    question: str = Field(default="", description="The question that the figures should answer.")


class RunConfig(Frozen):
    """Everything that determines one run."""

    experiment: ExperimentInfo
    seed: int = Field(default=0, ge=0, description="Of the warm start, data order and sampling.")
    model: ModelConfig = ModelConfig()
    task: TaskConfig = ArithmeticConfig()
    warmstart: WarmstartConfig = WarmstartConfig()
    rollout: RolloutConfig = RolloutConfig()
    precision: PrecisionConfig = PrecisionConfig()
    loss: LossConfig = DRPOConfig()
    correction: CorrectionConfig = NoCorrection()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    metrics: MetricsConfig = MetricsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="before")
    @classmethod
    def _preset_written_out(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        # Tables whose class is told by a tag: a preset may set fields in them.
        return apply_preset({"task": {"name": ArithmeticConfig().name}, "correction": {"id": "none"}} | data)

    @model_validator(mode="after")
    def _correction_fits(self) -> RunConfig:
        if problem := self.correction.misfit(self.loss.id, self.loss, self.train.anchor):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _overlong_buffer_fits(self) -> RunConfig:
        buffer, longest = self.task.overlong_buffer, self.rollout.max_new_tokens
        if buffer is not None and buffer > longest:
            raise ValueError(f"task.overlong_buffer ({buffer}) is above rollout.max_new_tokens ({longest})")
        return self

    @model_validator(mode="after")
    def _replay_has_experts(self) -> RunConfig:
        architecture, replay = self.model.architecture, self.train.routing_replay
        if replay != "off" and self.model.from_scratch and architecture not in MIXTURES:
            raise ValueError(
                f"train.routing_replay is {replay!r}, but model.architecture {architecture!r} has no experts"
            )
        return self

    @model_validator(mode="after")
    def _groups_fill_minibatches(self) -> RunConfig:
        groups, updates = self.rollout.problems_per_batch, self.train.updates_per_batch
        if groups % updates:
            raise ValueError(
                f"rollout.problems_per_batch ({groups}) must be a multiple of train.updates_per_batch ({updates})"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The fields that determine the result, as canonical data."""
        unused = set() if self.model.from_scratch else {"warmstart"}
        data = canonical(self.model_dump(exclude={"experiment", "checkpoint", *unused}))
        assert isinstance(data, dict)
        return acting(data) | {"schema_version": SCHEMA_VERSION}

    @property
    def run_id(self) -> str:
        """`<model>-<precision>-<loss>-s<seed>-<8 hex of sha256>`; only the hash identifies."""
        digest = content_hash(self.identity())[:8]
        model = re.sub(r"[^A-Za-z0-9.]+", "_", PurePath(self.model.name).name)
        if self.model.from_scratch and self.model.architecture != "qwen3":
            model += f"_{self.model.architecture}"
        return f"{model}-{self.precision.name}-{self.loss.id}-s{self.seed}-{digest}"

    @property
    def needs(self) -> frozenset[str]:
        """Which sets of logprobs the updates read beyond mu's: old, prox, ref, topk."""
        reference = {"ref"} if self.train.kl_coef else set()
        routes = {"old"} if self.train.routing_replay == "R2" else set()  # recorded when old is computed
        return self.loss.needs_with(self.train.anchor) | reference | routes

    def warnings(self) -> list[str]:
        """What a user should know about this run before it starts, one line each."""
        found = self.loss.warnings()
        preset = find_preset(self.loss.id, self.loss.preset)
        if preset and preset.missing:
            missing = "; ".join(preset.missing)
            found.append(f"loss.preset = {self.loss.preset!r} of {self.loss.id} does not reproduce: {missing}")
        anchor = self.train.anchor
        ratio_is_one = self.train.updates_per_batch == 1 and (
            anchor == "prox" or (anchor == "old" and self.rollout.lag == 0)
        )
        other_mask = self.loss.topk > 0 or getattr(self.loss, "mask_anchor", None) not in (None, anchor)
        if ratio_is_one and self.loss.corrects and not other_mask and self.loss.id not in ("pg_is", "penalty"):
            found.append(
                f"train.anchor = {anchor!r} with one update a batch: the ratio is 1 at every update, so "
                f"the clip, mask or penalty of {self.loss.id} on it never acts"
            )
        return found

    def warmstart_key(self) -> str:
        """Content hash of what determines the warm start: not the loss, precision, rollout or training."""
        rewards = {"overlong_penalty", "overlong_buffer"}
        fields = self.model_dump(include={"seed", "model", "warmstart", "runtime"})
        fields["task"] = self.task.model_dump(exclude=rewards)
        return content_hash(acting(canonical(fields)) | {"numerics_version": NUMERICS_VERSION})[:16]


def acting(data: dict[str, Any]) -> dict[str, Any]:
    """The tables of a run without what cannot act in it: switches of what is off, a preset's name, which is
    written out, and whether it may be emulated, which decides if it starts."""
    rollout = data.get("rollout", {})
    unused = {
        ("loss", "preset"): True,
        ("rollout", "max_sampling_rounds"): not rollout.get("dynamic_sampling"),
        ("rollout", "vllm"): rollout.get("engine") != "vllm",
        ("task", "overlong_buffer"): not data.get("task", {}).get("overlong_penalty"),
        ("runtime", "allow_emulation"): True,
        ("train", "routing_replay"): data.get("train", {}).get("routing_replay") == "off",
    }
    tables = {table: dict(data[table]) for table, _ in unused if table in data}
    for (table, field), is_unused in unused.items():
        if is_unused and table in tables:
            tables[table].pop(field, None)
    if "vllm" in tables.get("rollout", {}) and data["runtime"]["device"] == "cpu":
        on_gpu = {"gpu_memory_fraction", "sleep"}
        tables["rollout"]["vllm"] = {k: v for k, v in tables["rollout"]["vllm"].items() if k not in on_gpu}
    precision = data.get("precision", {})
    if not (formats := precision.get("rollout", {})).get("fp8_kv", True):
        cacheless = {key: value for key, value in formats.items() if key != "fp8_kv"}
        tables["precision"] = precision | {"rollout": cacheless}
    return data | tables


def canonical(value: Any) -> Any:
    """Plain JSON data of a config: infinities become the string "inf", integral floats stay floats."""
    if isinstance(value, dict):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    return value


def flat_items(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and leaf values of nested tables."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def content_hash(data: Any) -> str:
    """sha256 of the canonical JSON text of `data`."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def load_run_config(data: dict[str, Any]) -> RunConfig:
    """The RunConfig of a config.json; the keys that describe the run beside it are dropped."""
    extra = {"run_id", "schema_version", "numerics_version", "warmstart_sha256"}
    return RunConfig.model_validate({key: value for key, value in data.items() if key not in extra})
