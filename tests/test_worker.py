"""A worker's process: its environment, its locks, and that it ends with whoever started it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest

from drpo_bench.process import is_alive, this_process
from drpo_bench.records import RunDir, read_json, write_json
from drpo_bench.sweep import worker
from drpo_bench.sweep.worker import ENVIRONMENT, UNWANTED, Order, make_order, prepare_environment, run_worker

NAMES = ("CUDA_VISIBLE_DEVICES", *ENVIRONMENT, *UNWANTED)


def probe(order: Order, waits: bool) -> None:
    """A worker that writes down what it is like instead of training; and does not end, if it `waits`."""

    def describe(config: Any, experiment_dir: Path, cache: Path) -> None:
        before = order.run_dir.path / "me.json"
        met = is_alive(read_json(before)["process"]) if before.exists() else None
        me = {
            "process": this_process(),
            "cwd": str(Path.cwd()),
            "environment": {name: os.environ[name] for name in NAMES if name in os.environ},
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
            "met": met,
        }
        write_json(before, me)
        if waits:
            time.sleep(600)

    tries = []

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and arguments[0] == str(order.run_dir.path / worker.LOCK):
            tries.append(event)
            if len(tries) == 2:  # the first one failed
                (order.run_dir.path / "waits").touch()

    sys.addaudithook(hear)
    worker.train_quietly = describe
    prepare_environment()
    run_worker(order)


def nested(order: Order) -> None:
    """A process that starts a worker, and waits for it."""
    child = multiprocessing.get_context("spawn").Process(target=probe, args=(order, True))
    child.start()
    child.join()


Starter = Callable[..., SpawnProcess]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starter]:
    """Start a process; it is gone after the test."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    started: list[SpawnProcess] = []

    def launch(target: Callable[..., None], *arguments: Any) -> SpawnProcess:
        started.append(multiprocessing.get_context("spawn").Process(target=target, args=arguments))
        started[-1].start()
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def order(tiny_config: Any, tmp_path: Path) -> Order:
    run = tiny_config()
    return make_order(run, tmp_path / "tiny", tmp_path / "warmstarts")


def described(run_dir: RunDir, process: int | None = None) -> dict[str, Any]:
    """What a probe wrote, once it has; the one of a given process."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if (path := run_dir.path / "me.json").exists():
            me: dict[str, Any] = read_json(path)
            if process in (None, me["process"]["pid"]):
                return me
        time.sleep(0.01)
    raise AssertionError("nothing was written")


def test_a_worker_is_pinned_has_its_gpu_and_the_same_environment_everywhere(order, start, monkeypatch, tmp_path):
    for name in UNWANTED:
        monkeypatch.setenv(name, "close")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    start(probe, replace(order, gpus="1", cwd=elsewhere), False).join()
    me = described(order.run_dir)
    assert me["environment"] == ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": "1"}
    assert (me["cores"], me["cwd"]) == (1, str(elsewhere))
    assert f"process {me['process']['pid']} on " in order.run_dir.log.read_text()


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="the system has no such score")
def test_the_kernel_takes_a_worker_first(order, start):
    process = start(probe, order, True)
    described(order.run_dir)
    assert int(Path(f"/proc/{process.pid}/oom_score_adj").read_text()) >= 500


def test_ctrl_c_is_for_the_runner_and_sigterm_ends_a_worker_at_once(order, start):
    process = start(probe, order, True)
    described(order.run_dir)
    os.kill(process.pid, signal.SIGINT)
    process.terminate()
    process.join()
    assert process.exitcode == -signal.SIGTERM


def test_a_second_worker_of_a_run_begins_when_the_first_is_gone(order, start):
    first = start(probe, order, True)
    described(order.run_dir)
    second = start(probe, order, False)
    while not (order.run_dir.path / "waits").exists():
        assert second.is_alive()
        time.sleep(0.005)
    first.kill()
    second.join()
    assert described(order.run_dir, second.pid)["met"] is False


def test_a_worker_that_comes_after_the_result_leaves_it_alone(order, start):
    order.run_dir.path.mkdir(parents=True)
    order.run_dir.set_status("finished")
    process = start(probe, order, False)
    process.join()
    assert process.exitcode == 0
    assert not (order.run_dir.path / "me.json").exists()


def test_a_worker_ends_with_the_process_that_started_it(order, start):
    parent = start(nested, order)
    me = described(order.run_dir)["process"]
    parent.kill()
    until = time.monotonic() + 10
    while is_alive(me):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_long_tmpdir_leaves_room_for_the_forkservers_socket(monkeypatch, tmp_path):
    monkeypatch.setattr(worker.os, "environ", dict(os.environ))  # which is changed, too
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    for folder, chosen in ((deep, "/tmp"), (Path("/tmp"), "/tmp"), (Path("/var/tmp"), "/var/tmp")):
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        prepare_environment()
        assert tempfile.gettempdir() == chosen


def test_an_order_is_plain_data(order):
    assert json.loads(json.dumps(order.config)) == order.config
    assert order.experiment_dir.is_absolute() and order.cache.is_absolute()
    assert (order.threads, order.on_gpu) == (1, False)


def test_what_the_forkserver_imports_leaves_collector_and_transformers_as_they_were():
    code = (
        "import gc, sys\n"
        "import transformers.utils as utils\n"
        "before = utils.is_sklearn_available\n"
        "import drpo_bench.sweep.preload\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 100_000\n"
        "assert utils.is_sklearn_available is before\n"
        "assert 'drpo_bench.trainer' in sys.modules and 'sklearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
