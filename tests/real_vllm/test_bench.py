"""`bench --peer vllm`: vLLM takes its turns in this process."""

from __future__ import annotations

from drpo_bench.bench import vllm
from drpo_bench.bench.shapes import Shape
from drpo_bench.precision_configs import PrecisionConfig


def test_both_sides_sample_every_token():
    shape = Shape(problems=4, group_size=2, prompt=12, response=8)
    (comparison,) = vllm.compare("nano", PrecisionConfig.model_validate("bf16"), shape, 2)
    for side in (comparison.ours, comparison.peer):
        assert side.tokens == (shape.rows * shape.response,) * 2
        assert min(side.seconds) > 0
