"""TRL's GRPOTrainer, a rollout batch a line of standard input: run by `bench --peer trl`, in TRL's own environment.

Prints a line of JSON for each: seconds of generation and all updates, response tokens. Imports nothing of drpo_bench,
so that its environment needs TRL alone. Rewards are exact matches of the last number, the loss GRPO without a KL term.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("model", "problems"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("problems-per-batch", "group-size", "updates", "max-new-tokens", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    return parser.parse_args()


def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """1 where the last number is the answer."""
    numbers = [re.findall(r"-?\d+", completion) for completion in completions]
    return [float(bool(found) and found[-1] == wanted) for found, wanted in zip(numbers, answer, strict=True)]


def main() -> None:
    options = parse()
    answers = sys.stdout
    sys.stdout = sys.stderr  # what TRL prints

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(options.threads)
    rows = [json.loads(line) for line in Path(options.problems).read_text().splitlines()]
    rollouts = options.problems_per_batch * options.group_size

    class Turns(TrainerCallback):  # type: ignore[misc]
        """A batch is `updates` steps; the next one begins when it is asked for."""

        begin = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % options.updates == 0:
                if not sys.stdin.readline():
                    control.should_training_stop = True
                self.begin = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % options.updates == 0:
                self.seconds = time.perf_counter() - self.begin

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "completions/mean_length" in logs:
                tokens = round(logs["completions/mean_length"] * rollouts)
                answers.write(json.dumps({"seconds": self.seconds, "tokens": tokens}) + "\n")
                answers.flush()

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=options.updates,
            per_device_train_batch_size=rollouts // options.updates,
            steps_per_generation=options.updates,
            num_generations=options.group_size,
            max_completion_length=options.max_new_tokens,
            max_steps=options.updates * 10_000,
            learning_rate=options.lr,
            lr_scheduler_type="constant",
            temperature=1.0,
            beta=0.0,
            loss_type="grpo",
            epsilon=0.2,
            epsilon_high=0.28,
            scale_rewards=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(options.model, padding_side="left"),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            callbacks=[Turns()],
        )
        gc.freeze()  # as our side does: what is loaded is not searched for garbage
        trainer.train()


if __name__ == "__main__":
    main()
