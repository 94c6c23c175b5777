"""The tables of docs/performance.md, measured: `make bench`. Each part is a process; what is there stays."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drpo_bench.bench.table import rows_of, warnings

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
SIZES = ("nano", "micro", "mini")
PARTS: dict[str, tuple[str, ...]] = {
    "trl": ("--peer", "trl", "--repeats", "9"),
    **{
        f"hf_{size}_{precision}": ("--peer", "hf", "--size", size, "--precision", precision, "--repeats", "7")
        for size in SIZES
        for precision in ("fp32", "bf16")
    },
    **{f"vllm_{precision}": ("--peer", "vllm", "--precision", precision) for precision in ("fp32", "bf16")},
    **{f"alone_{size}": ("--size", size, "--repeats", "7") for size in SIZES},
    "startup": ("--part", "startup", "--repeats", "5"),
    "growth": ("--part", "growth", "--repeats", "3", "--out", "docs/figures"),
    "workers": ("--part", "workers"),
}
TITLES = {
    "trl": "A rollout batch of training, against TRL's GRPOTrainer",
    "hf_nano_fp32": "Rollout, against transformers' generate",
    "vllm_fp32": "Rollout, against vLLM on a CPU",
    "alone_nano": "Rollout, trainer and formats alone",
    "startup": "Start-up",
    "growth": "Growth",
    "workers": "Workers",
}


def measure(part: str, folder: Path, threads: int) -> dict[str, Any]:
    """The report of a part, from its file if there is one."""
    path = folder / f"{part}.json"
    if not path.exists():
        command = [sys.executable, "-m", "drpo_bench.cli", "bench", "--json", "--threads", str(threads), *PARTS[part]]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        path.write_text(said)
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def page(reports: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Lines of markdown: a table for each title, of all parts up to the next, and its warnings below."""
    first = next(iter(reports.values()))
    yield f"{first['cpu']}, {first['threads']} threads, {first['shape']}, vocabulary 200. GPU: {first['gpu']}."
    notes: list[str] = []
    for name, report in reports.items():
        header, *rows = rows_of(report)
        plain = report["part"] == "speed"
        if name in TITLES:
            yield from notes
            notes = []
            header = ("size, precision", *header) if plain else header
            yield f"\n### {TITLES[name]}\n"
            yield markdown(header)
            yield markdown(["---" if column in ("size, precision", "what") else "--:" for column in header])
        label = f"{report['size']}, {report['precision']}"
        for row in rows:
            yield markdown([label, *row] if plain else row)
        notes += [f"\n{label}: {said}." for said in warnings(report)]
    yield from notes


def markdown(cells: Sequence[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def main(page_path: Path, folder: Path, threads: int = 2) -> None:
    """Measure what is missing in `folder`; rewrite the page's tables and the JSON beside it, with all reports."""
    folder.mkdir(parents=True, exist_ok=True)
    reports = {}
    for number, part in enumerate(PARTS, 1):
        sys.stderr.write(f"{number} of {len(PARTS)}: {part}\n")
        reports[part] = measure(part, folder, threads)
    text = page_path.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    page_path.write_text(before + "\n" + "\n".join(page(reports)) + "\n" + after)
    page_path.with_suffix(".json").write_text(json.dumps(list(reports.values()), indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
