"""Our losses against verl 0.9.1's own registered functions: the same gradients, and our functions in its registry."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, compute_policy_loss_reinforce
from verl.utils import tensordict_utils
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import ActorConfig, PolicyLossConfig
from verl.workers.utils.losses import ppo_loss

from drpo_bench.batching import token_weights
from drpo_bench.correction_configs import TISSeq
from drpo_bench.integrations.verl import NOT_REGISTERED, LossConfig, register, response_tokens
from drpo_bench.losses import LOSSES, make_loss

DOCS = Path(__file__).parents[2] / "docs" / "integrations.md"
AGGREGATIONS = {
    "token-mean": "token_mean",
    "seq-mean-token-sum": "seq_mean_token_sum",
    "seq-mean-token-mean": "seq_mean_token_mean",
    "seq-mean-token-sum-norm": "seq_mean_token_sum_norm",
}
HORIZON = 7  # verl's loss_scale_factor
CLIP = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}
NO_CAP = 1e9  # verl's clip_ratio_c cannot be turned off; 3 is its default

# Our id and parameters, verl's loss_mode, fields of its ActorConfig and PolicyLossConfig, and its fixed aggregation.
CASES = {
    "grpo": ("grpo", {"clip_low": 0.2, "clip_high": 0.28}, "vanilla", CLIP | {"clip_ratio_c": NO_CAP}, {}, None),
    "dual_clip": (
        "grpo", {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 1.6},
        "vanilla", CLIP | {"clip_ratio_c": 1.6}, {}, None,
    ),
    "dppo_tv": (
        "dppo_tv", {"delta_low": 0.1, "delta_high": 0.2}, "dppo_tv",
        {"clip_ratio_low": 0.1, "clip_ratio_high": 0.2, "clip_ratio_c": NO_CAP}, {}, None,
    ),
    "dppo_tv_capped": (
        "dppo_tv", {"delta_low": 0.1, "delta_high": 0.2, "ratio_cap": 1.5}, "dppo_tv",
        {"clip_ratio_low": 0.1, "clip_ratio_high": 0.2, "clip_ratio_c": 1.5}, {}, None,
    ),
    "dppo_kl": (
        "dppo_kl", {"delta_low": 0.03, "delta_high": 0.06, "ratio_cap": 3.0}, "dppo_kl",
        {"clip_ratio_low": 0.03, "clip_ratio_high": 0.06, "clip_ratio_c": 3.0}, {}, None,
    ),
    "gspo": ("gspo", {"clip_low": 0.2, "clip_high": 0.28}, "gspo", CLIP, {}, None),
    "cispo": ("cispo", {"clip_low": 0.2, "clip_high": 0.28}, "cispo", CLIP, {}, None),
    "reinforce": ("reinforce", {}, "gpg", {}, {}, None),
    "dro": ("dro", {"coef": 0.3}, "dro", {}, {"dro_beta": 0.3}, None),
    # sapo ignores loss_agg_mode; gmpo takes the plain mean of the micro-batch's rollouts
    "sapo": ("sapo", {"tau_pos": 1.0, "tau_neg": 1.4}, "sapo", {"tau_neg": 1.4}, {}, "seq-mean-token-mean"),
    "gmpo": (
        "gmpo", {"clip_low": 0.2, "clip_high": 0.3}, "geo_mean",
        {"clip_ratio_low": 0.2, "clip_ratio_high": 0.3}, {}, "seq-mean-token-mean",
    ),
    # clip_cov drops random tokens: all that qualify are dropped here, since verl's random numbers are not ours
    "clip_cov": (
        "clip_cov", {"clip_low": 0.2, "clip_high": 0.28, "select_frac": 1.0, "cov_low": 0.3, "cov_high": 2.0},
        "clip_cov", CLIP, {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.3, "clip_cov_ub": 2.0}, None,
    ),
    "kl_cov": (
        "kl_cov", {"select_frac": 0.2, "coef": 0.7}, "kl_cov", {}, {"kl_cov_ratio": 0.2, "ppo_kl_coef": 0.7}, None
    ),
}  # fmt: skip


def make_batch(seed: int, rows: int = 256, width: int = 12) -> dict[str, torch.Tensor]:
    """A ragged float64 micro-batch [B, T] with holes in its mask, near and far from on-policy, A of every sign."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(3, rows, width, generator=generator, dtype=torch.float64)
    normal = torch.randn(2, rows, 1, generator=generator, dtype=torch.float64)
    log_prob = uniform[0].clamp(min=1e-3, max=1 - 1e-6).log()
    drift = 0.2 * normal[0] + 4 * uniform[1, :, :1] * (uniform[2] - 0.5)  # of whole rollouts, and of tokens
    advantages = normal[1].expand(rows, width).clone()
    advantages[0] = 0
    mask = torch.arange(width) < torch.randint(1, width + 1, (rows, 1), generator=generator)
    mask[:, 1] = False  # a tool's token, say
    return {
        "old_log_prob": (log_prob - drift).clamp(max=-1e-6),
        "log_prob": log_prob.requires_grad_(),
        "advantages": advantages,
        "response_mask": mask,
    }


