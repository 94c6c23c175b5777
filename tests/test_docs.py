"""The documentation names what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from drpo_bench.losses import LOSSES
from drpo_bench.losses.docpage import ELSEWHERE, page
from drpo_bench.metrics import BUCKETS
from drpo_bench.records import RunDir, read_records
from drpo_bench.trainer import train

DOCS = Path(__file__).parents[1] / "docs"
PAIRS = ("mismatch", "staleness", "drift", "offpolicy")


def documented() -> set[str]:
    """Every name in backticks, a pair's metrics under each of the four groups."""
    names = set(re.findall(r"`([A-Za-z0-9_./<>]+)`", (DOCS / "metrics.md").read_text()))
    short = {name for name in names if "/" not in name}
    return names | {f"{pair}/{name}" for pair in PAIRS for name in short}


def test_the_page_of_losses_is_the_registry():
    text = (DOCS / "losses.md").read_text()
    assert text == "\n".join(page()).rstrip() + "\n", "run `make docs`"
    assert set(ELSEWHERE) <= set(LOSSES)


def test_every_logged_metric_is_documented(tiny_config, tmp_path, warmstart_cache):
    config = tiny_config(precision={"preset": "fp16"}, eval={"greedy": True})
    train(config, tmp_path, warmstart_cache)
    logged = {key for r in read_records(RunDir(tmp_path / "runs" / config.run_id).metrics) for key in r}
    generic = {key.replace("eval/arithmetic/", "eval/<task>/") for key in logged - {"step", "time_s"}}
    suffixes = [*(f"/{name}" for name, _, _ in BUCKETS), "_pos", "_neg"]
    parts = [f"offpolicy/{name}" for name in ("tv_mean", "ratio_max", "tokens")]
    parts += [f"update/{name}" for name in ("w_mean", "w_neg_frac", "clip_frac", "tokens")]
    buckets = {part + suffix for part in parts for suffix in suffixes}
    assert not generic - documented() - buckets
    assert {f"`.../{name}`" for name, _, _ in BUCKETS} <= set(re.findall(r"`[^`]+`", (DOCS / "metrics.md").read_text()))
    assert all(re.fullmatch(r"[A-Za-z0-9_./ -]+", key) for key in logged)  # what MLflow accepts
