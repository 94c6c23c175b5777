"""`--executor ray`: tasks of a Ray cluster, a local one unless an address is given."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from drpo_bench.errors import UserError
from drpo_bench.sweep.cores import available_cores
from drpo_bench.sweep.executors.base import Ending
from drpo_bench.sweep.executors.child import run_in_child
from drpo_bench.sweep.worker import Order

LOST_NODE_RETRIES = 3  # by Ray itself, when a node or its worker process is lost; they are no failures of the run
CONNECT_SECONDS = 3.0  # to reach the address at all
ANSWER_SECONDS = 15.0  # for Ray to answer there; half of it is the import of the command that asks
STOP_SECONDS = 15.0  # for the nodes to end their processes
OBJECT_STORE_BYTES = 100 * 2**20  # of a local cluster; only orders and endings pass through it
LONGEST_REASON = 200  # characters of what Ray said
CLIENT_PORT = 10001  # of ray://


class RayExecutor:
    """A task a run: `runtime.threads` CPUs and, on GPUs, `gpus_per_run` of one; Ray chooses the node.

    A task trains in a child of Ray's worker process, which keeps its forkserver for the next task.
    """

    def __init__(self, workers: int, address: str | None, threads: int, gpus: float) -> None:
        """A run needs so many threads, and so many GPUs where it computes on one. Raises UserError."""
        self.capacity, self.gpus_per_run = workers, gpus
        self.tasks: dict[Any, str] = {}  # the reference to a task's result -> its run id
        start_or_connect(address, workers * threads)
        check_room(threads, gpus)

    def submit(self, orders: Sequence[Order]) -> None:
        import ray

        for order in orders:
            task = ray.remote(attempt).options(
                name=order.run_id,
                num_cpus=order.threads,
                num_gpus=self.gpus_per_run if order.on_gpu else 0,
                max_retries=LOST_NODE_RETRIES,
            )
            self.tasks[task.remote(order)] = order.run_id

    def ended(self, seconds: float) -> dict[str, Ending]:
        import ray

        ready, _ = ray.wait(list(self.tasks), timeout=seconds)
        return {self.tasks.pop(task): self.ending(task) for task in ready}

    def ending(self, task: Any) -> Ending:
        """What a task that is over returned; or what Ray says of one that did not come so far."""
        import ray

        try:
            ending: Ending = ray.get(task)
            return ending
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or [""]
            return Ending(f"Ray: {type(error).__name__}: {lines[-1].strip()}")

    def stop(self) -> None:
        import ray

        left = list(self.tasks)
        for force in (False, True):  # at the second time the task's process is killed, and its child ends with it
            for task in left:
                ray.cancel(task, force=force)
            if left:
                _, left = ray.wait(left, num_returns=len(left), timeout=STOP_SECONDS)
        self.tasks.clear()

    def close(self) -> None:
        import ray

        ray.shutdown()


def attempt(order: Order) -> Ending:
    """The task: train on the node that Ray chose, on the GPUs that it gave.

    `ray.cancel` interrupts it, which a process that a background shell started would ignore.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return run_in_child(replace(order, gpus=os.environ.get("CUDA_VISIBLE_DEVICES")) if order.on_gpu else order)


def check_room(threads: int, gpus: float) -> None:
    """Raise UserError unless some node can hold a run: Ray would wait for one for ever."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= threads and node.get("GPU", 0) >= gpus for node in nodes):
        ray.shutdown()
        needed = f"{threads} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        raise UserError(f"--executor ray: no node of the cluster has the {needed} that a run asks for")


def start_or_connect(address: str | None, threads: int) -> None:
    """A cluster of this machine's cores, or the one at an address. Raises UserError where none answers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray's notice of a coming change asks for
    os.environ.setdefault("RAY_task_oom_retries", "0")  # or Ray itself tries what never fits again and again, unseen
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        cores = max(threads, len(available_cores()))
        ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
        return
    check_address(address)
    try:
        ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, ImportError) as error:
        raise unreachable(address, " ".join(str(error).split())[:LONGEST_REASON]) from None


def check_address(address: str) -> None:
    """Raise UserError unless a cluster answers: `ray.init` would try without end."""
    is_client = address.startswith("ray://")
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if is_client and not host:
            host, port = port, str(CLIENT_PORT)
        if not host or not port.isdigit():
            raise UserError(f"--address {address}: must be HOST:PORT, ray://HOST:PORT or auto")
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise unreachable(address, error.strerror or str(error)) from None
    if is_client:
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise unreachable(address, "what listens there does not answer as Ray does") from None
    if done.returncode:
        raise unreachable(address, done.stderr.strip().splitlines()[-1].split(". ")[0])


def unreachable(address: str, reason: str) -> UserError:
    """What to say of an address."""
    return UserError(f"--address {address}: no Ray cluster can be reached there: {reason}")
