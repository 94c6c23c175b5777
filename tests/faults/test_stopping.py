"""Ctrl-C and lost processes, with every executor: nothing is left behind, the results are those of a quiet night."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from drpo_bench.records import RunDir
from tests.faults.sweeps import RAY, SLURM_LOCAL, gone
from tests.faults.tools import ONE_RUN, cli, differences, end_state, refused, states, write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 40


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """The end state of a sweep that was left alone."""
    folder = tmp_path_factory.mktemp("quiet")
    write_sweep(folder, ONE_RUN, STEPS)
    assert cli("run", "small.toml", "--no-tracking", cwd=folder).returncode == 0
    return end_state(folder / "results" / "small")


@pytest.mark.parametrize("executor", [("--executor", "local"), RAY, SLURM_LOCAL], ids=lambda options: options[1])
def test_ctrl_c_leaves_no_process_and_the_run_goes_on_from_its_checkpoint(executor, quiet, launch, tmp_path):
    write_sweep(tmp_path, ONE_RUN, STEPS)
    sweep = launch(*executor)
    sweep.wait_for_a_checkpoint()
    assert sweep.ctrl_c() != 0
    assert gone(sweep, 10), sweep.processes()
    said = sweep.said.read_text()
    assert "Stopped. Run the same command again to resume." in said
    assert "Traceback" not in said
    (run_dir,) = map(RunDir, sweep.results.glob("runs/*/"))
    assert (run_dir.status()["state"], run_dir.status()["reason"]) == ("pending", "stopped")
    assert launch().process.wait(timeout=240) == 0
    assert differences(quiet, sweep.results) == []


def test_ray_stops_its_runs_also_where_a_script_started_the_runner_in_the_background(launch, tmp_path):
    """A shell without job control has such a process ignore SIGINT, and all its children."""
    write_sweep(tmp_path, ONE_RUN, steps=400)
    obeyed = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sweep = launch(*RAY)
    finally:
        signal.signal(signal.SIGINT, obeyed)
    sweep.wait_for_a_checkpoint()
    sweep.process.terminate()
    assert sweep.process.wait(timeout=10) == 130
    assert gone(sweep, 5), sweep.processes()
    (run_dir,) = map(RunDir, sweep.results.glob("runs/*/"))
    status = run_dir.status()
    assert (status["state"], status["reason"], status["steps"]) == ("pending", "stopped", 400)
    assert status["step"] >= 2


@pytest.mark.parametrize("executor", [RAY, SLURM_LOCAL], ids=lambda options: options[1])
def test_a_killed_process_is_told_of_and_its_run_tried_again(executor, quiet, launch, tmp_path):
    write_sweep(tmp_path, ONE_RUN, STEPS)
    sweep = launch(*executor)
    sweep.wait_for_a_checkpoint()
    sweep.worker().kill()
    assert sweep.process.wait(timeout=240) == 0, sweep.said.read_text()
    assert "killed by signal 9 (SIGKILL); out of memory is the usual cause" in sweep.said.read_text()
    (run_dir,) = map(RunDir, sweep.results.glob("runs/*/"))
    assert run_dir.status()["attempt"] == 2
    assert differences(quiet, sweep.results) == []


def test_a_preempted_job_is_queued_again_and_goes_on(quiet, launch, tmp_path):
    """submitit's local executor does what Slurm does: a signal to the job's process, then the same job once more."""
    write_sweep(tmp_path, ONE_RUN, STEPS)
    sweep = launch(*SLURM_LOCAL, "--retries", "0")
    sweep.wait_for_a_checkpoint()
    worker = sweep.worker()
    (job,) = (process for process in worker.parents() if "submitit.core._submit" in process.cmdline())
    for process in (worker, *worker.parents()[:1], job):  # Slurm's signals reach all processes of a job
        os.kill(process.pid, signal.SIGUSR2)
    assert sweep.process.wait(timeout=240) == 0, sweep.said.read_text()
    (run_dir,) = map(RunDir, sweep.results.glob("runs/*/"))
    assert len({line for line in run_dir.log.read_text().splitlines() if line.startswith("process ")}) == 2
    assert run_dir.status()["attempt"] == 1
    assert differences(quiet, sweep.results) == []


def test_runs_on_a_lost_node_go_to_others(quiet, launch, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 0, "include_dashboard": False})
    try:
        lost = cluster.add_node(**node)
        write_sweep(tmp_path, ONE_RUN, STEPS)
        wide = (*RAY, "--address", cluster.address, "--set", "runtime.threads=4")
        refusal = cli("run", "small.toml", "--out", "wide", *wide, cwd=tmp_path)
        refused(refusal, "no node of the cluster has the 4 CPUs that a run asks for")
        assert not (tmp_path / "wide").exists()
        sweep = launch(*RAY, "--address", cluster.address, "--retries", "0")
        sweep.wait_for_a_checkpoint()
        worker = sweep.worker()
        cluster.add_node(**node)
        assert "running" in states(sweep.results).values()
        cluster.remove_node(lost, allow_graceful=False)
        assert sweep.process.wait(timeout=240) == 0, sweep.said.read_text()
        assert not psutil.pid_exists(worker.pid)
        (run_dir,) = map(RunDir, sweep.results.glob("runs/*/"))
        assert len([line for line in run_dir.log.read_text().splitlines() if line.startswith("process ")]) == 2
        assert differences(quiet, sweep.results) == []
    finally:
        cluster.shutdown()