def actor(policy_loss: PolicyLossConfig | None = None, **fields) -> ActorConfig:
    """verl's configuration of the actor, as `ppo_loss` completes it."""
    config = ActorConfig(
        strategy="fsdp", rollout_n=4, ppo_micro_batch_size_per_gpu=1,
        policy_loss=policy_loss or PolicyLossConfig(), **fields,
    )  # fmt: skip
    config.global_batch_info["loss_scale_factor"] = HORIZON
    return config


def gradient(function, batch, **arguments) -> torch.Tensor:
    """d loss / d log_prob [B, T] of a policy loss of verl's registry."""
    loss, metrics = function(**batch, **arguments)
    assert all(isinstance(value, float) for value in metrics.values())
    return torch.autograd.grad(loss, batch["log_prob"])[0]


def our_gradient(loss, batch, aggregation: str, selected=None) -> torch.Tensor:
    """The same of ours: `(weights * loss(tokens)).sum()`."""
    tokens = response_tokens(*batch.values(), loss.anchor)
    lengths = torch.tensor(tokens.lengths())
    weights = token_weights(lengths, AGGREGATIONS[aggregation], HORIZON).repeat_interleave(lengths)
    tokens = replace(tokens, weights=weights, selected=selected)
    return torch.autograd.grad((tokens.weights * loss(tokens)).sum(), batch["log_prob"])[0]


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to the float32 of `token_weights` and verl's 1e-8 in denominators."""
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("case", "aggregation"),
    [(name, mode) for name, case in CASES.items() for mode in AGGREGATIONS if case[-1] in (None, mode)],
)
def test_the_gradient_is_verls(case, aggregation, seed):
    loss_id, params, mode, fields, policy_fields, _ = CASES[case]
    batch, config = make_batch(seed), actor(PolicyLossConfig(**policy_fields), **fields)
    expected = gradient(POLICY_LOSS_REGISTRY[mode], batch, loss_agg_mode=aggregation, config=config)
    assert_same(our_gradient(make_loss(loss_id, **params), batch, aggregation), expected)
    assert_same(our_gradient(make_loss(loss_id, anchor="old", **params), batch, aggregation), expected)
    if LOSSES[loss_id].config.scope != "minibatch":
        ours = POLICY_LOSS_REGISTRY[register(loss_id, "ours", **params)]
        assert_same(gradient(ours, batch, loss_agg_mode=aggregation, config=actor()), expected)


