"""The run directory's files survive what happens to processes."""

from __future__ import annotations

import json
import math
import os

import pytest

from drpo_bench.records import (
    DamagedFile,
    RunDir,
    append_record,
    begins_with,
    cut_back,
    extent,
    read_records,
    remove_leftovers,
    write_json,
)


def test_records_are_strict_json_and_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_record(path, {"step": 0, "a": 1.5, "b": math.inf, "c": math.nan})
    json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)  # NaN or Infinity would raise
    (record,) = read_records(path)
    assert (record["a"], record["b"]) == (1.5, math.inf)
    assert math.isnan(record["c"])


def test_a_line_cut_short_is_left_out_and_cut_away(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(4):
        append_record(path, {"step": step, "x": math.inf})
        if step == 2:
            known = extent(path)
    path.write_text(path.read_text() + '{"step": 4, "x"')
    assert [record["step"] for record in read_records(path)] == [0, 1, 2, 3]
    assert begins_with(path, known)
    cut_back(path, known["bytes"])
    assert [record["step"] for record in read_records(path)] == [0, 1, 2]
    assert extent(path) == known
    path.write_text(path.read_text().replace('"step": 1', '"step": 7'))
    assert not begins_with(path, known)


def test_an_absent_file_of_records_is_an_empty_one(tmp_path):
    known = extent(tmp_path / "absent.jsonl")
    assert known["bytes"] == 0
    assert begins_with(tmp_path / "absent.jsonl", known)
    cut_back(tmp_path / "absent.jsonl", 0)
    assert not list(tmp_path.iterdir())


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1, "x": \n{"step": 2}\n')
    with pytest.raises(DamagedFile, match=r"metrics\.jsonl: line 2 is damaged"):
        list(read_records(path))


@pytest.mark.parametrize("text", ["", '{"state": "fini', "\0\0\0"])
def test_a_damaged_status_is_a_run_to_do_again(text, tmp_path):
    (tmp_path / "status.json").write_text(text)
    status = RunDir(tmp_path).status()
    assert status["state"] == "pending"
    assert "status.json: damaged" in status["reason"]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    dead = 2**22 + 1  # larger than any process id
    names = [f".status.json.{dead}", f".mlflow.json.{os.getpid()}", ".hidden", "status.json", ".gitignore", "step.1"]
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    write_json(path, {"x": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"x": 2})
    assert json.loads(path.read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


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
