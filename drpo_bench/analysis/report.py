"""The report of an experiment: csv files, figures and report.md, from its folder alone; a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from drpo_bench.analysis.captions import captions, emulation_text, figure_notes, sample_text, single
from drpo_bench.analysis.cells import current, done, label_runs
from drpo_bench.analysis.figures import final_bars, learning_curves
from drpo_bench.analysis.layout import LINES_A_PANEL, save_figure
from drpo_bench.analysis.load import Results, read_results, update_results
from drpo_bench.analysis.many import curves_by_loss, final_rows, stability_rows
from drpo_bench.analysis.notes import notes
from drpo_bench.analysis.rows import brief_rows, markdown_table, result_rows
from drpo_bench.analysis.stability import SETTINGS_A_PAGE, stability_panel
from drpo_bench.analysis.tables import curve_table, final_table, stability_table
from drpo_bench.records import DONE, write_text
from drpo_bench.shipped import shipped_experiments

REPORT, FIGURES = "report.md", "figures"
DEFAULT_OUT = "results"  # of `drpo-bench run`
EXPLANATION = """
Accuracy is sampled at temperature 1 on fixed held-out problems. Final: mean of the last 20% of a run's evaluations;
then the mean over seeds with a 95% percentile bootstrap interval; IQM: interquartile mean; worst: the worst seed.
Collapsed: runs of n, with an exact (Clopper-Pearson) 95% interval, and the batches at which they did; \\* where a loss
or gradient was not finite: later evaluations count as 0. Mismatch k3: before the first update, in the median over
runs. Unfinished runs enter no number but step 0 and mismatch."""


def write_report(experiment_dir: Path) -> Path:
    """Update the csv files, draw the figures, write report.md; returns its path. Raises UserError without results."""
    results = update_results(experiment_dir)
    summary = label_runs(current(results.summary))
    figures = draw_figures(summary, results.curves, experiment_dir / FIGURES) if len(done(summary)) else {}
    path = experiment_dir / REPORT
    write_text(path, "\n".join(report_lines(results, summary, figures)) + "\n")
    return path


def draw_figures(summary: pd.DataFrame, curves: pd.DataFrame, directory: Path) -> dict[str, list[str]]:
    """Draw every figure; the names of its files (a page each) by the figure's name."""
    small_print, drawn = figure_notes(summary), dict[str, list[str]]()
    curve, final = curve_table(summary, curves), final_table(summary)
    stability = stability_table(summary, curves)
    many = len(final.drop_duplicates(["loss", "loss_params"])) > LINES_A_PANEL
    figures: list[tuple[str, pd.DataFrame, Callable[..., Figure], int | None]] = [
        ("learning_curves", curve, curves_by_loss if many else learning_curves, 1 if many else None),
        ("final_accuracy", final, final_rows if many else final_bars, 3 if many else None),
        ("stability", stability, stability_rows if many else stability_panel, 1 if many else SETTINGS_A_PAGE),
    ]
    for figure, table, draw, settings_a_page in figures:
        for number, page in enumerate(pages(table, settings_a_page), start=1):
            name = figure if number == 1 else f"{figure}_{number}"
            save_figure(draw(page, small_print[figure]), page, directory, name)
            drawn.setdefault(figure, []).append(name)
    return drawn


def pages(table: pd.DataFrame, settings_a_page: int | None) -> Iterator[pd.DataFrame]:
    """The rows of a table in pages of at most so many settings; all on one where there is no limit."""
    settings = list(dict.fromkeys(table["setting_label"])) if len(table) else []
    size = settings_a_page or max(1, len(settings))
    for start in range(0, len(settings), size):
        yield table[table["setting_label"].isin(settings[start : start + size])]


def report_lines(results: Results, summary: pd.DataFrame, figures: dict[str, list[str]]) -> Iterator[str]:
    """The lines of report.md."""
    yield f"# {results.directory.resolve().name}"
    if results.question:
        yield f"\n> {results.question}"
    states = summary["state"].value_counts().sort_index()
    yield f"\n{len(summary)} runs: {', '.join(f'{count} {state}' for state, count in states.items())}."
    if figures:
        one = " One seed says nothing about the spread: no claim can stand on it." if single(summary) else ""
        yield f"Numbers: {sample_text(summary)}.{one} {emulation_text(summary).capitalize()}."
    else:
        yield "No run has a result yet, so there are no figures."
    yield "\n## Results\n"
    yield from markdown_table(result_rows(final_table(summary)))
    yield EXPLANATION
    yield from unfinished_section(summary)
    if figures:
        yield "\n## Figures"
        texts = captions(summary, results.curves)
        for name, pages in figures.items():
            yield ""
            for page in pages:
                yield f"![{name}]({FIGURES}/{page}.png)"
            files = ", ".join(f"[{p}.{kind}]({FIGURES}/{p}.{kind})" for p in pages for kind in ("pdf", "csv"))
            yield f"\n{texts[name]} ({files})"
    yield "\n## Notes\n"
    yield from (f"- {note}" for note in notes(results, summary))
    yield from provenance_section(results, summary)


