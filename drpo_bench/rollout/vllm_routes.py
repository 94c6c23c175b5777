"""The experts that vLLM chose, read from its gates: its own report of them needs a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Architectures whose experts are the largest of their gate's logits; others tell no routes.
GATES = {"qwen3_moe": "mlp.gate", "qwen2_moe": "mlp.gate", "qwen3_next": "mlp.gate", "gpt_oss": "mlp.router"}


class GateReader:
    """Hooks on the gates of an engine in this process; `take` returns what they chose for a request.

    vLLM runs the scheduled tokens of many requests as one flat batch: the runner's `query_start_loc` says where each
    request's tokens stand in it, `num_computed_tokens` at which position they begin.
    """

    def __init__(self, llm: Any, experts: int) -> None:
        self.experts = experts
        self.runner = llm.collective_rpc(lambda worker: worker.model_runner)[0]
        model = self.runner.get_model()
        names = tuple(GATES.values())
        self.gates = [module for name, module in model.named_modules() if name.endswith(names)]
        self.step: list[Tensor] = []  # routes [tokens, experts] of the layers of this step so far
        self.routes: dict[str, dict[int, Tensor]] = {}  # by request and position: [layers, experts]
        for gate in self.gates:
            gate.register_forward_hook(self._read)

    def _read(self, gate: Any, args: Any, output: Any) -> None:
        logits = output[0] if isinstance(output, tuple) else output
        self.step.append(logits.float().topk(self.experts, dim=-1).indices.to(torch.int16))
        if len(self.step) == len(self.gates):
            self._file(torch.stack(self.step, 1))
            self.step.clear()

    def _file(self, routes: Tensor) -> None:
        """Routes [tokens, layers, experts] of one step, to the requests whose tokens they are."""
        batch = self.runner.input_batch
        starts = self.runner.query_start_loc.np
        for index, request in enumerate(batch.req_ids):
            first = int(batch.num_computed_tokens_cpu[index])
            positions = self.routes.setdefault(request.rpartition("-")[0], {})
            for offset, route in enumerate(routes[int(starts[index]) : int(starts[index + 1])]):
                positions[first + offset] = route

    def take(self, request: str, length: int) -> Tensor:
        """Routes [length, layers, experts] of a request's positions, which are forgotten here."""
        positions = self.routes.pop(request)
        assert set(positions) >= set(range(length)), f"routes of {len(positions)} positions of {length}"
        return torch.stack([positions[position] for position in range(length)])
