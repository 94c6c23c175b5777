"""The run directory's files survive what happens to processes."""

from __future__ import annotations

import json
import math

import pytest

from drpo_bench.records import RunDir, append_record, read_records, truncate_records, write_json


def test_records_are_strict_json_and_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_record(path, {"step": 0, "a": 1.5, "b": math.inf, "c": math.nan})
    json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)  # NaN or Infinity would raise
    (record,) = read_records(path)
    assert (record["a"], record["b"]) == (1.5, math.inf)
    assert math.isnan(record["c"])


def test_a_line_cut_short_is_left_out_and_truncated_away(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(4):
        append_record(path, {"step": step, "x": math.inf})
    path.write_text(path.read_text() + '{"step": 4, "x"')
    assert [record["step"] for record in read_records(path)] == [0, 1, 2, 3]
    truncate_records(path, 2)
    assert [record["step"] for record in read_records(path)] == [0, 1, 2]
    assert path.read_text().endswith("}\n")


def test_write_json_leaves_the_old_file_when_the_data_is_bad(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": math.nan})
    assert json.loads(path.read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_status_is_pending_before_the_first_write(tmp_path):
    run_dir = RunDir(tmp_path)
    assert run_dir.status()["state"] == "pending"
    run_dir.set_status("finished", step=3)
    assert (run_dir.status()["state"], run_dir.status()["step"]) == ("finished", 3)
