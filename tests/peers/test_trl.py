"""Our losses in TRL 1.16's GRPOTrainer, on a tiny Qwen3 on the CPU: TRL's own gradients, and what is refused."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import trl.trainer.grpo_trainer as trl_module
from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import HfArgumentParser, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

from drpo_bench.integrations.trl import LossConfig, LossTrainer, response_mask

DOCS = Path(__file__).parents[2] / "docs" / "integrations.md"
LETTERS = "abcdefgh"
PROMPTS = Dataset.from_list([{"prompt": a + b} for a in LETTERS for b in LETTERS])


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {letter: index for index, letter in enumerate([*LETTERS, "<pad>", "<eos>"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(""), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>", padding_side="left"
    )


def tiny_model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=10, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, initializer_range=0.2, eos_token_id=9, pad_token_id=8,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def share_of_a(completions, **_):
    """A reward that a few steps can raise."""
    return [completion.count("a") / 8 for completion in completions]


def build_trainer(folder, trainer=LossTrainer, config=LossConfig, model=None, rollout_func=None, **fields):
    """A trainer of the tiny model, with micro-batches of 8 completions, 4 of each prompt."""
    defaults = {
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_generations": 4,
        "max_completion_length": 8, "max_steps": 4, "learning_rate": 1e-2, "scale_rewards": False,
    }  # fmt: skip
    args = config(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", save_strategy="no", logging_steps=1,
        gradient_checkpointing=False, dataloader_pin_memory=False, disable_tqdm=True, lr_scheduler_type="constant",
        **defaults | fields,
    )  # fmt: skip
    return trainer(
        model=model or tiny_model(), reward_funcs=share_of_a, args=args, train_dataset=PROMPTS,
        processing_class=tiny_tokenizer(), rollout_func=rollout_func,
    )  # fmt: skip


@pytest.fixture
def make_trainer(tmp_path):
    return partial(build_trainer, tmp_path)


def make_micro_batches(trainer, count: int, spread: float = 0.5) -> list[dict[str, torch.Tensor]]:
    """Off-policy micro-batches of 8 ragged completions as TRL buffers them, ratios on both sides of any clip."""
    generator = torch.Generator().manual_seed(1)
    rows, width = 8, 8
    batches = []
    for _ in range(count):
        ids = torch.randint(0, 8, (rows, 2 + width), generator=generator)
        lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
        mask = (torch.arange(width) < lengths).long()
        prompt = torch.ones(rows, 2, dtype=torch.long)
        with torch.no_grad():
            logprobs, *_ = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, torch.cat([prompt, mask], 1), width
            )
        noise = torch.randn(rows, width, generator=generator)
        batches.append(
            {
                "prompt_ids": ids[:, :2],
                "prompt_mask": prompt,
                "completion_ids": ids[:, 2:],
                "completion_mask": mask,
                "advantages": torch.randn(rows, generator=generator),
                "old_per_token_logps": (logprobs + spread * noise).clamp(max=-1e-4) * mask,
            }
        )
    total = sum(batch["completion_mask"].sum() for batch in batches)
    for batch in batches:
        batch["num_items_in_batch"] = total
    return batches


def accumulated_gradient(trainer, batches) -> torch.Tensor:
    """The gradient of the optimizer step that these micro-batches make."""
    trainer.model.train()
    trainer._buffered_inputs, trainer.current_gradient_accumulation_steps = batches, len(batches)
    for trainer._step, batch in enumerate(batches):
        trainer.compute_loss(trainer.model, batch).backward()
    return torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()])


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


RANKS = {"loss_type": "gspo", "loss_params": {"clip_low": 0.1, "clip_high": 0.12}}
RANKS["aggregation"] = "seq_mean_token_mean"  # weights that differ from rollout to rollout

# Our loss, parameters and aggregation; the fields of TRL's own loss. TRL's `dapo` divides by the generation batch's
# tokens, which is one optimizer step here.
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
TRL_CLIP = {"epsilon": 0.2, "epsilon_high": 0.28}
CASES = {
    "dapo": ("grpo", CLIP, "token_mean", {"loss_type": "dapo"} | TRL_CLIP),
    "grpo": ("grpo", CLIP, "seq_mean_token_mean", {"loss_type": "grpo"} | TRL_CLIP),
    "dr_grpo": ("grpo", CLIP, "seq_mean_token_sum_norm", {"loss_type": "dr_grpo"} | TRL_CLIP),
    # INTELLECT-2's two-sided clip has the gradient of the dual clip
    "two_sided": ("grpo", CLIP | {"dual_clip": 1.6}, "token_mean", {"loss_type": "dapo", "delta": 1.6} | TRL_CLIP),
    # TRL's epsilon_high is the cap itself, without a lower bound
    "cispo": ("cispo", {"clip_low": 1.0, "clip_high": 0.5}, "token_mean", {"loss_type": "cispo", "epsilon_high": 1.5}),
    "sapo": (
        "sapo", {"tau_pos": 1.2, "tau_neg": 1.5}, "seq_mean_token_mean",
        {"loss_type": "sapo", "sapo_temperature_pos": 1.2, "sapo_temperature_neg": 1.5},
    ),
    "gspo": (
        "gspo", {"clip_low": 0.1, "clip_high": 0.12}, "seq_mean_token_mean",
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.1, "epsilon_high": 0.12},
    ),
    "luspo": (
        "gspo", {"clip_low": 0.1, "clip_high": 0.12}, "seq_mean_token_sum",
        {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 0.1, "epsilon_high": 0.12},
    ),
    "vespo": (
        "vespo", {"k_pos": 1.5, "lambda_pos": 2.0, "k_neg": 2.5, "lambda_neg": 1.5}, "token_mean",
        {
            "loss_type": "vespo", "vespo_k_pos": 1.5, "vespo_lambda_pos": 2.0,
            "vespo_k_neg": 2.5, "vespo_lambda_neg": 1.5,
        },
    ),
    "gmpo": (
        "gmpo", {"clip_low": 0.2, "clip_high": 0.3}, "seq_mean_token_mean", {"epsilon": 0.2, "epsilon_high": 0.3}
    ),
}  # fmt: skip


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_trls(make_trainer, case, micro_batches):
    loss_id, params, aggregation, fields = CASES[case]
    accumulation = {"gradient_accumulation_steps": micro_batches}
    theirs = (GMPOTrainer, GMPOConfig) if case == "gmpo" else (GRPOTrainer, GRPOConfig)
    trainer = make_trainer(*theirs, **fields, **accumulation)
    batches = make_micro_batches(trainer, micro_batches)
    expected = accumulated_gradient(trainer, batches)
    ours = make_trainer(loss_type=loss_id, loss_params=params, aggregation=aggregation, **accumulation)
    assert_same(accumulated_gradient(ours, batches), expected)
    unclipped = make_trainer(loss_type="pg_is", aggregation=aggregation, **accumulation)
    other = accumulated_gradient(unclipped, batches)
    assert (other - expected).abs().max() > 0.01 * expected.abs().max()  # the loss's own mechanism is at work


def test_the_micro_batch_split_does_not_change_the_gradient(make_trainer):
    for loss_id in ("drpo", "gspo", "vespo", "minirl"):
        gradients = []
        for count in (1, 2, 4):
            trainer = make_trainer(
                loss_type=loss_id, gradient_accumulation_steps=count, per_device_train_batch_size=16 // count
            )
            whole = {
                name: value if value.dim() == 0 else torch.cat([value, value.flip(0)])
                for name, value in make_micro_batches(trainer, 1)[0].items()
            }
            parts = [
                {name: value if value.dim() == 0 else value[i::count] for name, value in whole.items()}
                for i in range(count)
            ]
            gradients.append(accumulated_gradient(trainer, parts))
        assert_same(gradients[1], gradients[0])
        assert_same(gradients[2], gradients[0])


def test_two_processes_do_not_change_the_gradient(make_trainer, tmp_path):
    """Each takes half of every micro-batch; the gradient of a step is the mean of theirs."""
    expected = accumulated_gradient(make_trainer(**RANKS), make_micro_batches(make_trainer(**RANKS), 2))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, tmp_path]
    subprocess.run([str(part) for part in command], check=True, env=os.environ | {"ACCELERATE_USE_CPU": "true"})
    assert_same(torch.load(tmp_path / "gradient.pt"), expected)


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean_token_mean"])
def test_weights_sum_to_one_in_each_of_several_optimizer_steps(make_trainer, aggregation):
    trainer = make_trainer(aggregation=aggregation, steps_per_generation=4)
    trainer._buffered_inputs = batches = make_micro_batches(trainer, 4)
    totals = []
    for trainer._step, batch in enumerate(batches):
        weights = trainer._weights(batch, "train")
        totals.append(float((weights * response_mask(batch).sum(1)).sum()))
    assert totals[0] + totals[1] == pytest.approx(1, abs=1e-6)
    assert totals[2] + totals[3] == pytest.approx(1, abs=1e-6)
    if aggregation == "token_mean":  # by the step's own tokens, not by the generation batch's
        counts = [float(response_mask(batch).sum()) for batch in batches]
        assert totals[0] == pytest.approx(counts[0] / (counts[0] + counts[1]), abs=1e-6)
        assert totals[2] == pytest.approx(counts[2] / (counts[2] + counts[3]), abs=1e-6)


@pytest.mark.parametrize("bias_correction", [True, False])
def test_the_kl_term_is_trls(make_trainer, tmp_path, bias_correction):
    tiny_model().save_pretrained(tmp_path / "reference")  # TRL loads its reference from where the model came
    from_disk = partial(Qwen3ForCausalLM.from_pretrained, tmp_path / "reference")
    shared = {"beta": 0.3, "use_bias_correction_kl": bias_correction}
    trainer = make_trainer(GRPOTrainer, GRPOConfig, from_disk(), loss_type="dapo", **TRL_CLIP, **shared)
    batches = make_micro_batches(trainer, 2)
    for batch in batches:
        batch["ref_per_token_logps"] = batch["old_per_token_logps"].flip(0).clamp(min=-3)
    expected = accumulated_gradient(trainer, batches)
    ours = make_trainer(model=from_disk(), loss_type="grpo", loss_params=CLIP, **shared)
    assert_same(accumulated_gradient(ours, batches), expected)
    assert ours._metrics["train"]["kl"] == pytest.approx(trainer._metrics["train"]["kl"], rel=1e-4)
    assert ours._metrics["train"]["entropy"] == pytest.approx(trainer._metrics["train"]["entropy"], rel=1e-4)
    without = make_trainer(loss_type="grpo", loss_params=CLIP)
    assert (accumulated_gradient(without, batches) - expected).abs().max() > 0.01 * expected.abs().max()


@pytest.mark.parametrize("width", [1, 8])  # of sequence_* and of token_* modes
def test_trls_vllm_correction_multiplies_once_with_anchor_old(make_trainer, width):
    trainer = make_trainer(GRPOTrainer, GRPOConfig, loss_type="dapo", **TRL_CLIP)
    trainer.use_vllm = True
    batches = make_micro_batches(trainer, 2)
    for batch in batches:
        batch["importance_sampling_ratio"] = torch.rand(8, width) * 2
        batch["sampling_per_token_logps"] = torch.full_like(batch["old_per_token_logps"], torch.nan)
    expected = accumulated_gradient(trainer, batches)
    fields = {"anchor": "old", "vllm_importance_sampling_correction": True}
    ours = make_trainer(loss_type="grpo", loss_params=CLIP, **fields)
    assert_same(accumulated_gradient(ours, batches), expected)


def test_a_training_run_is_trls_own(make_trainer):
    """End to end: generation, two updates a batch of two micro-batches each, the same parameters at the end."""
    shared = {"num_iterations": 2, "gradient_accumulation_steps": 2}
    theirs = make_trainer(GRPOTrainer, GRPOConfig, loss_type="dapo", **TRL_CLIP, **shared)
    theirs.train()
    ours = make_trainer(loss_type="grpo", loss_params=CLIP, **shared)  # seeds the same sampling anew
    ours.train()
    assert theirs.state.log_history[1]["clip_ratio/region_mean"] > 0.1
    for actual, expected in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


def test_drpo_trains(make_trainer):
    trainer = make_trainer(
        loss_type="drpo", loss_params={"delta": 0.15}, num_iterations=2, max_steps=24, gradient_accumulation_steps=2
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert logs[-1]["reward"] > logs[0]["reward"] + 0.2
    drift = [entry["offpolicy/tv_mean"] for entry in trainer.state.log_history if "offpolicy/tv_mean" in entry]
    assert max(drift[::2]) < 1e-6 < 1e-3 < min(drift[1::2])  # the second update of each batch is off-policy
    assert "mismatch/tv_mean" not in logs[0]  # one engine


@pytest.fixture
def seen(monkeypatch):
    """The Tokens that the losses of LossTrainer are given."""
    tokens, losses = [], LossTrainer._losses
    monkeypatch.setattr(LossTrainer, "_losses", lambda self, given: tokens.append(given) or losses(self, given))
    return tokens


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_mu_is_what_the_engine_recorded_and_tool_tokens_are_left_out(make_trainer, seen):
    recorded = [-1.0, -2.0, None, -0.5]  # vLLM could not score the third

    def rollout(prompts, trainer):
        ids = [[0, 1, 2, 9] for _ in prompts]
        prompt_ids = [trainer._tokenizer(prompt)["input_ids"] for prompt in prompts]
        masks = [[1, 0, 1, 1] for _ in prompts]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": [recorded] * len(ids), "env_mask": masks}

    trainer = make_trainer(rollout_func=rollout, max_steps=1, num_iterations=2, temperature=0.7)
    reference = copy.deepcopy(trainer.model)
    trainer.train()
    tokens, batch = seen[0], trainer._buffered_inputs[0]
    with torch.no_grad():
        logits = reference(torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)).logits[:, 1:-1]
    pi = (logits / 0.7).log_softmax(-1).gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1)[:, [0, 2, 3]]
    torch.testing.assert_close(tokens.logprobs.detach(), pi.flatten(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens.old_logprobs, pi.flatten(), rtol=1e-4, atol=1e-5)
    mu = tokens.mu_logprobs.reshape(8, 3)
    assert mu[:, 0].eq(-1.0).all() and mu[:, 2].eq(-0.5).all()
    torch.testing.assert_close(mu[:, 1], pi[:, 1], rtol=1e-4, atol=1e-5)
    assert tokens.rollout_index.tolist() == [row for row in range(8) for _ in range(3)]
    log = trainer.state.log_history[0]
    assert log["offpolicy/tv_mean"] == pytest.approx(log["mismatch/tv_mean"], rel=1e-4) != 0


def test_without_an_engine_mu_is_old(make_trainer, seen):
    make_trainer(num_iterations=2, max_steps=2).train()
    first, later = seen[0], seen[-1]
    torch.testing.assert_close(first.mu_logprobs, first.logprobs.detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(later.mu_logprobs, later.old_logprobs)
    assert not torch.allclose(later.mu_logprobs, later.logprobs.detach(), atol=1e-3)


@pytest.mark.parametrize("loss_id", ["grpo", "gspo"])
def test_completions_without_tokens_do_not_break_a_step(make_trainer, loss_id):
    """With mask_truncated_completions a micro-batch, or a whole step, may have none."""
    trainer = make_trainer(GRPOTrainer, GRPOConfig, loss_type="dapo", **TRL_CLIP)
    batches = make_micro_batches(trainer, 2)
    batches[1]["completion_mask"][:] = 0
    for batch in batches:
        batch["num_items_in_batch"] = batches[0]["completion_mask"].sum()
    expected = accumulated_gradient(trainer, batches)
    ours = make_trainer(loss_type=loss_id, loss_params=CLIP)
    actual = accumulated_gradient(ours, batches)
    assert actual.isfinite().all() and actual.any()
    if loss_id == "grpo":
        assert_same(actual, expected)
    fields = {"mask_truncated_completions": True, "max_completion_length": 1, "max_steps": 2}
    trainer = make_trainer(loss_type=loss_id, **fields)
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_minibatch_loss_chooses_once_a_step(make_trainer):
    params = {
        "select_frac": 0.5,
        "cov_low": -9.0,
        "cov_high": 9.0,
    }  # half of all tokens that are not clipped, at random
    trainer = make_trainer(loss_type="clip_cov", loss_params=params, gradient_accumulation_steps=1)
    batches = make_micro_batches(trainer, 1)
    gradients = []
    for trainer.state.global_step in (0, 0, 1):
        trainer.model.zero_grad()
        gradients.append(accumulated_gradient(trainer, batches))
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.allclose(gradients[0], gradients[2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_type": "dapo"}, "unknown loss 'dapo'"),
        ({"loss_params": {"delt": 0.1}}, "loss_params: delt: unknown field; did you mean 'delta'"),
        ({"loss_params": {"preset": "paper"}}, "loss_params.preset"),
        ({"loss_type": "dppo_topk_tv"}, "dppo_topk_tv reads topk; TRL records the sampled token's logprob only"),
        ({"loss_type": "decoupled_ppo"}, "loss_params.mask_anchor: decoupled_ppo reads prox; TRL has no lag"),
        ({"anchor": "prox"}, "anchor: drpo reads prox; TRL has no lag"),
        ({"anchor": "pi"}, "anchor: unknown policy 'pi'"),
        ({"loss_type": "clip_cov"}, "gradient_accumulation_steps: clip_cov takes statistics over a minibatch"),
        ({"aggregation": "mean"}, "aggregation: unknown mode 'mean'"),
        ({"steps_per_generation": 3}, "steps_per_generation: 3 is not a multiple of gradient_accumulation_steps"),
        ({"epsilon": 0.3}, "epsilon: belongs to TRL's own losses"),
        ({"entropy_coef": 0.1}, "entropy_coef: belongs to TRL's own losses"),
        ({"top_p": 0.9}, "top_p: is 0.9"),
        ({"generation_kwargs": {"top_k": 20}}, "top_k: is 20"),
        (
            {"use_vllm": True, "vllm_importance_sampling_correction": True},
            "vllm_importance_sampling_correction: the ratio of drpo is over mu already",
        ),
    ],
)
def test_the_config_refuses(make_trainer, fields, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**fields)


def test_a_config_of_trl_is_refused(make_trainer):
    with pytest.raises(ValueError, match="args: LossTrainer takes a LossConfig, not a GRPOConfig"):
        make_trainer(config=GRPOConfig)


def test_a_server_with_raw_logprobs_is_refused(make_trainer, monkeypatch):
    class Server:
        def __init__(self, **_):
            self.vllm_client = self

        def get_server_info(self):
            return {"model_config": {"logprobs_mode": "raw_logprobs"}}

    monkeypatch.setattr(trl_module, "VLLMGeneration", Server)
    with pytest.raises(ValueError, match="logprobs-mode is raw_logprobs"):
        make_trainer(use_vllm=True, vllm_mode="server")


def test_the_config_reads_a_command_line(tmp_path):
    arguments = ["--output_dir", str(tmp_path), "--use_cpu", "--loss_type", "dppo_tv", "--anchor", "old"]
    arguments += ["--loss_params", '{"delta_low": 0.1}', "--aggregation", "seq_mean_token_sum"]
    (config,) = HfArgumentParser(LossConfig).parse_args_into_dataclasses(arguments)
    loss = config.make_loss()
    assert (loss.id, loss.anchor, loss.config.delta_low) == ("dppo_tv", "old", 0.1)
    assert config.aggregation == "seq_mean_token_sum"
    assert not config.vllm_importance_sampling_correction


def test_the_documented_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    example = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    names = {}
    exec(example.replace("Qwen/Qwen3-0.6B", "model"), names)  # a model that is at hand
    assert names["trainer"].state.global_step == 8


def main(folder: str) -> None:
    """One of two processes: write the mean of their gradients."""
    trainer = build_trainer(folder, per_device_train_batch_size=4, **RANKS)
    rank = trainer.accelerator.process_index
    assert trainer.accelerator.num_processes == 2
    batches = make_micro_batches(trainer, 2)
    mine = [{name: v if v.dim() == 0 else v[4 * rank :][:4] for name, v in batch.items()} for batch in batches]
    gradient = trainer.accelerator.reduce(accumulated_gradient(trainer, mine), reduction="mean")
    if rank == 0:
        torch.save(gradient, f"{folder}/gradient.pt")


if __name__ == "__main__":
    main(sys.argv[1])
