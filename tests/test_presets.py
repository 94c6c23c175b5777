"""Presets, corrections and warnings at config time: what is set, what is refused, and by which name."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from drpo_bench.config import RunConfig, canonical, load_run_config
from drpo_bench.errors import UserError
from drpo_bench.loss_presets import PRESETS
from drpo_bench.losses import LOSSES, make_loss
from drpo_bench.sweep.plan import load_experiment

BASE = {"experiment": {"name": "x"}}


def config(**fields):
    return RunConfig.model_validate(BASE | fields)


@pytest.mark.parametrize(("loss_id", "name"), [(loss, name) for loss in PRESETS for name in PRESETS[loss]])
def test_every_preset_resolves_and_its_config_is_replayable(loss_id, name):
    run = config(loss={"id": loss_id, "preset": name})
    preset = PRESETS[loss_id][name]
    assert set(preset.parameters) == set(type(run.loss).model_fields) - {"id", "preset"}  # no default has a say
    for key, value in preset.parameters.items():
        assert getattr(run.loss, key) == value
    for dotted, value in preset.fields.items():
        table, field = dotted.split(".")
        assert getattr(getattr(run, table), field) == value
    assert load_run_config(json.loads(json.dumps(canonical(run.model_dump())))) == run
    assert RunConfig.model_validate(run.model_dump()) == run
    assert any("does not reproduce" in warning for warning in run.warnings()) == bool(preset.missing)


def test_a_preset_is_written_out_and_not_part_of_the_identity():
    by_name = config(loss={"id": "dppo_tv", "preset": "scaling"})
    by_hand = config(
        loss={"id": "dppo_tv", "delta_low": 0.2, "delta_high": 0.2, "ratio_cap": 5.0},
        train={"aggregation": "seq_mean_token_sum_norm"},
    )
    assert by_name.run_id == by_hand.run_id
    assert by_name.run_id != config(loss={"id": "dppo_tv"}).run_id


def test_a_preset_reaches_tables_that_are_objects():
    from drpo_bench.config import TrainConfig
    from drpo_bench.loss_configs.clipped import GRPOConfig

    by_name = config(loss={"id": "grpo", "preset": "paper"})
    assert config(loss=GRPOConfig(preset="paper")) == by_name
    assert config(loss=GRPOConfig(preset="paper"), train=TrainConfig()) == by_name
    with pytest.raises(ValidationError, match=r"train\.kl_coef is 0\.5"):
        config(loss=GRPOConfig(preset="paper"), train=TrainConfig(kl_coef=0.5))
    assert config(loss={"id": "minirl", "preset": "paper", "ratio_cap": float("inf")}).loss.ratio_cap == float("inf")
    with pytest.raises(ValueError, match="preset: sets more than the loss"):
        make_loss("grpo", preset="paper")


def test_published_settings_of_the_methods():
    dapo = config(loss={"id": "grpo", "preset": "dapo"})
    assert (dapo.train.aggregation, dapo.train.advantage, dapo.train.anchor) == ("token_mean", "group_std", "old")
    assert dapo.rollout.dynamic_sampling
    assert dapo.task.overlong_penalty == 0.5
    grpo = config(loss={"id": "grpo", "preset": "paper"})
    assert (grpo.train.aggregation, grpo.train.kl_coef, grpo.loss.clip_high) == ("seq_mean_token_mean", 0.04, 0.2)
    dr_grpo = config(loss={"id": "grpo", "preset": "dr_grpo"})
    assert (dr_grpo.train.aggregation, dr_grpo.train.advantage) == ("seq_mean_token_sum_norm", "mean")
    assert config(loss={"id": "drpo", "preset": "paper"}).loss.delta == 12.5
    controlled = [config(loss={"id": loss_id}).train for loss_id in LOSSES]
    assert all(train == controlled[0] for train in controlled)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": {"id": "drpo", "preset": "papr"}}, r"loss\.preset: drpo has no preset 'papr'; did you mean 'paper'"),
        ({"loss": {"id": "dis", "preset": "paper"}}, r"loss\.preset: dis has no preset 'paper'; dis has controlled"),
        ({"loss": {"id": "drpo", "preset": "paper", "delta": 1.0}}, r"loss\.delta is 1\.0, but loss\.preset = 'paper'"),
        (
            {"loss": {"id": "gspo", "preset": "paper"}, "train": {"advantage": "mean"}},
            r"train\.advantage is 'mean', but loss\.preset = 'paper' sets it to 'group_std'",
        ),
        (
            {"loss": {"id": "drpo", "preset": "paper"}, "train": {"kl_coef": 0.3}},
            r"train\.kl_coef is 0\.3, but loss\.preset = 'paper' sets it to 0\.0",
        ),
        (
            {"loss": {"id": "drpo", "preset": "paper"}, "correction": {"id": "geo_rs"}},
            r"correction\.id is 'geo_rs', but loss\.preset",
        ),
        ({"loss": {"id": "drpo", "preset": "paper"}, "train": 3}, "train"),
        ({"correction": {"id": "tis_token"}}, r"correction\.id: the ratio of drpo is over mu already"),
        (
            {"correction": {"id": "icepop"}, "loss": {"id": "gmpo"}, "train": {"anchor": "old"}},
            r"correction\.id: icepop is a token-level correction and gmpo has a ratio of whole responses",
        ),
        ({"correction": {"id": "outlier"}}, "low"),
        ({"correction": {"id": "geo_rs", "low": 1.1, "high": 1.0}}, r"low \(1\.1\) is not below high"),
        ({"task": {"name": "arithmetic", "overlong_buffer": 65}}, r"task\.overlong_buffer \(65\) is above"),
        ({"train": {"kl_coef": -1.0}}, "kl_coef"),
        ({"loss": {"id": "minirl", "mask_anchor": "ref"}}, "mask_anchor"),
        ({"loss": {"id": "dppo_topk_tv", "k": 0}}, "k"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(fields, message):
    with pytest.raises(ValidationError, match=message):
        config(**fields)


def test_the_message_names_the_file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('[experiment]\nname = "study"\n[loss]\nid = "grpo"\n[correction]\nid = "tis_seq"\n')
    with pytest.raises(UserError) as error:
        load_experiment(str(path))
    assert str(error.value).startswith(f"{path}: correction.id: the ratio of grpo is over mu already")
    assert "\n" not in str(error.value)
    path.write_text('[experiment]\nname = "study"\n[correction]\nid = "tis_tokens"\n')
    with pytest.raises(UserError, match=r"correction: unknown id 'tis_tokens'; did you mean 'tis_token'"):
        load_experiment(str(path))


def test_rejection_composes_with_a_ratio_over_mu():
    assert config(correction={"id": "geo_rs"}).correction.high == 1.001
    assert config(correction={"id": "tis_token"}, loss={"id": "reinforce"}).correction.cap == 2.0
    sweep = {"correction": {"id": "tis_seq", "cap": 5.0}, "loss": {"id": "gspo"}, "train": {"anchor": "prox"}}
    assert config(**sweep).needs == {"prox"}


def test_what_a_run_computes_follows_from_what_it_reads():
    assert config().needs == set()
    assert config(loss={"id": "minirl"}).needs == {"old"}
    assert config(loss={"id": "decoupled_ppo"}, train={"anchor": "old"}).needs == {"old", "prox"}
    assert config(loss={"id": "dppo_topk_tv"}).needs == {"topk"}
    assert config(train={"kl_coef": 0.1}).needs == {"ref"}


def test_a_ratio_that_is_one_by_construction_is_told():
    run = config(loss={"id": "grpo"}, train={"anchor": "prox", "updates_per_batch": 1}, rollout={"lag": 3})
    assert "the ratio is 1 at every update" in run.warnings()[0]
    fields = {"train": {"anchor": "prox", "updates_per_batch": 1}}
    for loss in (
        {"id": "decoupled_ppo", "mask_anchor": "old"},
        {"id": "dppo_tv", "mask_anchor": "mu"},
        {"id": "dppo_topk_tv"},
        {"id": "penalty", "kind": "kl"},  # pushes with constant force, on policy too
        {"id": "pg_is"},
        {"id": "reinforce"},
    ):
        assert not config(loss=loss, **fields).warnings()
    assert config(loss={"id": "dppo_tv", "mask_anchor": "prox"}, **fields).warnings()
    assert not config(
        loss={"id": "grpo"}, train={"anchor": "old", "updates_per_batch": 1}, rollout={"lag": 1}
    ).warnings()


def test_mask_drpo_warns_in_its_own_words():
    def warnings(**params):
        return config(loss={"id": "mask_drpo", **params}).warnings()

    assert not warnings()
    assert "stays above 0.92" in warnings(delta=12.5)[0]
    assert "this is pg_is" in warnings(delta_mask=float("inf"))[0]
    assert not warnings(delta=0.9)
    assert "stays above 0.06" in warnings(delta=0.9, continuous=True)[0]  # 1 - 0.85 / 0.9


def test_fields_that_cannot_act_are_not_part_of_the_identity():
    assert config(rollout={"max_sampling_rounds": 9}).run_id == config().run_id
    assert config(task={"name": "arithmetic", "overlong_buffer": 9}).run_id == config().run_id
    active = {"dynamic_sampling": True, "max_sampling_rounds": 9}
    assert config(rollout=active).run_id != config(rollout=active | {"max_sampling_rounds": 3}).run_id


def test_reward_shaping_does_not_change_the_warm_start():
    shaped = config(task={"name": "arithmetic", "overlong_penalty": 1.0, "overlong_buffer": 8})
    assert shaped.warmstart_key() == config().warmstart_key()
    assert shaped.run_id != config().run_id


def test_equal_runs_share_a_cell_in_every_table(tmp_path):
    from drpo_bench.analysis.runs import identity_row, setting_hash

    def row(run):
        data = canonical(run.model_dump())
        identity = identity_row(run, setting_hash(data))
        return {key: identity[key] for key in ("setting", "loss", "loss_params", "fields")}

    assert row(config(rollout={"max_sampling_rounds": 9})) == row(config())
    by_name, train = config(loss={"id": "drpo", "preset": "paper"}), {"aggregation": "seq_mean_token_sum_norm"}
    by_hand = config(loss={"id": "drpo", "delta": 12.5}, train=train)
    assert by_name.run_id == by_hand.run_id
    assert row(by_name) == row(by_hand)
    assert row(by_name)["setting"] != row(config())["setting"]
