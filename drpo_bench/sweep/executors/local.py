"""`--executor local`: processes of this machine, a fixed number at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from drpo_bench.sweep.executors.base import Ending
from drpo_bench.sweep.executors.child import Child, wait_for_any
from drpo_bench.sweep.worker import Order


class LocalExecutor:
    """Children of the runner. Each holds a slot; on GPUs, slot i has GPU i, and shares it where slots are more."""

    def __init__(self, workers: int, gpus: Sequence[str] = ()) -> None:
        self.capacity, self.gpus = workers, gpus
        self.free = list(range(workers))
        self.active: dict[str, tuple[Child, int]] = {}

    def submit(self, orders: Sequence[Order]) -> None:
        for order in orders:
            slot = self.free.pop(0)
            gpu = self.gpus[slot % len(self.gpus)] if self.gpus and order.on_gpu else order.gpus
            self.active[order.run_id] = Child(replace(order, gpus=gpu)), slot

    def ended(self, seconds: float) -> dict[str, Ending]:
        wait_for_any([child for child, _ in self.active.values()], seconds)
        endings = {run_id: end for run_id, (child, _) in self.active.items() if (end := child.ending())}
        for run_id in endings:
            _, slot = self.active.pop(run_id)
            self.free.append(slot)
        return endings

    def stop(self) -> None:
        for child, _ in self.active.values():
            child.process.terminate()  # all, before any is waited for
        for child, _ in self.active.values():
            child.stop()
        self.active.clear()

    def close(self) -> None:
        self.stop()