@pytest.mark.parametrize("case", CASES.keys() - {"reinforce", "dro", "sapo"})  # those have no boundary
def test_the_batches_lie_on_both_sides_of_the_boundaries(case):
    """Without this, equal gradients would say little: for A > 0 and for A < 0, a boundary acts on some tokens."""
    loss_id, params, *_ = CASES[case]
    batch = make_batch(0)
    full = our_gradient(make_loss("pg_is"), batch, "token-mean")
    actual = our_gradient(make_loss(loss_id, **params), batch, "token-mean")
    kept = actual != 0 if loss_id in ("gspo", "gmpo") else (actual / full - 1).abs() < 1e-9
    for sign in (1, -1):
        share = kept[(full != 0) & (batch["advantages"].sign() == sign)].double().mean()
        assert 0.1 < share < 0.95


def test_clip_cov_drops_as_many_of_the_same_candidates():
    batch = make_batch(0)
    params = {"clip_low": 0.2, "clip_high": 0.28, "cov_low": 0.3, "cov_high": 2.0}
    policy = PolicyLossConfig(clip_cov_ratio=0.05, clip_cov_lb=0.3, clip_cov_ub=2.0)
    expected = gradient(POLICY_LOSS_REGISTRY["clip_cov"], batch, config=actor(policy, **CLIP))
    tokens = response_tokens(*batch.values())
    candidates = make_loss("clip_cov", select_frac=1.0, **params).select(tokens, seed=0)
    dropped = candidates & (expected[batch["response_mask"]] == 0)
    loss = make_loss("clip_cov", select_frac=0.05, **params)
    assert 1 < int(dropped.sum()) == int(loss.select(tokens, seed=0).sum()) < int(candidates.sum())
    assert_same(our_gradient(loss, batch, "token-mean", selected=dropped), expected)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_bypass_mode_with_reinforce_is_a_truncated_surrogate(level):
    """In bypass mode verl weights REINFORCE by min(pi / mu, C), of tokens or whole responses."""
    batch, cap = make_batch(0), 1.2
    correction = {"loss_type": "reinforce", "rollout_is": level, "rollout_is_threshold": cap, "rollout_rs": None}
    config = actor(PolicyLossConfig(rollout_correction=correction))
    expected = gradient(POLICY_LOSS_REGISTRY["bypass_mode"], batch, config=config)
    by_level = {
        "token": make_loss("pg_tis", ratio_cap=cap),
        "sequence": make_loss("reinforce", correction=TISSeq(cap=cap)),
    }
    assert_same(our_gradient(by_level[level], batch, "token-mean"), expected)


def test_reinforce_is_verls_function_of_that_name():
    batch = make_batch(0)
    function = compute_policy_loss_reinforce
    loss, _ = function(batch["old_log_prob"], *list(batch.values())[1:], loss_agg_mode="token-mean", config=actor())
    (expected,) = torch.autograd.grad(loss, batch["log_prob"])
    assert_same(our_gradient(make_loss("reinforce"), batch, "token-mean"), expected)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss_id", sorted(LOSSES.keys() - NOT_REGISTERED.keys()))
def test_micro_batches_and_ranks_do_not_change_the_gradient(loss_id, aggregation):
    function, batch = POLICY_LOSS_REGISTRY[f"drpo_bench_{loss_id}"], make_batch(1)
    batch["response_mask"][5] = False  # a rejected response: no tokens, but it counts in global_batch_size
    rows = len(batch["response_mask"])
    config = actor()
    counts = {"batch_num_tokens": int(batch["response_mask"].sum()), "global_batch_size": rows}
    config.global_batch_info.update(counts, dp_size=2)
    whole = gradient(function, batch, loss_agg_mode=aggregation, config=config) / 2
    parts = torch.zeros_like(whole)
    for start in range(0, rows, 100):
        part = {name: value[start : start + 100] for name, value in batch.items()}
        loss, _ = function(**part, loss_agg_mode=aggregation, config=config)
        parts += torch.autograd.grad(loss, batch["log_prob"])[0] / 2  # ranks average their gradients
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    assert not whole[5].any() and whole.any()


