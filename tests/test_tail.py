"""The long tail is real: after the warm start, rare tokens are sampled often enough for the methods to matter."""

from __future__ import annotations

import pytest

from drpo_bench.config import RunConfig
from drpo_bench.records import read_records
from drpo_bench.sweep.plan import load_experiment
from drpo_bench.warmstart import ensure_warmstart


def last_measurement(config: RunConfig, cache) -> dict[str, float]:
    """What the warm start measured on held-out problems when it stopped."""
    directory = ensure_warmstart(config, cache, lambda step, accuracy: None).directory
    return list(read_records(directory / "warmstart.jsonl"))[-1]


@pytest.mark.slow
def test_the_quickstarts_warm_start_reaches_its_target_with_a_tail_of_three_percent(tmp_path):
    config = load_experiment("quickstart").runs[0]
    measured = last_measurement(config, tmp_path)
    assert config.warmstart.target <= measured["accuracy"] < 0.5
    assert measured["lowprob_frac"] >= 0.03


@pytest.mark.slow
def test_word_problems_have_a_tail_of_five_percent(tmp_path):
    config = RunConfig.model_validate(
        {
            "experiment": {"name": "tail"},
            "task": {"name": "word_problems", "max_steps": 3},
            "warmstart": {
                "target": 0.0,
                "max_steps": 250,
                "eval_every": 250,
                "batch_size": 32,
                "lr": 4e-3,
                "max_new_tokens": 128,
            },
        }
    )
    measured = last_measurement(config, tmp_path)
    assert measured["truncated_frac"] < 0.2  # the model writes whole solutions, not noise
    assert measured["lowprob_frac"] >= 0.05
