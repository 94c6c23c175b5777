"""`bench --peer trl`: TRL's own trainer, from the environment of `make test-peers`, takes its turns beside ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from drpo_bench.bench import trl
from drpo_bench.bench.shapes import Shape
from drpo_bench.config import RunConfig

SHAPE = Shape(problems=4, group_size=4, prompt=12, response=11)


@pytest.fixture
def short_warmstart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps, whatever they reach."""
    run_config = trl.run_config

    def changed(*arguments) -> RunConfig:
        config = run_config(*arguments).model_dump()
        config["warmstart"] |= {"target": 0.0, "max_steps": 10}
        return RunConfig.model_validate(config)

    monkeypatch.setattr(trl, "run_config", changed)


def test_both_sides_take_as_many_turns_on_the_same_problems(short_warmstart, tmp_path: Path):
    comparisons = trl.compare("nano", 1, SHAPE, 2, tmp_path / "warmstarts", None)
    measured, unmeasured = comparisons
    assert measured.peer is unmeasured.peer and measured.ours.tokens[0] == unmeasured.ours.tokens[0]
    for comparison in comparisons:
        assert len(comparison.ratios) == 2
        for side in (comparison.ours, comparison.peer):
            assert min(side.seconds) > 0
            assert all(SHAPE.rows < tokens <= SHAPE.rows * (SHAPE.response + 5) for tokens in side.tokens)


def test_a_trl_that_cannot_start_says_why(short_warmstart, monkeypatch, tmp_path: Path):
    broken = tmp_path / "server.py"
    broken.write_text("raise SystemExit('no TRL today')")
    monkeypatch.setattr(trl.trl_server, "__file__", str(broken))
    with pytest.raises(RuntimeError, match="no TRL today"):
        trl.compare("nano", 1, SHAPE, 1, tmp_path / "warmstarts", None)
