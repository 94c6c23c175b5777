"""The config tree: strictness, presets, canonical JSON, run ids."""

from __future__ import annotations

import json
from math import inf

import pytest
from pydantic import ValidationError

from drpo_bench.config import RunConfig, canonical, load_run_config

BASE = {"experiment": {"name": "x"}}


def config(**fields):
    return RunConfig.model_validate(BASE | fields)


def test_unknown_key_is_an_error():
    with pytest.raises(ValidationError, match="extra_forbidden"):
        config(train={"step": 3})


def test_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        config().seed = 3


@pytest.mark.parametrize("value", ["10", True, 10.5])
def test_wrong_type_is_not_coerced(value):
    with pytest.raises(ValidationError):
        config(train={"steps": value})


def test_infinity_round_trips_through_json():
    run = config(loss={"id": "drpo", "delta": inf})
    data = json.loads(json.dumps(canonical(run.model_dump()), allow_nan=False))
    assert data["loss"]["delta"] == "inf"
    assert load_run_config(data | {"run_id": run.run_id}) == run
    assert load_run_config(data).run_id == run.run_id


def test_run_id_names_the_run_and_hashes_only_what_determines_the_result():
    run = config(seed=3, precision={"preset": "fp8_rollout"}, loss={"id": "spo"})
    assert run.run_id.startswith("nano-fp8_rollout-spo-s3-")
    same = run.model_copy(update={"experiment": run.experiment.model_copy(update={"name": "y", "question": "?"})})
    assert same.run_id == run.run_id
    assert config(checkpoint={"every": 7}).run_id == config().run_id
    others = [config(seed=1), config(train={"lr": 1e-3}), config(runtime={"threads": 2}), config(rollout={"lag": 1})]
    assert len({config().run_id, *(other.run_id for other in others)}) == 5


def test_warmstart_is_shared_by_losses_and_precisions_but_not_by_seeds():
    run = config(loss={"id": "spo"}, precision={"preset": "fp32"}, rollout={"lag": 2}, train={"lr": 1.0})
    assert run.warmstart_key() == config().warmstart_key()
    assert config(seed=1).warmstart_key() != config().warmstart_key()
    assert config(task={"name": "word_problems"}).warmstart_key() != config().warmstart_key()


@pytest.mark.parametrize("alias", ["fp8", "fp8_rollout"])
def test_preset_resolves_to_its_fields(alias):
    run = config(precision={"preset": alias})
    assert run.precision.trainer == "bf16"
    assert (run.precision.rollout.fp8_weights, run.precision.rollout.fp8_activations) == (True, True)
    assert run.precision.name == "fp8_rollout"
    assert run.run_id == config(precision=run.precision.model_dump()).run_id


def test_preset_with_explicit_fields_is_an_error():
    with pytest.raises(ValidationError, match="exclude each other"):
        config(precision={"preset": "bf16", "trainer": "fp32"})


def test_explicit_precision_is_spelled_out():
    precision = {"trainer": "fp32", "rollout": {"dtype": "bf16", "fp8_weights": True}}
    assert config(precision=precision).precision.name == "fp32_bf16w8"


def test_fp8_end_to_end_and_an_fp8_cache():
    end_to_end = config(precision={"preset": "fp8_e2e"}).precision
    assert (end_to_end.trainer, end_to_end.rollout.dtype, end_to_end.rollout.fp8_kv) == ("fp8", "bf16", False)
    assert end_to_end.rollout == config(precision={"preset": "fp8_rollout"}).precision.rollout
    cached = {"trainer": "fp8", "rollout": end_to_end.rollout.model_dump() | {"fp8_kv": True}}
    assert config(precision=cached).precision.name == "fp8_bf16w8a8kv8"
    assert config(precision=cached).run_id != config(precision=end_to_end.model_dump()).run_id


def test_what_does_not_act_leaves_run_ids_as_they_were():
    assert config().run_id == "nano-bf16-drpo-s0-25ee5330"
    assert config().warmstart_key() == "5d5f06f3156c61d6"
    strict = config(runtime={"allow_emulation": False})
    assert (strict.run_id, strict.warmstart_key()) == (config().run_id, config().warmstart_key())


def test_restricted_sampling_is_refused():
    with pytest.raises(ValidationError, match="renormalised"):
        config(rollout={"top_p": 0.9})


def test_minibatches_hold_whole_groups():
    with pytest.raises(ValidationError, match="multiple of"):
        config(rollout={"problems_per_batch": 6}, train={"updates_per_batch": 4})
