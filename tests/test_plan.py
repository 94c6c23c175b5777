"""Experiment files: TOML, --set, sweeps, rules, and what a user is told about a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from drpo_bench.errors import UserError
from drpo_bench.shipped import shipped_experiments
from drpo_bench.sweep.plan import find_experiment, load_experiment

FILE = """
[experiment]
name = "study"
[train]
lr = 1e-3
[sweep]
seed = [0, 1]
precision = ["fp32", "fp8_rollout"]
"rollout.lag" = [0, 2]
loss = [{ id = "pg_is" }, { id = "drpo", delta = 0.15 }, { id = "drpo", delta = inf }]
"""


@pytest.fixture
def write(tmp_path):
    def write_file(text: str = FILE) -> str:
        path = tmp_path / "study.toml"
        path.write_text(text)
        return str(path)

    return write_file


def test_axes_multiply_in_order(write):
    plan = load_experiment(write())
    assert len(plan.runs) == 2 * 2 * 2 * 3
    first = [(run.seed, run.precision.name, run.rollout.lag, run.loss.id) for run in plan.runs[:4]]
    assert first == [(0, "fp32", 0, "pg_is"), (0, "fp32", 0, "drpo"), (0, "fp32", 0, "drpo"), (0, "fp32", 2, "pg_is")]
    assert len({run.run_id for run in plan.runs}) == 24


def test_set_beats_the_file_and_the_file_beats_the_defaults(write):
    run = load_experiment(write(), ["train.lr=5e-4", "sweep.seed=[7]", "eval.every=3"]).runs[0]
    assert (run.train.lr, run.seed, run.eval.every, run.train.steps) == (5e-4, 7, 3, 100)
    assert load_experiment(write()).runs[0].train.lr == 1e-3


def test_exclude_drops_and_include_adds(write):
    rules = """
[[sweep.exclude]]
precision = "fp32"
"rollout.lag" = 2
[[sweep.exclude]]
loss = { id = "drpo", delta = inf }
[[sweep.include]]
precision = "bf16"
"rollout.lag" = 0
loss = { id = "spo" }
"""
    runs = load_experiment(write(FILE + rules)).runs
    assert not [run for run in runs if run.precision.name == "fp32" and run.rollout.lag == 2]
    assert {run.loss.delta for run in runs if run.loss.id == "drpo"} == {0.15}
    assert [(run.seed, run.loss.id) for run in runs if run.precision.name == "bf16"] == [(0, "spo"), (1, "spo")]


def test_only_keeps_what_matches(write):
    runs = load_experiment(write(), only=["loss=pg_is,precision=fp32", "seed=1"]).runs
    assert [(run.loss.id, run.precision.name, run.seed) for run in runs] == [("pg_is", "fp32", 1)] * 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=3", "train.step: unknown field; did you mean 'steps'?"),
        ("eval.problems='many'", "eval.problems: is 'many'"),
        ("task.name=arithmetik", "task: unknown name 'arithmetik'; did you mean 'arithmetic'?"),
        ('sweep.precision=["fp9"]', "precision: unknown preset 'fp9'"),
        ('sweep.loss=[{id="drpoo"}]', "loss: unknown id 'drpoo'; did you mean 'drpo'?"),
        ('sweep.loss=[{id="drpo",dleta=1}]', "loss.dleta: unknown field; did you mean 'delta'?"),
        ('sweep.loss=[{id="drpo",delta=0}]', "loss.delta: is 0"),
        ('sweep.loss=["drpo"]', "sweep.loss: must be a list of tables"),
        ("sweep.seed=[]", "sweep.seed: is empty"),
        ("sweep.sed=[1]", "sweep.sed: unknown axis; did you mean 'seed'?"),
        ("seed=3", "seed: also a sweep axis; set sweep.seed instead"),
        ("train.lr=inf", "train.lr: is inf"),
        ('sweep.precision=[{preset=["bf16"]}]', "precision: preset is ['bf16'], must be a name"),
        ("rollout.top_p=0.5", "rollout.top_p: is 0.5, must be 1"),
        ("nonsense", "--set nonsense: must be field=value"),
        ("experiment.name='a/b'", "experiment.name: is 'a/b'"),
    ],
)
def test_mistakes_name_file_and_field(write, override, message):
    with pytest.raises(UserError) as error:
        load_experiment(write(), [override])
    text = str(error.value)
    assert message in text
    assert text.count("\n") <= 1
    assert "study.toml" in text or text.startswith("--set")


def test_unreadable_files(tmp_path, write):
    with pytest.raises(UserError, match="no such experiment file"):
        load_experiment(str(tmp_path / "absent.toml"))
    with pytest.raises(UserError, match="not a TOML file"):
        load_experiment(write("= nonsense"))
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        find_experiment("quikstart")
    with pytest.raises(UserError, match="los: no such field; did you mean 'loss'"):
        load_experiment(write(), only=["los=drpo"])
    with pytest.raises(UserError, match="loss: no run has dprp; did you mean 'drpo'"):
        load_experiment(write(), only=["loss=dprp"])


def test_rules_compare_resolved_values(write):
    text = FILE.replace(", delta = 0.15", "").replace('"fp8_rollout"', '"fp8"')
    assert len(load_experiment(write(text), only=["precision=fp8_rollout"]).runs) == 12
    assert len(load_experiment(write(FILE), only=["precision=fp8"]).runs) == 12
    default = '[[sweep.exclude]]\nloss = { id = "drpo", delta = 0.15 }\n'
    infinite = '[[sweep.exclude]]\nloss = { id = "drpo", delta = "inf" }\n'
    assert {run.loss.id for run in load_experiment(write(text + default + infinite)).runs} == {"pg_is"}


def test_dotted_axes_can_be_set(write):
    runs = load_experiment(write(), ["sweep.rollout.lag=[3]", 'sweep."train.beta1"=[0.8, 0.9]', "sweep.seed=[0]"]).runs
    assert {(run.rollout.lag, run.train.beta1) for run in runs} == {(3, 0.8), (3, 0.9)}


def test_axes_that_change_nothing_are_refused(write):
    with pytest.raises(UserError, match="two of its points are the same run"):
        load_experiment(write(), ["sweep.checkpoint.every=[1, 2]"])


@pytest.mark.parametrize("path", shipped_experiments().values(), ids=lambda p: p.stem)
def test_shipped_experiments_are_valid_and_named_after_their_file(path: Path):
    plan = load_experiment(path.stem)
    assert plan.info.name == path.stem
    assert plan.info.question
