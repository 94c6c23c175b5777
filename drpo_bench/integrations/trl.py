"""Any of our losses in TRL's GRPOTrainer: `LossTrainer(args=LossConfig(loss_type="drpo", ...), ...)`. For TRL 1.16.

TRL generates, grades and computes logprobs, of the whole distribution at the sampling temperature. `_compute_loss`
is ours: the response tokens of its micro-batch as `Tokens`, our loss, and weights that are fixed for the optimizer
step. Its tensors are our policies:
    mu    `sampling_per_token_logps`: what vLLM (or a `rollout_func`) sampled with. Without them the model itself
          sampled, and mu is old
    old   `old_per_token_logps`: the model at the sampling weights. TRL leaves them out where the weights have not
          moved since; then they are pi's, detached
    prox  TRL has no lag, so the weights at the start of the updates are those of old: name that instead
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from drpo_bench.batching import token_weights
from drpo_bench.errors import UserError
from drpo_bench.integrations import loss_for, require_version
from drpo_bench.losses import Loss
from drpo_bench.ops import kl_k1, kl_k3, probability_shift
from drpo_bench.types import Tokens

require_version("trl", "1.16")

Aggregation = Literal["token_mean", "seq_mean_token_sum", "seq_mean_token_mean", "seq_mean_token_sum_norm"]
# Parameters of TRL's own losses: ours would ignore them.
TRL_ONLY = (
    "epsilon", "epsilon_high", "delta", "sapo_temperature_pos", "sapo_temperature_neg",
    "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg", "importance_sampling_level",
    "off_policy_mask_threshold", "top_entropy_quantile", "entropy_coef", "use_adaptive_entropy",
)  # fmt: skip
# The only sampling whose logprobs are those of the whole distribution.
UNRESTRICTED = {"top_p": (1.0,), "top_k": (0, -1, None), "min_p": (0.0, None), "repetition_penalty": (1.0,)}
LACKING = {
    "prox": "TRL has no lag, so prox is old there: name old",
    "topk": "TRL records the sampled token's logprob only",
}
MODEL_INPUTS = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
    "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip


@dataclass
class LossConfig(GRPOConfig):
    """GRPOConfig for one of our losses. Raises ValueError, naming the field, for what cannot be computed in TRL."""

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "loss_params"]  # noqa: RUF012

    loss_type: str = field(default="drpo", metadata={"help": "Id of the loss: `drpo-bench losses list`."})
    loss_params: dict[str, Any] | str | None = field(default=None, metadata={"help": "Its parameters."})
    anchor: Literal["mu", "old"] = field(default="mu", metadata={"help": "The ratio's denominator."})
    aggregation: Aggregation = field(default="token_mean", metadata={"help": "How token losses become one number."})
    horizon: int | None = field(
        default=None, metadata={"help": "Norm of seq_mean_token_sum_norm; max_completion_length if not set."}
    )
    # On by default in TRL. With anchor mu the ratio corrects for vLLM by itself.
    vllm_importance_sampling_correction: bool = field(
        default=False, metadata={"help": "TRL's weights old / mu; only with anchor old."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aggregation not in get_args(Aggregation):
            raise UserError(
                f"aggregation: unknown mode {self.aggregation!r}; known: {', '.join(get_args(Aggregation))}"
            )
        for spec in dataclasses.fields(GRPOConfig):
            if spec.name in TRL_ONLY and getattr(self, spec.name) != spec.default:
                raise UserError(f"{spec.name}: belongs to TRL's own losses; {self.loss_type} has loss_params")
        sampling = {name: getattr(self, name) for name in UNRESTRICTED} | (self.generation_kwargs or {})
        for name, allowed in UNRESTRICTED.items():
            if sampling[name] not in allowed:
                raise UserError(f"{name}: is {sampling[name]}; mu must be the whole distribution, so leave it out")
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise UserError(
                f"steps_per_generation: {self.steps_per_generation} is not a multiple of gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps}); the tokens' weights need all rollouts of an optimizer step"
            )
        loss = self.make_loss()
        if loss.scope == "minibatch" and self.gradient_accumulation_steps * self.world_size > 1:
            raise UserError(
                f"gradient_accumulation_steps: {self.loss_type} takes statistics over a minibatch, which therefore "
                "must be one micro-batch of one process"
            )
        correction = self.use_vllm and self.vllm_importance_sampling_correction
        if correction and self.anchor == "mu" and loss.config.corrects:
            raise UserError(
                f"vllm_importance_sampling_correction: the ratio of {self.loss_type} is over mu already (anchor = "
                "'mu'), so it would correct twice; leave it off, or set anchor = 'old'"
            )

    def make_loss(self) -> Loss:
        """The loss that these fields name."""
        params = self.loss_params or {}
        assert isinstance(params, dict)  # a string of JSON was parsed by transformers
        return loss_for(self.loss_type, self.anchor, params, LACKING)


class LossTrainer(GRPOTrainer):
    """GRPOTrainer with the loss of its LossConfig.

    Logs, beside TRL's metrics, `offpolicy/tv_mean` = mean |pi - mu|, `offpolicy/k1` = mean of log mu - log pi and,
    where mu is another engine's, `mismatch/tv_mean` = mean |old - mu|, over response tokens.
    """

    _tag_names = ["trl", "grpo", "drpo-bench"]  # noqa: RUF012

    def __init__(self, model: Any, reward_funcs: Any = None, args: LossConfig | None = None, **kwargs: Any) -> None:
        if args is None:
            args = LossConfig("drpo-bench")
        if not isinstance(args, LossConfig):
            raise UserError(f"args: LossTrainer takes a LossConfig, not a {type(args).__name__}")
        super().__init__(model, reward_funcs, args=args, **kwargs)
        self.loss = args.make_loss()
        if self.use_vllm and self.vllm_mode == "server" and self.accelerator.is_main_process:
            server = self.vllm_generation.vllm_client.get_server_info()["model_config"]
            if server["logprobs_mode"] != "processed_logprobs":
                raise UserError(
                    f"vllm_mode: the server's --logprobs-mode is {server['logprobs_mode']}, whose logprobs are not "
                    "mu's (before temperature); start it with processed_logprobs"
                )

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        mode = "train" if self.model.training else "eval"
        mask = response_mask(inputs)  # [B, T]
        logprobs, entropies, aux_loss = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            mask.shape[1],
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: inputs.get(name) for name in MODEL_INPUTS},
        )
        tokens = response_tokens(inputs, logprobs, mask, self._weights(inputs, mode))
        means = {"entropy": entropies[mask], **divergences(tokens, "sampling_per_token_logps" in inputs)}
        losses = self._losses(tokens)  # [N]
        if "importance_sampling_ratio" in inputs:
            losses = losses * inputs["importance_sampling_ratio"].expand_as(mask)[mask]
        if self.beta != 0.0:
            kl = self._reference_kl(tokens)
            losses, means["kl"] = losses + self.beta * kl, kl.detach()
        loss: Tensor = (tokens.weights * losses).sum()
        if self.aux_loss_enabled:
            accumulation = self.current_gradient_accumulation_steps if mode == "train" else 1
            loss = loss + self.router_aux_loss_coef * aux_loss / accumulation
            self._metrics[mode]["aux_loss"].append(self.accelerator.gather_for_metrics(aux_loss).mean().item())
        self._log_means(mode, means)
        return loss

    def _losses(self, tokens: Tokens) -> Tensor:
        if not len(tokens.logprobs):
            return tokens.logprobs
        if self.loss.scope == "minibatch":
            seed = self.args.seed + self.state.global_step
            tokens = dataclasses.replace(tokens, selected=self.loss.select(tokens, seed))
        return self.loss(tokens)

    def _weights(self, inputs: dict[str, Any], mode: str) -> Tensor:
        """Weight [B] of each token of these rollouts, from the lengths of all rollouts of the optimizer step.

        Times the number of processes, over which the gradient is averaged.
        """
        batches, place = [inputs], 0
        if mode == "train":
            accumulation = self.args.gradient_accumulation_steps
            place = self._step % accumulation
            first = self._step % self.args.steps_per_generation - place
            batches = self._buffered_inputs[first : first + accumulation]
        lengths = torch.cat([response_mask(batch).sum(1) for batch in batches])
        everyone = self.accelerator.gather(lengths)
        rows = len(inputs["completion_ids"])
        if not everyone.any():  # all of them were cut off, with mask_truncated_completions
            return torch.zeros(rows, device=everyone.device)
        weights = token_weights(everyone, self.args.aggregation, self.args.horizon or self.max_completion_length)
        processes: int = self.accelerator.num_processes
        first = self.accelerator.process_index * len(lengths) + place * rows
        return weights[first : first + rows] * processes

    def _reference_kl(self, tokens: Tokens) -> Tensor:
        """TRL's term: k3 of KL(pi || ref), by default times pi / old, which makes its gradient unbiased. [N]."""
        assert tokens.ref_logprobs is not None
        kl = kl_k3(tokens.ref_logprobs, tokens.logprobs)
        return kl * tokens.ratio("old") if self.args.use_bias_correction_kl else kl

    def _log_means(self, mode: str, values: dict[str, Tensor]) -> None:
        """Log the means over the tokens [N] of all processes."""
        sums = [value.detach().sum() for value in values.values()]
        count = torch.full_like(sums[0], len(values["entropy"]))
        *sums, count = self.accelerator.reduce(torch.stack([*sums, count]), reduction="sum").tolist()
        for name, total in zip(values, sums, strict=True):
            if count:
                self._metrics[mode][name].append(total / count)


