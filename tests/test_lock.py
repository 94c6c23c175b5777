"""One runner a sweep directory: refusals name the owner, what a dead one left is taken over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from drpo_bench.errors import UserError
from drpo_bench.process import this_process
from drpo_bench.records import read_json, write_json
from drpo_bench.sweep import lock
from drpo_bench.sweep.lock import OWNER, duration, owned

HOLD = """
import sys, time
from pathlib import Path
from drpo_bench.sweep.lock import owned
with owned(Path(sys.argv[1]), take_over=False):
    print("mine", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that owns the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def owner_elsewhere(tmp_path):
    """runner.json as a runner on another machine left it an hour ago."""
    process = this_process() | {"host": "node7", "pid": 4321}
    write_json(tmp_path / OWNER, {"process": process, "user": "alice", "started_at": time.time() - 7200, "command": ""})
    os.utime(tmp_path / OWNER, (time.time() - 3600,) * 2)


def test_a_second_runner_is_refused_with_the_owner_and_its_age(holder, tmp_path):
    before = (tmp_path / OWNER).read_bytes()
    seen = rf"at work in this folder: process {holder.pid} of \w+ on .+, started \d+ s ago, last sign of life \d+ s ago"
    with pytest.raises(UserError, match=seen):
        owned(tmp_path, take_over=True).__enter__()  # a live owner is not taken over either
    assert (tmp_path / OWNER).read_bytes() == before


def test_what_a_killed_runner_left_is_explained_and_taken_over(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with owned(tmp_path, take_over=False) as stale:
        assert f"ended without leaving: process {holder.pid} of" in stale
        assert read_json(tmp_path / OWNER)["process"]["pid"] == os.getpid()
    assert not (tmp_path / OWNER).exists()
    with owned(tmp_path, take_over=False) as stale:
        assert stale is None


def test_an_owner_on_another_machine_is_taken_over_only_when_told(owner_elsewhere, tmp_path):
    seen = "another machine: process 4321 of alice on node7, started 2 hours ago, last sign of life 60 minutes ago; "
    with pytest.raises(UserError, match=rf"{seen}.* --take-over"):
        owned(tmp_path, take_over=False).__enter__()
    assert read_json(tmp_path / OWNER)["user"] == "alice"
    with owned(tmp_path, take_over=True) as stale:
        assert "taken over from a run that ended without leaving" in stale


def test_a_clock_that_jumps_steals_no_lock(holder, tmp_path, monkeypatch):
    for years in (10, -10):
        real = time.time() + years * 365 * 86400
        monkeypatch.setattr(lock.time, "time", lambda real=real: real)
        with pytest.raises(UserError, match="at work in this folder"):
            owned(tmp_path, take_over=False).__enter__()
        monkeypatch.undo()
    assert duration(-5) == "0 s"


def test_signs_of_life_and_a_runner_that_lost_its_folder_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.01)
    stopped = []
    previous = signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    try:
        with owned(tmp_path, take_over=False):
            path = tmp_path / OWNER
            os.utime(path, (0, 0))
            while path.stat().st_mtime == 0:
                time.sleep(0.01)
            other = json.loads(path.read_text()) | {"process": this_process() | {"host": "node7"}}
            write_json(path, other)
            while not stopped:
                time.sleep(0.01)
        assert read_json(path)["process"]["host"] == "node7"  # not ours to remove
    finally:
        signal.signal(signal.SIGTERM, previous)


@pytest.mark.parametrize("text", ["", "[]", '{"pid": 3}'])
def test_a_damaged_owner_file_is_nobody(text, tmp_path):
    (tmp_path / OWNER).write_text(text)
    with owned(tmp_path, take_over=False) as stale:
        assert stale is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (120, "2 minutes"), (7200, "2 hours"), (200000, "2 days")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
