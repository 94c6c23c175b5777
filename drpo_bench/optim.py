"""The optimizer step: fp32 master weights, gradient-norm clip, loss scaling for fp16."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from drpo_bench.config import TrainConfig
from drpo_bench.models import Policy


class Collapse(ArithmeticError):
    """A run cannot go on, which is a result and not an error; `reason` stands in status.json."""

    reason: str


class NonFinite(Collapse):
    """A loss or gradient is NaN or infinite."""

    reason = "non_finite"


@dataclass
class LossScaler:
    """Dynamic loss scaling: halved when a gradient overflows, doubled after a while without."""

    scale: float = 2.0**16
    clean_steps: int = 0
    growth_interval: int = 200

    def update(self, overflowed: bool) -> None:
        """Adjust the scale after an optimizer step; raise NonFinite if no scale helps."""
        if overflowed:
            self.scale, self.clean_steps = self.scale / 2, 0
            if self.scale < 1:
                raise NonFinite("gradients overflow fp16 at every loss scale")
            return
        self.clean_steps += 1
        if self.clean_steps == self.growth_interval:
            self.scale, self.clean_steps = self.scale * 2, 0


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: the gradient norm before clipping, and whether the step was skipped (fp16 overflow)."""

    grad_norm: float
    skipped: bool


class Optimizer:
    """AdamW over the policy's master weights."""

    def __init__(self, policy: Policy, config: TrainConfig) -> None:
        self.policy, self.config = policy, config
        self.parameters = list(policy.master.parameters())
        self.adamw = torch.optim.AdamW(
            self.parameters,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.scaler = LossScaler() if policy.dtype == "fp16" else None

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by before backward."""
        return self.scaler.scale if self.scaler else 1.0

    def step(self) -> StepResult:
        """Clip and apply the gathered gradients, then publish the new weights.

        A parameter without gradient (a minibatch whose tokens were all skipped) takes a step with zero.
        Raises NonFinite for a gradient that is not finite, unless the loss scaler can still halve.
        """
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            elif self.loss_scale != 1.0:
                parameter.grad.div_(self.loss_scale)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm))
        finite = math.isfinite(norm)
        if not finite and self.scaler is None:
            raise NonFinite(f"gradient norm is {norm}")
        if finite:
            self._set_lr()
            self.adamw.step()
            self.policy.publish()
        if self.scaler:
            self.scaler.update(overflowed=not finite)
        self.adamw.zero_grad(set_to_none=True)
        return StepResult(norm, skipped=not finite)

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return float(self.adamw.param_groups[0]["lr"])

    def _set_lr(self) -> None:
        """Linear warm-up over the optimizer's own step count, which a checkpoint restores."""
        state = self.adamw.state.get(self.parameters[0])
        taken = int(state["step"]) if state else 0
        warmup = self.config.warmup_updates
        self.adamw.param_groups[0]["lr"] = self.config.lr * min(1.0, (taken + 1) / max(1, warmup))
