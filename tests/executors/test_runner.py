"""The loop that serves every executor: order, capacity, attempts, settling, stopping."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from drpo_bench.config import RunConfig
from drpo_bench.records import RunDir
from drpo_bench.sweep.executors import Ending
from drpo_bench.sweep.runner import run_all, run_dir_of
from drpo_bench.sweep.worker import Order

KILLED = Ending("killed by signal 9", signal.SIGKILL)


class Scripted:
    """An executor whose runs do what they are told: `script` maps a run id to what happens at each attempt."""

    def __init__(self, capacity: int, script: dict[str, list[Callable[[RunDir], Ending]]]) -> None:
        self.capacity, self.script = capacity, script
        self.submitted: list[list[str]] = []
        self.active: list[Order] = []
        self.seen: list[dict[str, Any]] = []  # statuses as they were submitted
        self.stopped = False

    def submit(self, orders: Sequence[Order]) -> None:
        self.submitted.append([order.run_id for order in orders])
        self.seen += [order.run_dir.status() for order in orders]
        self.active += orders
        assert len(self.active) <= self.capacity

    def ended(self, seconds: float) -> dict[str, Ending]:
        order = self.active.pop(0)
        return {order.run_id: self.script[order.run_id].pop(0)(order.run_dir)}

    def stop(self) -> None:
        self.stopped = True


def finish(run_dir: RunDir) -> Ending:
    run_dir.set_status("finished", step=2, steps=2)
    return Ending()


def collapse(run_dir: RunDir) -> Ending:
    run_dir.set_status("collapsed", step=1, steps=2, collapse_step=1)
    return Ending()


def die(run_dir: RunDir) -> Ending:
    run_dir.set_status("running", step=1, steps=2)
    return KILLED


def raise_in_warmstart(run_dir: RunDir) -> Ending:
    run_dir.set_status("running", phase="warm start", step=70, steps=200)
    with run_dir.log.open("a") as file:
        file.write("Traceback\nValueError: no\n")
    return Ending()


@pytest.fixture(autouse=True)
def restore_signals() -> Iterator[None]:
    """The runner listens to SIGTERM from now on; pytest does not."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def runs(tiny_config: Callable[..., RunConfig]) -> list[RunConfig]:
    return [tiny_config(seed=seed) for seed in range(3)]


def play(runs, out: Path, executor: Scripted, retries: int) -> list[tuple[int, str]]:
    """Run all; what the runner said of the ends, by seed."""
    said = []
    run_all(runs, out, executor, retries, lambda run, state: said.append((run.seed, state)), lambda runs: None)
    return said


def test_a_run_that_failed_is_tried_again_behind_the_waiting_ones(runs, tmp_path):
    ids = [run.run_id for run in runs]
    executor = Scripted(1, {ids[0]: [die, finish], ids[1]: [finish], ids[2]: [raise_in_warmstart, finish]})
    assert play(runs, tmp_path, executor, retries=1) == [
        (0, "pending"), (1, "finished"), (2, "pending"), (0, "finished"), (2, "finished")
    ]  # fmt: skip
    assert executor.submitted == [[ids[0]], [ids[1]], [ids[2]], [ids[0]], [ids[2]]]
    seen = [(status["state"], status["phase"], status["attempt"], status.get("reason")) for status in executor.seen]
    assert seen == [("pending", "queued", 1, None)] * 3 + [
        ("pending", "queued", 2, KILLED.reason), ("pending", "queued", 2, "ValueError: no")
    ]  # fmt: skip
    assert run_dir_of(runs[0], tmp_path).status()["attempt"] == 2  # also of one that ran since


def test_attempts_are_counted_anew_by_the_next_runner(runs, tmp_path):
    one = runs[:1]
    executor = Scripted(1, {one[0].run_id: [die] * 4})
    assert play(one, tmp_path, executor, retries=1) == [(0, "pending"), (0, "failed")]
    assert play(one, tmp_path, executor, retries=1) == [(0, "pending"), (0, "failed")]
    assert [status["attempt"] for status in executor.seen] == [1, 2, 1, 2]


def test_what_has_a_result_is_not_tried_again_and_the_rest_fails_with_its_reason(runs, tmp_path):
    ids = [run.run_id for run in runs]
    executor = Scripted(3, {ids[0]: [collapse], ids[1]: [die], ids[2]: [raise_in_warmstart]})
    assert play(runs, tmp_path, executor, retries=0) == [(0, "collapsed"), (1, "failed"), (2, "failed")]
    assert executor.submitted == [ids]
    dead, raised = (run_dir_of(run, tmp_path).status() for run in runs[1:])
    assert (dead["reason"], dead["step"], dead["steps"]) == (KILLED.reason, 1, 2)
    assert (raised["reason"], raised["step"], raised["steps"]) == ("ValueError: no", 0, 2)  # not the warm start's step


def test_a_process_that_was_lost_without_a_word_has_failed(runs, tmp_path):
    executor = Scripted(1, {runs[0].run_id: [lambda run_dir: Ending()]})
    assert play(runs[:1], tmp_path, executor, retries=0) == [(0, "failed")]
    assert run_dir_of(runs[0], tmp_path).status()["reason"] == "its process ended and said nothing"


def test_a_result_counts_however_the_process_ended(runs, tmp_path):
    def finish_and_die(run_dir: RunDir) -> Ending:
        finish(run_dir)
        return KILLED

    executor = Scripted(1, {runs[0].run_id: [finish_and_die]})
    assert play(runs[:1], tmp_path, executor, retries=1) == [(0, "finished")]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_whatever_stops_the_runner_stops_the_runs_and_marks_them_pending(stop, runs, tmp_path):
    def end(run_dir: RunDir) -> Ending:
        run_dir.set_status("running", step=1, steps=2)
        raise stop

    ids = [run.run_id for run in runs]
    executor = Scripted(2, {ids[0]: [finish], ids[1]: [end]})
    with pytest.raises(stop):
        play(runs, tmp_path, executor, retries=1)
    assert executor.stopped
    states = [run_dir_of(run, tmp_path).status() for run in runs]
    assert [status["state"] for status in states] == ["finished", "pending", "pending"]
    assert [status.get("reason") for status in states[1:]] == ["stopped", "stopped"]
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler  # a batch system's stop is one, too
