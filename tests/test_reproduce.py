"""A recorded run trained again: the same bits, a difference named, tolerances where the machine is another."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from drpo_bench.config import RunConfig
from drpo_bench.console import output
from drpo_bench.errors import UserError
from drpo_bench.manifest import file_hash
from drpo_bench.optim import NonFinite
from drpo_bench.records import RunDir, read_json, read_records, record_line, write_json
from drpo_bench.reproduce.compare import compare
from drpo_bench.reproduce.environments import changes
from drpo_bench.reproduce.printing import print_verdict
from drpo_bench.reproduce.recorded import read_run
from drpo_bench.reproduce.replay import Replay, replay
from drpo_bench.reproduce.run import reproduce
from drpo_bench.reproduce.tolerances import DRIFT, Mean, allowed, judge
from drpo_bench.reproduce.verdict import Verdict
from drpo_bench.rollout.alarm import MismatchAlarm
from drpo_bench.trainer import Trainer, train
from drpo_bench.update import Updater
from tests.conftest import TINY, merge
from tests.runs import untimed

CONFIG = RunConfig.model_validate(merge(TINY, {"rollout": {"lag": 1}, "eval": {"greedy": True}}))


def results(folder: Path, cache: Path) -> Path:
    """A results folder whose warm starts are those of the tests."""
    folder.mkdir()
    (folder / "warmstarts").symlink_to(cache, target_is_directory=True)
    return folder / "tiny"


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_hash(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, warmstart_cache) -> RunDir:
    """A finished run of two batches; read only."""
    experiment = results(tmp_path_factory.mktemp("finished") / "results", warmstart_cache)
    train(CONFIG, experiment, experiment.parent / "warmstarts")
    return RunDir(experiment / "runs" / CONFIG.run_id)


@pytest.fixture(scope="module")
def replayed(finished, tmp_path_factory) -> Replay:
    """Its replay."""
    return replay(read_run(finished.path), 2, tmp_path_factory.mktemp("replay"))


@pytest.fixture
def copied(finished, tmp_path) -> RunDir:
    """The run in another results folder, to be changed."""
    run_dir = RunDir(tmp_path / "results" / "tiny" / "runs" / CONFIG.run_id)
    shutil.copytree(finished.path, run_dir.path)
    key = CONFIG.warmstart_key()
    shutil.copytree(finished.path.parents[2] / "warmstarts" / key, tmp_path / "results" / "warmstarts" / key)
    return run_dir


def change_record(run_dir: RunDir, step: int, metric: str, change) -> None:
    records = list(read_records(run_dir.metrics))
    records[step][metric] = change(records[step][metric])
    run_dir.metrics.write_text("".join(map(record_line, records)))


def test_a_run_is_reproduced_bit_for_bit_and_left_alone(copied, capsys):
    before = hashes(copied.path.parents[2])
    assert reproduce(copied.path, None, None, as_json=True)
    assert hashes(copied.path.parents[2]) == before
    found = json.loads(capsys.readouterr().out)
    records = untimed(copied)
    assert (found["result"], found["records"], found["differing"]) == ("identical", 3, 0)
    assert found["values"] == sum(len(record) - 1 for record in records)
    assert found["metrics"] == [min(len(r) for r in records) - 1, max(len(r) for r in records) - 1]
    assert found["outcome"]["now"] == found["outcome"]["then"] == {"state": "finished", "step": 2}
    assert found["weights"] == {"2": True} and found["whole"]
    assert found["warmstart"]["from"] == "cache" and found["environment"] == found["excuses"] == []


def test_the_verdict_in_words(finished, replayed, capsys):
    print_verdict(Verdict(read_run(finished.path), replayed, 2), output())
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{CONFIG.run_id}: identical bit for bit"
    assert second.startswith("3 records, ") and second.endswith("; finished both times; weights at step 2 identical")


def test_one_ulp_is_found_and_named(copied, replayed, capsys):
    change_record(copied, 1, "drift/k3", lambda value: math.nextafter(value, 1.0))
    verdict = Verdict(read_run(copied.path), replayed, 2)
    assert verdict.result == "different"
    (difference,) = verdict.comparison.differences
    assert (difference.step, difference.metric) == (1, "drift/k3")
    assert difference.then == math.nextafter(difference.now, 1.0)
    assert verdict.recorded.was_altered
    assert not reproduce(copied.path, None, None, as_json=False)
    words = capsys.readouterr().out
    assert "NOT reproduced" in words and "1 values differ, first at step 1: drift/k3" in words
    assert repr(difference.then) in words and repr(difference.now) in words
    assert "was changed after the run had ended" in words


def test_other_weights_or_another_end_are_a_difference(copied, replayed):
    weights = copied.checkpoints / "step_2" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert Verdict(read_run(copied.path), replayed, 2).weights == {2: False}
    assert Verdict(read_run(copied.path), replayed, 2).result == "different"
    shutil.rmtree(copied.checkpoints)
    assert Verdict(read_run(copied.path), replayed, 2).result == "identical"
    copied.set_status("collapsed", step=2, collapse_step=2, reason="accuracy")
    assert Verdict(read_run(copied.path), replayed, 2).result == "different"


def test_with_other_versions_tolerances_decide_and_it_says_which(copied, replayed, capsys):
    environment = read_json(copied.env)
    environment["versions"]["torch"] = "2.0.0"
    environment["versions"]["mlflow"] = "1.0"
    write_json(copied.env, environment)
    verdict = Verdict(read_run(copied.path), replayed, 2)
    assert verdict.result == "identical"  # the bits are the bits
    assert verdict.excuses == [f"versions.torch: 2.0.0 then, {replayed.environment['versions']['torch']} now"]

    accuracy = "eval/arithmetic/accuracy"
    change_record(copied, 2, accuracy, lambda value: math.nextafter(value, 1.0))
    verdict = Verdict(read_run(copied.path), replayed, 2)
    assert verdict.result == "within tolerances"
    print_verdict(verdict, output())
    words = capsys.readouterr().out
    assert "not the same bits, but within tolerances" in words
    assert "env.json: versions.torch: 2.0.0 then" in words and "versions.mlflow: 1.0 then" in words

    change_record(copied, 0, accuracy, lambda value: 1 - value)  # at the same weights, in fp32
    verdict = Verdict(read_run(copied.path), replayed, 2)
    assert verdict.result == "different"
    assert [j.metric for j in verdict.judgements if j.outside] == [accuracy]


def test_only_what_can_change_numbers_is_an_excuse():
    then = {"commit": "a", "platform": "Linux-6.1-x86_64-with-glibc2.36", "cpu": "x", "deterministic": True}
    now = then | {"commit": "b", "platform": "Linux-6.5-x86_64-with-glibc2.36"}
    assert [(c.field, c.may_change_numbers) for c in changes([then], now)] == [("commit", False)]
    moved = [then, then | {"cpu": "y"}]  # a run that went on elsewhere
    assert [(c.field, c.then, c.now) for c in changes(moved, then)] == [("cpu", "y", "x")]
    (unknown,) = changes([], now)
    assert unknown.field == "env.json" and unknown.may_change_numbers


def test_the_first_batches_only(finished, tmp_path):
    found = replay(read_run(finished.path), 1, tmp_path)
    verdict = Verdict(read_run(finished.path), found, 1)
    assert verdict.result == "identical" and verdict.comparison.records == 2 and not verdict.is_whole
    assert found.run_dir.status()["reason"] == "replayed to step 1"


def test_an_unfinished_run_is_replayed_as_far_as_it_is_recorded(tmp_path, warmstart_cache):
    experiment = results(tmp_path / "results", warmstart_cache)
    run_dir = RunDir(experiment / "runs" / CONFIG.run_id)
    trainer = Trainer(CONFIG, run_dir, experiment.parent / "warmstarts")
    trainer.train(until=1)
    trainer.close()
    with run_dir.metrics.open("a") as file:
        file.write('{"step": 2, "rew')  # the line that is being written
    recorded = read_run(run_dir.path)
    verdict = Verdict(recorded, replay(recorded, recorded.last_step, tmp_path / "replay"), 1)
    assert verdict.result == "identical" and verdict.outcome is None and verdict.comparison.records == 2


def test_a_collapsed_run_collapses_again(tmp_path, warmstart_cache, monkeypatch):
    def overflow(self):
        raise NonFinite("inf")

    experiment = results(tmp_path / "results", warmstart_cache)
    with monkeypatch.context() as patch:
        patch.setattr(Updater, "run", overflow)
        train(CONFIG, experiment, experiment.parent / "warmstarts")
        recorded = read_run(experiment / "runs" / CONFIG.run_id)
        again = Verdict(recorded, replay(recorded, recorded.last_step, tmp_path / "again"), 1)
    assert again.result == "identical"
    assert again.outcome[1] == {"state": "collapsed", "step": 1, "collapse_step": 1, "reason": "non_finite"}
    other = Verdict(recorded, replay(recorded, recorded.last_step, tmp_path / "other"), 1)
    assert other.result == "different" and other.outcome[1]["state"] == "running"


def test_what_stops_the_replay_is_told(finished, tmp_path, monkeypatch):
    def ring(self, old, batch):
        raise MismatchAlarm("step 0: off")

    monkeypatch.setattr(Trainer, "check_mismatch", ring)
    found = replay(read_run(finished.path), 2, tmp_path)
    assert found.failure == "MismatchAlarm: step 0: off"
    verdict = Verdict(read_run(finished.path), found, 2)
    assert verdict.result == "different" and verdict.comparison.first()[0].now is None


@pytest.mark.slow
def test_a_warm_start_that_is_not_there_is_trained_anew(copied, tmp_path):
    shutil.rmtree(tmp_path / "results" / "warmstarts")
    found = replay(read_run(copied.path), 1, tmp_path / "anew")
    assert (found.warmstart_from, found.warmstart_sha256) == ("training", read_run(copied.path).warmstart_sha256)
    assert Verdict(read_run(copied.path), found, 1).result == "identical"


def test_another_warm_start_is_said(copied, replayed, capsys):
    write_json(copied.config, read_json(copied.config) | {"warmstart_sha256": "0" * 64})
    verdict = Verdict(read_run(copied.path), replace(replayed, warmstart_from="training"), 2)
    assert verdict.result == "different" and not verdict.comparison.differences
    print_verdict(verdict, output())
    assert "The warm start is its own, trained anew: sha256 000" in capsys.readouterr().out


def edit(run_dir: RunDir, **entries) -> None:
    write_json(run_dir.config, read_json(run_dir.config) | entries)


MISTAKES = {
    "no such directory": lambda run: shutil.rmtree(run.path),
    "config.json is missing": lambda run: run.config.unlink(),
    "damaged: not JSON": lambda run: run.config.write_text("{"),
    "written by a newer drpo-bench": lambda run: edit(run, schema_version=99),
    "numerics version 1, this drpo-bench computes": lambda run: edit(run, numerics_version=1),
    "seed: is -1": lambda run: edit(run, seed=-1),
    "edited since the run began": lambda run: edit(run, seed=7),
    "no records yet": lambda run: run.metrics.write_text('{"step": 0, "x'),
    "line 1 is damaged": lambda run: run.metrics.write_text("{\n" + run.metrics.read_text()),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_what_cannot_be_replayed_is_one_line(message, copied):
    MISTAKES[message](copied)
    with pytest.raises(UserError, match=message) as error:
        reproduce(copied.path, None, None, as_json=False)
    assert "\n" not in str(error.value)


def test_another_numerics_version_names_the_commit_to_go_back_to(copied):
    edit(copied, numerics_version=1)
    commit = read_json(copied.env)["commit"]
    with pytest.raises(UserError, match=re.escape(f"replay it with commit {commit}" if commit else "by design")):
        read_run(copied.path)


def test_a_missing_checkpoint_and_a_missing_engine_are_told(copied, tiny_config, monkeypatch):
    for changes_, message in (
        ({"model": {"name": "/gone/step_3"}}, "model.name: '/gone/step_3' is no size, directory or hub id"),
        ({"model": {"name": "gone/step_3"}}, "model.name: gone/step_3 is no directory here, and the hub cannot"),
        ({"rollout": {"engine": "vllm"}}, "rollout.engine: vLLM is not installed"),
    ):
        monkeypatch.setattr("drpo_bench.sweep.engine_checks.find_spec", lambda name: None)
        config = tiny_config(**changes_)
        edit(copied, **json.loads(config.model_dump_json()), run_id=config.run_id)
        with pytest.raises(UserError, match=message):
            read_run(copied.path)


@pytest.mark.parametrize("steps", [0, 3])
def test_steps_must_be_recorded(steps, finished):
    with pytest.raises(UserError, match=f"--steps {steps}: must be from 1 to 2, which are recorded"):
        reproduce(finished.path, steps, None, as_json=False)


def test_keep_is_a_new_folder_elsewhere(finished, tmp_path, capsys):
    with pytest.raises(UserError, match="lies in the run directory"):
        reproduce(finished.path, None, finished.path / "replay", as_json=False)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="must be a new or empty folder"):
        reproduce(finished.path, None, tmp_path, as_json=False)
    assert reproduce(finished.path, 1, tmp_path / "new", as_json=False)
    kept = RunDir(tmp_path / "new" / "tiny" / "runs" / CONFIG.run_id)
    assert f"Replay: {kept.path}" in capsys.readouterr().out
    assert untimed(kept) == untimed(finished)[:2]


def test_every_kind_of_difference_between_records():
    then = [{"step": 0, "a": 0.0, "b": math.nan}, {"step": 1, "a": 1.0}, {"step": 2, "time_s": 1.0, "perf/x": 2.0}]
    assert not compare(then, [dict(record) for record in then]).differences
    clock = [then[0], then[1], {"step": 2, "time_s": 9.0, "time/update": 3.0}]
    assert not compare(then, clock).differences
    now = [{"step": 0, "a": -0.0, "b": math.nan}, {"step": 1, "a": 1.0, "c": 4.0}, {"step": 1, "a": 1.0}]
    found = [(d.step, d.metric, d.then, d.now) for d in compare(then, now).differences]
    assert found == [
        (0, "a", 0.0, -0.0),
        (1, "c", None, 4.0),  # a metric that was not there
        (1, "a", None, 1.0),  # a record that stands twice
        (1, "step", None, 1),
        (2, "step", 2, None),  # a record that is missing, though it holds no metric
    ]
    assert compare(then, now).values == 2 + 2 + 1 + 0


def test_the_worst_are_the_metrics_that_moved_most():
    then = [{"step": s, "small": 100.0, "large": 1.0, "gone": 1.0} for s in range(3)]
    now = [{"step": s, "small": 100.0 + s, "large": 1.0 + s} for s in range(3)]
    worst = compare(then, now).worst(2)
    assert [(d.metric, d.step, d.relative) for d in worst] == [("gone", 0, math.inf), ("large", 2, 2 / 3)]


def test_allowed_differences_worked_out():
    # 100 answers of at most 50 tokens; a token is another one with probability 1e-4, an answer with 5e-3.
    mean = Mean(answers=100, low=0.0, high=1.0, rounding=1e-4, initial=0)
    same = allowed(mean, 0.4, 0.6, at_same_weights=True, longest=50)
    assert same == pytest.approx(4 * math.sqrt(2 * 5e-3 * 0.25 / 100) + 0.01)  # 0.03: three answers
    later = allowed(mean, 0.4, 0.6, at_same_weights=False, longest=50)
    assert later == pytest.approx(4 * math.sqrt(2 * 0.25 / 100) + 0.01 + DRIFT)
    lengths = Mean(answers=100, low=0.0, high=50.0, rounding=1.0, initial=0)  # fifty times as wide
    assert allowed(lengths, 20.0, 30.0, True, 50) == pytest.approx(50 * (4 * math.sqrt(2 * 0.25 / 100) + 0.01))
    assert allowed(mean, 0.0, 0.0, False, 50) == pytest.approx(0.01 + DRIFT)  # no variance at the edge


def test_what_is_judged_tightly_and_what_is_not_judged():
    name = "eval/arithmetic/accuracy"
    then = [{"step": s, name: 0.5, "reward/mean": 0.5, "drift/k3": 1.0} for s in range(4)]
    now = [record | {"drift/k3": 9.0} for record in then]
    assert all(j.outside == 0 for j in judge(CONFIG, then, now, same_start=True, collapsed=False))

    def outside(step, metric, value, **how):
        other = [record | {metric: value} if record["step"] == step else record for record in now]
        return {j.metric: j.step for j in judge(CONFIG, then, other, **how) if j.outside}

    tight = {"same_start": True, "collapsed": False}
    assert outside(0, name, 0.2, **tight) == {name: 0}  # 8 problems; fp32: more than one answer of them
    assert outside(1, name, 0.2, **tight) == {}
    assert outside(0, name, 0.2, same_start=False, collapsed=False) == {}
    assert outside(2, "reward/mean", 0.2, **tight) == {"reward/mean": 2}  # lag 1: batch 1 is of the initial policy
    assert outside(3, "reward/mean", 0.2, **tight) == {}
    assert outside(3, "reward/mean", -3.0, same_start=True, collapsed=True) == {}  # a fall's path is its own
    missing = [{k: v for k, v in record.items() if k != name} for record in now]
    assert [j.metric for j in judge(CONFIG, then, missing, **tight) if j.outside] == [name]


@pytest.mark.slow
def test_exit_codes(copied):
    from tests.test_cli import cli

    done = cli("reproduce", str(copied.path), "--steps", "1", cwd=copied.path.parent)
    assert (done.returncode, done.stderr) == (0, "") and "identical bit for bit" in done.stdout
    change_record(copied, 0, "eval/arithmetic/accuracy", lambda value: math.nextafter(value, 1.0))
    done = cli("reproduce", str(copied.path), "--steps", "1", "--json", cwd=copied.path.parent)
    assert done.returncode == 1 and json.loads(done.stdout)["differing"] == 1
    done = cli("reproduce", str(copied.path), "--steps", "9", cwd=copied.path.parent)
    assert done.returncode == 2 and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
