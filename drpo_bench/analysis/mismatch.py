"""Figures, report.md and the printed table of what `drpo-bench mismatch` measured: functions of its CSVs alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from drpo_bench.analysis.layout import save_figure
from drpo_bench.analysis.mismatch_figures import label, matrix_figure, number, scatter_figure, sequence_figure
from drpo_bench.records import read_json, write_text

SHOWN = {
    "k1": "k1",
    "k3": "k3",
    "tv_mean": "mean |pi - mu|",
    "tv_max": "max |pi - mu|",
    "topk_tv": "top-k TV",
    "ratio_p1": "ratio p1",
    "ratio_p99": "ratio p99",
    "ppl_ratio": "ppl ratio",
    "seq_logratio_p1": "seq p1",
    "seq_logratio_p99": "seq p99",
    "response_router_flip_frac": "router flips",
}
PRINTED = ("k3", "tv_mean", "tv_max", "topk_tv", "ratio_p99", "seq_logratio_p99", "response_router_flip_frac")
SHARED_KERNELS = """\
The torch engine runs the trainer's own kernels. Where a format is emulated, almost nothing is left between the two:
both round the same numbers, and a study of mismatch on it understates what another engine would show. Where the
hardware computes in the format, sums change with the shape of the batch, and decoding token by token can differ from
the trainer's one pass as much as another engine does. fp8 is real quantisation error either way. Engines against the
trainer in its own format:
"""


def write_report(folder: Path) -> Path:
    """Draw the figures and write report.md; returns its path."""
    meta: dict[str, Any] = read_json(folder / "mismatch.json")
    pairs, tokens, sequences = (pd.read_csv(folder / f"{name}.csv") for name in ("pairs", "tokens", "sequences"))
    emulated = {side["name"]: bool(side["emulated"]) for side in meta["sides"]}
    everything = pairs[pairs["bucket"] == "all"]
    tokens = tokens.assign(ratio=tokens["pi"] / tokens["mu"], shift=(tokens["pi"] - tokens["mu"]).abs())
    figures, setting = folder / "figures", setting_text(meta)
    against = f"pi: {label(meta['reference'], emulated[meta['reference']])}, mu: the side in the title. {setting}"
    direction = f"Rows are mu, columns pi; the diagonal is each side scored twice, exactly 0. {setting}"
    names = {
        "matrix_k3": ("k3", f"KL(mu || pi), k3 estimate in nats a token, on tokens of {meta['sampler']}"),
        "matrix_tv": ("tv_mean", "Mean |pi - mu| of the sampled token"),
    }
    for figure, (metric, name) in names.items():
        drawn = everything[["mu", "pi", "tokens", metric]]
        save_figure(matrix_figure(drawn, metric, emulated, f"{name}. {direction}"), drawn, figures, figure)
    quantities = {"ratio": "Probability ratio pi / mu", "shift": "Absolute shift |pi - mu|"}
    for quantity, name in quantities.items():
        drawn = tokens[["mu_side", "pi_side", "token", "mu", "pi", quantity]]
        note = f"{name} of sampled tokens against their probability. {against}"
        save_figure(scatter_figure(drawn, quantity, emulated, note), drawn, figures, f"scatter_{quantity}")
    note = f"Log-ratio of whole sequences; sd: standard deviation. {against}"
    save_figure(sequence_figure(sequences, emulated, note), sequences, figures, "sequences")
    path = folder / "report.md"
    write_text(path, report_text(meta, everything, emulated))
    return path


def setting_text(meta: dict[str, Any]) -> str:
    """What the numbers stand on, for captions."""
    return (
        f"{meta['model']} {meta['architecture']}, {meta['task']['name']}: {meta['sequences']} sequences of "
        f"{meta['problems']} held-out problems, {meta['tokens']} tokens, sampled by {meta['sampler']} at "
        f"temperature 1, seed {meta['seed']}. Emulated: rounded onto the format's grid, not computed in it."
    )


def against_reference(meta: dict[str, Any], everything: pd.DataFrame) -> pd.DataFrame:
    """Every side as mu, the reference as pi."""
    is_reference: pd.Series[bool] = everything["pi"] == meta["reference"]
    return everything.loc[is_reference]


def report_text(meta: dict[str, Any], everything: pd.DataFrame, emulated: dict[str, bool]) -> str:
    """report.md: the table, what it means and what it does not."""
    table, reference = against_reference(meta, everything), meta["reference"]
    columns = {name: title for name, title in SHOWN.items() if name in table}
    lines = [
        f"# Mismatch of {meta['model']} ({meta['architecture']})",
        "",
        f"{setting_text(meta)} Commit {meta['environment']['commit']}, {meta['environment']['cpu']}.",
        "",
        f"Each side is mu, {label(reference, emulated[reference])} is pi; pairs by mu bucket: [pairs.csv](pairs.csv).",
        "",
        "| side (mu) | " + " | ".join(title.replace("|", "\\|") for title in columns.values()) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for row in table.to_dict("records"):
        cells = [label(row["mu"], emulated[row["mu"]]), *(cell(name, row[name]) for name in columns)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "k1 and k3 estimate KL(mu || pi) on tokens sampled from mu. Here all tokens are those of "
        f"{meta['sampler']}, so a row estimates it as far as its mu is close to that.",
        f"Top-k TV: over the tokens that both sides list among their {meta['topk']} likeliest (the trainer lists the "
        "sampler's), the sampled one and the rest; a lower bound.",
        "The control: each side scored twice, with the weights handed over again in between; every metric was exactly "
        "that of no mismatch.",
    ]
    if difference := meta["sampled_against_scored"]:
        lines.append(
            f"What {meta['sampler']} reported while it sampled and what it says when it scores differ by "
            f"{number(difference['mean'])} nats in the mean, {number(difference['max'])} at most."
        )
    if any(side.startswith("vllm") for side in emulated):
        lines.append("vLLM scores in one prefill; while it decodes, its kernels can be others.")
    lines += ["", SHARED_KERNELS, *shared_kernels_rows(everything)]
    for figure in ("matrix_k3", "matrix_tv", "scatter_ratio", "scatter_shift", "sequences"):
        lines += [f"![{figure}](figures/{figure}.png)", ""]
    return "\n".join(lines)


def cell(name: str, value: float) -> str:
    """A metric in a table; ratios, which are near 1, with four decimals."""
    return f"{value:.4f}" if name in ("ratio_p1", "ratio_p99", "ppl_ratio") else number(value)


def shared_kernels_rows(everything: pd.DataFrame) -> list[str]:
    """How far the engines are from the trainer in the trainer's own format, one line a pair that was measured."""
    rows = [
        f"- {row['mu']} against {row['pi']}: k3 {number(row['k3'])}, mean |pi - mu| {number(row['tv_mean'])}"
        for row in everything.to_dict("records")
        if row["pi"].startswith("trainer:")
        and not row["mu"].startswith("trainer:")
        and row["mu"].partition(":")[2] == row["pi"].partition(":")[2]
    ]
    return [*rows, ""] if rows else []


def print_summary(folder: Path, as_json: bool) -> None:
    """The table against the reference and where the rest is; as JSON all pairs over all tokens."""
    meta = read_json(folder / "mismatch.json")
    pairs = pd.read_csv(folder / "pairs.csv")
    everything = pairs[pairs["bucket"] == "all"]
    if as_json:
        rows = json.loads(everything.to_json(orient="records"))
        json.dump({"folder": str(folder), **meta, "pairs": rows}, sys.stdout, indent=1)
        sys.stdout.write("\n")
        return
    emulated = {side["name"]: bool(side["emulated"]) for side in meta["sides"]}
    columns = {name: SHOWN[name] for name in PRINTED if name in everything}
    table = Table(title=f"mu: each side, pi: {meta['reference']}")
    table.add_column("mu", no_wrap=True)
    for title in columns.values():
        table.add_column(title, justify="right")
    for row in against_reference(meta, everything).to_dict("records"):
        table.add_row(label(row["mu"], emulated[row["mu"]]), *(cell(name, row[name]) for name in columns))
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)
    console.print(f"Report: {folder / 'report.md'}\nFigures: {folder / 'figures'}", highlight=False, soft_wrap=True)