def test_a_micro_batch_without_tokens_has_no_gradient():
    batch = make_batch(0)
    batch["response_mask"][:] = False
    config = actor()
    config.global_batch_info.update(batch_num_tokens=10, global_batch_size=4)
    function = POLICY_LOSS_REGISTRY["drpo_bench_gspo"]
    assert not gradient(function, batch, config=config).any()
    assert function(**batch, config=config)[1] == {"actor/ppo_kl": 0.0, "actor/tv_mean": 0.0}


def test_the_kl_metric_is_verls():
    batch = make_batch(0)
    values = [
        POLICY_LOSS_REGISTRY[name](**batch, config=actor())[1]["actor/ppo_kl"]
        for name in ("vanilla", "drpo_bench_drpo")
    ]
    assert values[1] == pytest.approx(values[0], rel=1e-6) != 0


def test_rollout_weights_multiply_once():
    batch = make_batch(0)
    weights = torch.rand(batch["log_prob"].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9)) * 2
    expected = gradient(
        POLICY_LOSS_REGISTRY["vanilla"], batch, config=actor(**CLIP, clip_ratio_c=NO_CAP), rollout_is_weights=weights
    )
    ours = POLICY_LOSS_REGISTRY[register("grpo", "ours", anchor="old", clip_low=0.2, clip_high=0.28)]
    assert_same(gradient(ours, batch, config=actor(), rollout_is_weights=weights), expected)
    configured = actor(LossConfig(loss_params={"clip_low": 0.2, "clip_high": 0.28}, anchor="old"))
    ours = POLICY_LOSS_REGISTRY["drpo_bench_grpo"]  # registered with anchor mu
    assert_same(gradient(ours, batch, config=configured, rollout_is_weights=weights), expected)
    with pytest.raises(ValueError, match="rollout_is: the ratio of grpo is over mu already"):
        ours(**batch, config=actor(), rollout_is_weights=weights)
    # REINFORCE has no ratio, so nothing is corrected twice
    expected = gradient(POLICY_LOSS_REGISTRY["gpg"], batch, config=actor(), rollout_is_weights=weights)
    reinforce = POLICY_LOSS_REGISTRY["drpo_bench_reinforce"]
    assert_same(gradient(reinforce, batch, config=actor(), rollout_is_weights=weights), expected)


@pytest.mark.parametrize("loss_id", sorted(LOSSES.keys() - NOT_REGISTERED.keys()))
def test_with_anchor_old_nothing_reads_mu(loss_id):
    """verl has no mu then: it is NaN. A loss is the same function of the one policy that it is given."""
    batch = make_batch(0)
    expected = gradient(POLICY_LOSS_REGISTRY[f"drpo_bench_{loss_id}"], batch, config=actor())
    assert response_tokens(*batch.values(), "old").mu_logprobs.isnan().all()
    for anchor in ("old", "prox"):
        ours = POLICY_LOSS_REGISTRY[register(loss_id, "ours", anchor=anchor)]
        assert torch.equal(gradient(ours, batch, config=actor()), expected)


def test_what_is_not_registered_and_why():
    assert set(NOT_REGISTERED) == {"minirl", "decoupled_ppo", "clip_cov", "kl_cov", "dppo_topk_tv", "dppo_topk_kl"}
    assert "reads old; verl hands a loss one set of old logprobs" in NOT_REGISTERED["minirl"]
    assert not {f"drpo_bench_{loss_id}" for loss_id in NOT_REGISTERED} & set(POLICY_LOSS_REGISTRY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("minirl",), "loss_params.mask_anchor: minirl reads old"),
        (("dppo_topk_tv",), "reads topk"),
        (("clip_cov",), "takes statistics over a minibatch"),
        (("drpo", "vanilla"), "name: verl has a policy loss 'vanilla' of its own"),
        (("drpo", None, "pi"), "anchor: unknown policy 'pi'"),
    ],
)
def test_register_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        register(*arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_mode": "drpo_bench_drpo", "loss_params": {"delt": 0.2}}, "loss_params: delt: unknown field"),
        ({"loss_mode": "drpo_bench_drpo", "loss_params": {"delta": -1.0}}, "loss_params: delta: is -1.0"),
        ({"loss_mode": "drpo_bench_drpo", "loss_params": {"preset": "paper"}}, "loss_params.preset"),
        ({"loss_mode": "drpo_bench_kl_cov"}, "loss_mode: drpo_bench_kl_cov does not exist"),
        ({"loss_mode": "drpo_bench_drppo"}, "unknown loss 'drppo'"),
        (
            {"loss_mode": "drpo_bench_ipo", "anchor": "old", "loss_params": {"mask_anchor": "mu"}},
            "loss_params.mask_anchor: ipo reads mu",
        ),
    ],
)
def test_the_config_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**fields)


