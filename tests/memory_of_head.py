"""Peak memory of logprobs, entropy and top-k over a large vocabulary, in a process of its own.

    python tests/memory_of_head.py {chunked,naive} TOKENS VOCABULARY HIDDEN

prints the peak above what the inputs, the weights and their gradients take, in MiB, and seconds.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import torch
from torch import Tensor, nn

from drpo_bench.head import score_tokens


class Head(nn.Module):
    """What `score_tokens` reads of a model: its output embeddings."""

    def __init__(self, hidden: int, vocabulary: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.head = nn.Linear(hidden, vocabulary, bias=False)
        self.head.weight.data = 0.3 * torch.randn(vocabulary, hidden, generator=generator)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


def naive(model: Head, hidden: Tensor, targets: Tensor, temperature: float, topk_ids: Tensor) -> SimpleNamespace:
    """The same scores from one [N, V] tensor, by torch's own functions."""
    log_probs = (model.head(hidden) / temperature).log_softmax(-1)
    return SimpleNamespace(
        logprobs=log_probs.gather(-1, targets[:, None]).squeeze(-1),
        entropy=-(log_probs.exp() * log_probs).sum(-1),
        topk_logprobs=log_probs.detach().gather(-1, topk_ids),
    )


def inputs(tokens: int, vocabulary: int, hidden: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states with gradient, targets and 20 further ids a token."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(tokens, hidden, generator=generator).requires_grad_()
    ids = torch.randint(vocabulary, (tokens, 21), generator=generator)
    return states, ids[:, 0], ids[:, 1:]


class PeakMemory:
    """The largest resident memory of this process within the block, above that at its start, in bytes."""

    def __enter__(self) -> PeakMemory:
        self.process, self.done = psutil.Process(), threading.Event()
        self.start = self.largest = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.002):
            self.largest = max(self.largest, self.process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    @property
    def bytes(self) -> int:
        return self.largest - self.start


def main() -> None:
    kind, sizes = sys.argv[1], [int(value) for value in sys.argv[2:5]]
    torch.set_num_threads(1)
    tokens, vocabulary, width = sizes
    model, (hidden, targets, topk_ids) = Head(width, vocabulary), inputs(tokens, vocabulary, width)
    for parameter in model.parameters():  # allocated beforehand: both ways need it
        parameter.grad = torch.zeros_like(parameter)
    begin = time.perf_counter()
    with PeakMemory() as peak:
        if kind == "chunked":
            scores = score_tokens(model, hidden, targets, 0.7, topk_ids, entropy=True)
        else:
            scores = naive(model, hidden, targets, 0.7, topk_ids)
        (scores.logprobs.sum() + 0.1 * scores.entropy.sum()).backward()
    seconds = time.perf_counter() - begin
    sys.stdout.write(json.dumps({"kind": kind, "mib": peak.bytes / 2**20, "seconds": seconds}) + "\n")


if __name__ == "__main__":
    main()