def unfinished_section(summary: pd.DataFrame) -> Iterator[str]:
    """Every run without a result, by name."""
    rest = summary[~summary["state"].isin(DONE)]
    if len(rest):
        yield "\n### Unfinished runs\n"
        yield from markdown_table(
            [
                {"run": r["run_id"], "state": r["state"], "step": f"{r['step']}/{r['steps']}", "reason": r["reason"]}
                for r in rest.to_dict("records")
            ]
        )


def provenance_section(results: Results, summary: pd.DataFrame) -> Iterator[str]:
    """Where the numbers come from and how to get them again."""
    directory = results.directory.resolve()
    out, shipped = directory.parent.name, Path(results.file).stem in shipped_experiments()
    target = (Path(results.file).stem if shipped else results.file) or directory.name
    option = "" if out == DEFAULT_OUT else f" --out {out}"
    yield "\n## How to reproduce\n"
    yield f"```\ndrpo-bench run {target}{option}\ndrpo-bench report {out}/{directory.name}\n```\n"
    if results.file:
        where = "comes with drpo-bench" if shipped else f"is expected beside the folder {out}"
        yield f"- Experiment file: {results.file}, which {where}; the resolved config of each run is its config.json."
    yield (
        f"- One run again from its config.json, compared bit for bit: `drpo-bench reproduce {out}/{directory.name}"
        "/runs/<run_id>`."
    )
    for column in ("commit", "machine", "threads", "versions"):
        values = summary[column].astype("string").fillna("").replace({"": "not recorded"}).value_counts().sort_index()
        yield f"- {column.capitalize()}: " + "; ".join(f"{value} ({count} runs)" for value, count in values.items())
    seconds = summary["seconds"].dropna()
    if len(seconds):
        yield (
            f"- Wall time: {seconds.sum() / 60:.1f} minutes in sum over the runs, of which several may have run at "
            f"a time; {seconds.min():.0f} to {seconds.max():.0f} s a run."
        )


def comparison_table(experiment_dirs: Sequence[Path]) -> Table:
    """One row a setting, loss and experiment, for the end of a run and for `compare`. Writes nothing."""
    names = [directory.resolve().name for directory in experiment_dirs]
    if len(set(names)) < len(names):
        names = [str(directory) for directory in experiment_dirs]
    parts = [current(read_results(directory).summary) for directory in experiment_dirs]
    labelled = [part.assign(source=name) for part, name in zip(parts, names, strict=True)]
    together = label_runs(pd.concat(labelled, ignore_index=True))
    rows: list[dict[str, str]] = []
    for _, runs in together.groupby("setting", sort=False):
        own = [
            row | {"experiment": str(name)}
            for name, part in runs.groupby("source", sort=False)
            for row in brief_rows(final_table(part))
        ]
        rows += sorted(own, key=lambda row: list(runs["loss_label"]).index(row["loss"]))
    table = terminal_table(rows, {"experiment"} if len(names) == 1 else set())
    table.title, table.caption = " and ".join(names), emulation_text(together)
    return table


def terminal_table(rows: Sequence[dict[str, str]], hidden: set[str]) -> Table:
    """A rich table without its empty columns; each setting is a heading over its losses."""
    hidden = hidden | {"setting"}
    headers = [header for header in rows[0] if header not in hidden and any(row[header] for row in rows)]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    for header in headers:
        words, label = header in ("loss", "experiment", "remarks"), max(len(row[header]) for row in rows)
        least = {"loss": label + 2, "experiment": label, "remarks": 13}.get(header)  # a heading may wrap
        justify: Literal["left", "right"] = "left" if words else "right"
        table.add_column(header, justify=justify, no_wrap=not words, min_width=least, overflow="fold")
    heading = ""
    for row in rows:
        if row["setting"] != heading:
            heading = row["setting"]
            table.add_section()
            table.add_row(Text(heading, style="bold"))
        table.add_row(f"  {escape(row['loss'])}", *(Text(row[header]) for header in headers[1:]))
    return table