def response_mask(inputs: dict[str, Any]) -> Tensor:
    """Which completion tokens the model wrote itself, bool [B, T]: no padding, no tool output."""
    mask: Tensor = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    return mask.bool()


def response_tokens(inputs: dict[str, Any], logprobs: Tensor, mask: Tensor, weights: Tensor) -> Tokens:
    """TRL's micro-batch, padded [B, T], as the `Tokens` [N] of its responses; `weights` are the rollouts' [B]."""
    old = inputs.get("old_per_token_logps")
    old = logprobs.detach() if old is None else old
    mu = inputs.get("sampling_per_token_logps")
    mu = old if mu is None else torch.where(mu.isnan(), old, mu)  # NaN: vLLM could not score the token
    reference, advantages = inputs.get("ref_per_token_logps"), inputs["advantages"]
    if advantages.dim() == 1:
        advantages = advantages.unsqueeze(1)
    rows = torch.arange(len(mask), device=mask.device).unsqueeze(1)
    return Tokens(
        logprobs=logprobs[mask].float(),
        mu_logprobs=mu[mask].float(),
        advantages=advantages.expand_as(mask)[mask].float(),
        rollout_index=rows.expand_as(mask)[mask],
        weights=weights.unsqueeze(1).expand_as(mask)[mask],
        old_logprobs=old[mask].float(),
        ref_logprobs=None if reference is None else reference[mask].float(),
    )


def divergences(tokens: Tokens, two_engines: bool) -> dict[str, Tensor]:
    """What is logged of each token, [N]: pi against mu, and old against mu where another engine sampled."""
    assert tokens.old_logprobs is not None
    values = {
        "offpolicy/tv_mean": tokens.shift("mu").abs(),
        "offpolicy/k1": kl_k1(tokens.logprobs.detach(), tokens.mu_logprobs),
    }
    if two_engines:
        values["mismatch/tv_mean"] = probability_shift(tokens.old_logprobs, tokens.mu_logprobs).abs()
    return values
