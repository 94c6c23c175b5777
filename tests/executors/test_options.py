"""Options of executors are checked before anything is written."""

from __future__ import annotations

import shutil
import socket
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from drpo_bench.config import RunConfig
from drpo_bench.errors import UserError
from drpo_bench.sweep.executors import ExecutorOptions, options
from drpo_bench.sweep.executors import ray as ray_executor
from drpo_bench.sweep.executors import slurm as slurm_executor
from drpo_bench.sweep.executors.local import LocalExecutor
from drpo_bench.sweep.executors.slurm import ending_of, job_name, job_parameters, parse_settings
from drpo_bench.sweep.worker import Order, make_order


@pytest.fixture
def runs(tiny_config: Callable[..., RunConfig]) -> list[RunConfig]:
    return [tiny_config(seed=seed) for seed in range(3)]


@pytest.fixture
def gpu_runs(tiny_config: Callable[..., RunConfig]) -> list[RunConfig]:
    return [tiny_config(seed=seed, runtime={"device": "cuda"}) for seed in range(8)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "slrum"}, "--executor slrum: unknown; did you mean 'slurm'?"),
        ({"name": "dask"}, "--executor dask: unknown; known: local, ray, slurm"),
        ({"address": "auto"}, "--address auto: is for --executor ray"),
        ({"name": "slurm", "address": "auto"}, "--address auto: is for --executor ray"),
        ({"slurm": ("partition=gpu",)}, "--slurm partition=gpu: is for --executor slurm"),
        ({"gpus_per_run": 0.5}, "--gpus-per-run 0.5: is for --executor ray"),
        ({"name": "ray", "gpus_per_run": 1.5}, "--gpus-per-run 1.5: must be a fraction of one GPU, or a whole number"),
        (
            {"name": "ray", "gpus_per_run": float("nan")},
            "--gpus-per-run nan: must be a fraction of one GPU, or a whole number",
        ),
        ({"name": "ray", "gpus_per_run": 0.0}, "--gpus-per-run 0: must be a fraction of one GPU, or a whole number"),
        ({"name": "ray", "gpus_per_run": 0.5}, "--gpus-per-run 0.5: no run has runtime.device = 'cuda'"),
        ({"name": "slurm", "slurm": ("partitoin=gpu",)}, "--slurm partitoin: unknown; did you mean 'partition'?"),
        ({"name": "slurm", "slurm": ("partition",)}, "--slurm partition: must be key=value"),
        ({"name": "slurm", "slurm": ("time=1:00:00",)}, "--slurm time=1:00:00: must be a whole number of minutes"),
        ({"name": "slurm", "slurm": ("qos=a", "qos=b")}, "--slurm qos: given twice"),
        ({"name": "slurm", "slurm": ("time=0",)}, "--slurm time=0: must be a whole number of minutes"),
        ({"name": "slurm", "slurm": ("cpus_per_task=²",)}, "--slurm cpus_per_task=²: must be a whole number"),
        (
            {"name": "slurm", "slurm": ("cluster=local", "partition=gpu")},
            "--slurm partition: means nothing with cluster=local",
        ),
        ({"name": "slurm", "slurm": ("cluster=debug",)}, "--slurm cluster=debug: must be slurm or local"),
        (
            {"name": "slurm", "slurm": ("array_parallelism=2",)},
            "--slurm array_parallelism: is set by drpo-bench; --workers says how many runs at a time",
        ),
    ],
)
def test_mistakes(given, message, runs):
    with pytest.raises(UserError) as error:
        ExecutorOptions(**given).check(runs)
    assert str(error.value) == message


@pytest.mark.parametrize(("name", "module"), [("ray", options), ("slurm", slurm_executor)])
def test_what_is_not_installed_is_told_with_the_remedy(name, module, runs, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf"--executor {name}: .* is not installed; `pip install -e '\.\[{name}\]'`"):
        ExecutorOptions(name=name).check(runs)


def test_slurm_without_slurm_is_told(runs, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(UserError, match="there is no srun here"):
        ExecutorOptions(name="slurm").check(runs)
    ExecutorOptions(name="slurm", slurm=("cluster=local",)).check(runs)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster can be reached there: Connection refused"),
        ("ray://127.0.0.1:1", "no Ray cluster can be reached there: Connection refused"),
        ("127.0.0.1", "must be HOST:PORT, ray://HOST:PORT or auto"),
        ("ray://", "must be HOST:PORT, ray://HOST:PORT or auto"),
    ],
)
def test_an_address_without_ray_is_told_at_once(address, message):
    with pytest.raises(UserError) as error:
        ray_executor.check_address(address)
    assert str(error.value) == f"--address {address}: {message}"


def test_something_else_that_listens_at_the_address_is_told(monkeypatch):
    monkeypatch.setattr(ray_executor, "ANSWER_SECONDS", 5.0)  # that Ray's own head answers in time is tested elsewhere
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=server.accept, daemon=True).start()
        with pytest.raises(UserError, match="what listens there does not answer as Ray does"):
            ray_executor.check_address(f"127.0.0.1:{server.getsockname()[1]}")


