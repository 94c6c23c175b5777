"""`drpo-bench reproduce RUN_DIR`: read, replay, compare, print."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drpo_bench.console import output
from drpo_bench.errors import UserError
from drpo_bench.reproduce.recorded import Recorded, read_run


def reproduce(path: Path, steps: int | None, keep: Path | None, as_json: bool) -> bool:
    """Replay a run and print the verdict; True if it is the same, or as near as its environment allows."""
    recorded = read_run(path)
    wanted = batches(recorded, steps)
    with folder(recorded, keep) as out:
        from drpo_bench.reproduce.replay import replay
        from drpo_bench.reproduce.verdict import Verdict

        verdict = Verdict(recorded, replay(recorded, wanted, out), wanted)
        console, data = output(), verdict.data()
    if as_json:
        console.print_json(json.dumps(data))
    else:
        from drpo_bench.reproduce.printing import print_verdict

        print_verdict(verdict, console)
        if keep:
            console.print(f"Replay: {verdict.replay.run_dir.path}", soft_wrap=True, markup=False)
    return verdict.result != "different"


def batches(recorded: Recorded, steps: int | None) -> int:
    """How many batches to train: all that are recorded, or the first `steps`."""
    if steps is None:
        return recorded.last_step
    if not 1 <= steps <= recorded.last_step:
        raise UserError(f"--steps {steps}: must be from 1 to {recorded.last_step}, which are recorded")
    return steps


@contextmanager
def folder(recorded: Recorded, keep: Path | None) -> Iterator[Path]:
    """Where the replay's results go: `keep`, which must be new or empty, or a folder that is gone afterwards."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="drpo-bench-reproduce-") as temporary:
            yield Path(temporary)
        return
    if keep.resolve().is_relative_to(recorded.run_dir.path.resolve()):
        raise UserError(f"--keep {keep}: lies in the run directory, where nothing is written")
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise UserError(f"--keep {keep}: must be a new or empty folder")
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--keep {keep}: cannot be made: {error.strerror}") from None
    yield keep