def test_the_documented_command_reaches_drpos_gradient():
    """From the overrides in the docs through verl's config, its `ppo_loss` and our function."""
    command = re.search(r"```bash\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    overrides = re.findall(r"\S+=\S+", command.replace("delta=0.15", "delta=0.25"))
    with initialize_config_module("verl.trainer.config", version_base=None):
        composed = compose("ppo_trainer", [*overrides, "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2"])
    assert composed.algorithm.rollout_correction.bypass_mode is True
    config = omega_conf_to_dataclass(composed.actor_rollout_ref.actor)
    assert isinstance(config.policy_loss, LossConfig)
    # Two prompts of 2 tokens, responses of 2 and 1. The model scores every token's successor, flattened:
    # prompt 1, response 1, and a last value that nobody follows
    pi = torch.tensor([0.99, 0.30, 0.60, 0.99, 0.99, 0.20, 0.99])
    mu = torch.tensor([[0.20, 0.60], [0.30, 0.50]])
    mask = torch.tensor([[1, 1], [1, 0]])
    log_probs = pi.log().requires_grad_()
    data = TensorDict(
        {
            "prompts": torch.ones(2, 2, dtype=torch.long),
            "responses": torch.ones(2, 2, dtype=torch.long),
            "attention_mask": torch.cat([torch.ones(2, 2, dtype=torch.long), mask], dim=1),
            "response_mask": mask,
            "old_log_probs": mu.log(),
            "advantages": torch.tensor([[1.0, 1.0], [-1.0, -1.0]]),
        },
        batch_size=2,
    )
    for name, value in {"dp_size": 1, "batch_num_tokens": 3, "global_batch_size": 2}.items():
        tensordict_utils.assign_non_tensor_data(data, name, value)
    loss, metrics = ppo_loss(config, {"log_probs": log_probs}, data)
    loss.backward()
    # d(-L)/dx = A r [1 - sign(A) (pi - mu) / delta]: 1.5 (1 - 0.4), 1, and -(2/3) (1 - 0.4)
    expected = torch.tensor([0.0, -0.9, -1.0, 0.0, 0.0, 0.4, 0.0]) / 3
    torch.testing.assert_close(log_probs.grad, expected)
    assert metrics["actor/tv_mean"].aggregate() == pytest.approx((0.1 + 0.0 + 0.1) / 3)


def test_the_documented_module_registers():
    exec(re.search(r"```python\n(from drpo_bench.integrations.verl.*?)```", DOCS.read_text(), re.DOTALL)[1])
    batch = make_batch(0)
    expected = gradient(POLICY_LOSS_REGISTRY["vanilla"], batch, config=actor(**CLIP, clip_ratio_c=NO_CAP))
    assert_same(gradient(POLICY_LOSS_REGISTRY["my_grpo"], batch, config=actor()), expected)
    expected = our_gradient(make_loss("drpo", delta=0.3), batch, "token-mean")
    assert_same(gradient(POLICY_LOSS_REGISTRY["my_drpo"], batch, config=actor()), expected)
