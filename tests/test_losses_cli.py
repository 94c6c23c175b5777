"""`drpo-bench losses list|show|plot|verify`: what they print, write and exit with."""

from __future__ import annotations

import json
from dataclasses import replace

import matplotlib.image
import pandas as pd
import pytest
from typer.testing import CliRunner

from drpo_bench.cli import app
from drpo_bench.errors import UserError
from drpo_bench.losses import LOSSES


def run(*arguments: str):
    return CliRunner().invoke(app, ["losses", *arguments])


def test_list_is_a_table_and_json_with_ids():
    assert run("list").exit_code == 0
    rows = json.loads(run("list", "--json").stdout)
    assert [row["id"] for row in rows] == list(LOSSES)
    drpo = next(row for row in rows if row["id"] == "drpo")
    assert drpo["parameters"] == {"delta": 0.15}
    assert drpo["presets"] == ["paper"]
    assert drpo["gradient"] == "g = A r [1 - sign(A) (p - u) / delta]"
    minirl = next(row for row in rows if row["id"] == "minirl")
    assert (minirl["needs"], minirl["parameters"]["ratio_cap"]) == (["old"], "inf")


@pytest.mark.parametrize("loss_id", LOSSES)
def test_show_tells_formula_boundary_and_source(loss_id):
    result = run("show", loss_id)
    assert result.exit_code == 0
    for word in (loss_id, "objective", "gradient", "boundary", "source", "scope"):
        assert word in result.stdout


def test_show_keeps_square_brackets_and_lists_what_a_preset_leaves_out():
    assert "[1 - sign(A) (p - u) / delta]" in run("show", "drpo").stdout
    assert "not reproduced" in run("show", "grpo").stdout
    error = run("show", "drop").exception
    assert isinstance(error, UserError)
    assert "unknown loss 'drop'" in str(error)


def test_plot_draws_every_loss_and_says_where(tmp_path):
    result = run("plot", "--out", str(tmp_path))
    assert result.exit_code == 0
    names = {path.name for path in tmp_path.iterdir()}
    files = {f"weights_{kind}.{suffix}" for kind in ("main", "all") for suffix in ("png", "pdf", "csv")}
    assert names == files | {"weights.md"}
    assert all(name in result.stdout for name in names)
    assert matplotlib.image.imread(tmp_path / "weights_main.png").shape[1] > 1000
    table = pd.read_csv(tmp_path / "weights_all.csv")
    assert set(table["loss"]) == set(LOSSES)
    drpo = table[(table["loss"] == "drpo") & table["is_default"] & (table["advantage"] == 1)]
    expected = 1 - drpo["shift"] / 0.15
    assert (drpo["weight"] - expected).abs().max() < 1e-3
    on_policy = table[(table["ratio"] - 1).abs() < 1e-9]
    assert set(on_policy["token"]) == {"rare", "frequent"}
    assert all(f"| `{loss_id}` |" in (tmp_path / "weights.md").read_text() for loss_id in LOSSES)


def test_verify_prints_a_line_a_check_and_fails_when_one_does(monkeypatch):
    good = run("verify")
    assert good.exit_code == 0
    lines = good.stdout.strip().splitlines()
    assert lines[-1] == f"{len(lines) - 1} checks of {len(LOSSES)} losses, 0 fail (largest error of allowed error)"
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert len(lines) > 200
    wrong = replace(LOSSES["drpo"], formula=lambda tokens, **params: 1.01 * LOSSES["spo"].formula(tokens, epsilon=0.2))
    monkeypatch.setitem(LOSSES, "drpo", wrong)
    bad = run("verify", "--json")
    assert bad.exit_code == 1, bad.exception
    failed = {row["check"] for row in json.loads(bad.stdout) if not row["ok"]}
    assert "drpo: gradient is the closed form" in failed
    assert "drpo(delta=inf) = pg_is" in failed
    assert not any(name.startswith("grpo:") for name in failed)