def test_as_many_runs_at_a_time_as_there_is_room_for(runs, gpu_runs, tiny_config, monkeypatch):
    monkeypatch.setattr(options, "available_cores", lambda: [4, 5, 6, 7, 8])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    two_threads = [tiny_config(seed=seed, runtime={"threads": 2}) for seed in range(8)]
    assert ExecutorOptions().simultaneous(runs) == 3  # of five cores, no more than runs
    assert ExecutorOptions().simultaneous(two_threads) == 2
    assert ExecutorOptions(workers=7).simultaneous(runs) == 7
    assert ExecutorOptions().simultaneous(gpu_runs) == 2  # GPUs
    assert ExecutorOptions(name="ray", gpus_per_run=0.5).simultaneous(gpu_runs) == 4
    assert ExecutorOptions(name="ray", address="head:6379").simultaneous(gpu_runs) == 8  # the cluster knows its room
    assert ExecutorOptions(name="slurm").simultaneous(two_threads) == 8
    assert ExecutorOptions(name="slurm", slurm=("cluster=local",)).simultaneous(two_threads) == 2


def test_workers_that_will_share_cores_are_warned_of(runs, tiny_config, monkeypatch):
    monkeypatch.setattr(options, "available_cores", lambda: [0, 1])
    two_threads = [tiny_config(runtime={"threads": 2})]
    assert not ExecutorOptions(workers=2).warnings(runs)
    assert not ExecutorOptions().warnings(two_threads)
    (warning,) = ExecutorOptions(workers=2).warnings(two_threads)
    assert warning.startswith("runtime.threads = 2 and --workers 2, but there are 2 cores")
    (warning,) = ExecutorOptions().warnings([tiny_config(runtime={"threads": 4})])
    assert warning.startswith("runtime.threads = 4, but there are 2 cores")
    assert ExecutorOptions(name="slurm", slurm=("cluster=local",), workers=9).warnings(runs)
    assert not ExecutorOptions(name="slurm", workers=9).warnings(runs)


def test_each_local_slot_has_a_gpu(gpu_runs, runs, tmp_path, monkeypatch):
    started: list[Order] = []

    class NoChild:
        def __init__(self, order: Order) -> None:
            started.append(order)

    monkeypatch.setattr("drpo_bench.sweep.executors.local.Child", NoChild)
    executor = LocalExecutor(3, ["2", "3"])
    executor.submit([make_order(run, tmp_path, tmp_path) for run in gpu_runs[:3]])
    assert [order.gpus for order in started] == ["2", "3", "2"]
    LocalExecutor(1, ["2"]).submit([make_order(runs[0], tmp_path, tmp_path)])
    assert started[-1].gpus is None  # a run on the CPU is left as it is


def test_a_slurm_job_asks_for_what_the_runs_need(gpu_runs, tiny_config, tmp_path):
    def orders(*runs: RunConfig) -> list[Order]:
        return [make_order(run, tmp_path / "study", tmp_path) for run in runs]

    wide = orders(tiny_config(), tiny_config(seed=1, runtime={"threads": 4}))
    given = parse_settings(["partition=gpu", "mem_per_cpu=4GB", "exclusive=true", "setup=module load a", "setup=b"])
    assert job_parameters(given | {"time": 90}, wide, 5) == {
        "timeout_min": 90,
        "cpus_per_task": 4,
        "slurm_array_parallelism": 5,
        "slurm_job_name": job_name(tmp_path / "study"),
        "slurm_partition": "gpu",
        "slurm_mem_per_cpu": "4GB",
        "slurm_exclusive": True,
        "slurm_setup": ["module load a", "b"],
        "slurm_srun_args": ["--cpus-per-task=4"],
    }
    on_gpus = orders(gpu_runs[0])
    assert job_parameters({"time": 90}, on_gpus, 1)["gpus_per_node"] == 1
    assert "gpus_per_node" not in job_parameters({"time": 90, "gres": "gpu:a100:1"}, on_gpus, 1)
    assert job_parameters({"time": 90, "gpus_per_node": "a100:1"}, on_gpus, 1)["slurm_gpus_per_node"] == "a100:1"


def test_the_jobs_of_a_folder_have_its_name_and_no_other_folders(tmp_path):
    assert job_name(tmp_path / "study").startswith("study-")
    assert job_name(tmp_path / "study") == job_name(tmp_path / "x" / ".." / "study")
    assert job_name(tmp_path / "study") != job_name(tmp_path / "x" / "study")


def test_a_job_process_that_was_killed_without_slurm_is_a_failed_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no scontrol
    paths = SimpleNamespace(result_pickle=tmp_path / "absent", stderr=tmp_path / "err")
    ending = ending_of(SimpleNamespace(paths=paths, job_id="1"), "local")
    assert ending.reason.startswith("its job's process ended without a result")


def test_slurm_is_no_trial_of_gpus(gpu_runs):
    with pytest.raises(UserError, match="cluster=local: is to try Slurm out on a CPU"):
        ExecutorOptions(name="slurm", slurm=("cluster=local",)).check(gpu_runs)


def test_no_option_imports_what_it_does_not_need(tmp_path):
    import subprocess

    code = (
        "import sys; from drpo_bench.sweep import session; from drpo_bench.sweep.executors import ExecutorOptions\n"
        "assert not {'ray', 'submitit', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
