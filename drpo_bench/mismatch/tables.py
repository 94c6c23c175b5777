"""What is written beside the pairs: tokens and sequences for the figures, and CSV itself."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drpo_bench.mismatch.pairs import Row
from drpo_bench.mismatch.scores import Sequences, SideScores, gathered
from drpo_bench.records import write_text

TOKEN_ROWS = 20_000


def sampled_against_scored(scored: SideScores | None, sequences: Sequences) -> dict[str, float] | None:
    """Mean and largest difference in nats between what the sampler reported and what it says when it scores: 0 of the
    torch engine, decoding against prefill of vLLM. None where the sampler is no side."""
    if scored is None:
        return None
    reported = gathered([response.logprobs for response in sequences.responses])
    difference = (reported - scored.logprobs).abs()
    return {"mean": float(difference.mean()), "max": float(difference.max())}


def token_rows(scores: dict[str, SideScores], names: Sequence[str], reference: str, seed: int) -> list[Row]:
    """Probabilities of the same randomly chosen tokens under every side (mu) and the reference (pi)."""
    others = [name for name in names if name != reference]
    total = len(scores[reference].logprobs)
    count = min(total, TOKEN_ROWS // len(others))
    chosen = np.sort(np.random.default_rng(seed).choice(total, count, replace=False)).tolist()
    probabilities = {name: scores[name].logprobs.double().exp()[chosen].tolist() for name in names}
    return [
        {"mu_side": name, "pi_side": reference, "token": token, "mu": mu, "pi": pi}
        for name in others
        for token, mu, pi in zip(chosen, probabilities[name], probabilities[reference], strict=True)
    ]


def sequence_rows(
    scores: dict[str, SideScores], names: Sequence[str], reference: str, lengths: Sequence[int]
) -> list[Row]:
    """log pi - log mu of whole sequences, mu each side and pi the reference."""
    rows: list[Row] = []
    for name in names:
        difference = scores[reference].logprobs.double() - scores[name].logprobs.double()
        for index, (part, length) in enumerate(zip(difference.split(list(lengths)), lengths, strict=True)):
            row: Row = {"mu_side": name, "pi_side": reference, "sequence": index, "length": length}
            rows.append(row | {"log_ratio": float(part.sum())})
    return [row for row in rows if row["mu_side"] != reference]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Rows as a CSV, columns in the order of their first appearance; what a row lacks stays empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
    write_text(path, buffer.getvalue())
