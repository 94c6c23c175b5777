"""What tests of whole runs share: their records without the clock, and a run that is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drpo_bench.config import RunConfig
from drpo_bench.records import RunDir, read_records
from drpo_bench.trainer import Trainer


def untimed(run_dir: RunDir) -> list[dict[str, Any]]:
    """Records without what the clock decides."""
    return [
        {k: v for k, v in record.items() if k != "time_s" and not k.startswith(("time/", "perf/"))}
        for record in read_records(run_dir.metrics)
    ]


def stop_at_the_first_checkpoint(config: RunConfig, folder: Path, cache: Path) -> None:
    """Start a run and interrupt it right after it has written its first checkpoint."""
    trainer = Trainer(config, RunDir(folder / "runs" / config.run_id), cache)
    real = trainer.save

    def save_and_stop() -> None:
        real()
        raise KeyboardInterrupt

    trainer.save = save_and_stop
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.close()
