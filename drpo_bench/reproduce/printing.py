"""The verdict on a replay, for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from drpo_bench.records import plain
from drpo_bench.reproduce.verdict import WORST, Verdict

HEADLINE = {
    "identical": ("green", "identical bit for bit"),
    "within tolerances": ("yellow", "not the same bits, but within tolerances: the environment is another one"),
    "different": ("red", "NOT reproduced"),
}


def print_verdict(verdict: Verdict, console: Console) -> None:
    """The verdict first; then what differs, and by how much."""
    colour, words = HEADLINE[verdict.result]
    console.print(Text.assemble(f"{verdict.recorded.config.run_id}: ", (words, f"bold {colour}")))
    for line in summary(verdict):
        console.print(Text(line))
    if verdict.comparison.differences:
        console.print(worst_table(verdict))
        if verdict.excuses:
            console.print(tolerance_table(verdict))


def summary(verdict: Verdict) -> Iterator[str]:
    """What was compared, and everything that is not as it was."""
    recorded, replay, found = verdict.recorded, verdict.replay, verdict.comparison
    fewest, most = found.metrics
    metrics = f"{fewest} to {most}" if fewest < most else f"{most}"
    rest = "" if verdict.steps == recorded.last_step else f" (of {recorded.last_step} steps recorded)"
    yield f"{found.records} records{rest}, {metrics} metrics each, {found.values:,} values" + endings(verdict)
    if replay.failure:
        yield f"The replay stopped: {replay.failure}"
    if not verdict.same_start:
        how = "its own, trained anew" if replay.warmstart_from == "training" else "another"
        yield (
            f"The warm start is {how}: sha256 {recorded.warmstart_sha256} then, {replay.warmstart_sha256} now; "
            "the run's own was not found in the warmstarts folder of its results"
        )
    if recorded.was_altered:
        yield f"{recorded.run_dir.metrics} was changed after the run had ended: its sha256 is not that of status.json"
    if found.differences:
        first = found.first()
        others = f", and {len(first) - 1} others there" if len(first) > 1 else ""
        yield (
            f"{len(found.differences):,} values differ, first at step {first[0].step}: {first[0].metric} "
            f"{shown(first[0].then)} then, {shown(first[0].now)} now{others}"
        )
    for change in verdict.changes:
        weight = "" if change.may_change_numbers else " (which should change no number)"
        yield f"env.json: {change.field}: {change.then} then, {change.now} now{weight}"
    for excuse in verdict.excuses:
        if not any(excuse.startswith(f"{change.field}:") for change in verdict.changes):
            yield f"No bits are promised: {excuse}"


def endings(verdict: Verdict) -> str:
    """How state and weights compare, in a few words."""
    text = ""
    if verdict.outcome is not None:
        then, now = (
            " ".join(
                [str(o["state"]), *(f"at {o['collapse_step']} ({o['reason']})" for _ in [0] if "collapse_step" in o)]
            )
            for o in verdict.outcome
        )
        text += f"; {then} both times" if verdict.outcome[0] == verdict.outcome[1] else f"; {then} then, {now} now"
    for step, same in verdict.weights.items():
        text += f"; weights at step {step} {'identical' if same else 'differ'}"
    return text


def worst_table(verdict: Verdict) -> Table:
    """The metrics that differ most."""
    table = Table(title="Largest differences", title_justify="left")
    for header, justify in (("metric", "left"), ("step", "right"), ("then", "right"), ("now", "right")):
        table.add_column(header, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("relative", justify="right")
    for difference in verdict.comparison.worst(WORST):
        relative = f"{difference.relative:.2g}"
        table.add_row(difference.metric, str(difference.step), shown(difference.then), shown(difference.now), relative)
    return table


def tolerance_table(verdict: Verdict) -> Table:
    """What is judged: where each metric came closest to its tolerance, or beyond it."""
    table = Table(title="Tolerances (at the step that comes closest)", title_justify="left")
    table.add_column("metric")
    for header in ("records", "step", "then", "now", "difference", "allowed"):
        table.add_column(header, justify="right")
    table.add_column("verdict")
    for j in verdict.judgements:
        words = Text("within", "green") if j.outside == 0 else Text(f"{j.outside} outside", "red")
        numbers = [f"{v:.3g}" if v is not None else "none" for v in (j.then, j.now, j.difference, j.allowed)]
        table.add_row(j.metric, str(j.records), str(j.step), *numbers, words)
    return table


def shown(value: object) -> str:
    """A value to its last bit."""
    if value is None:
        return "missing"
    return str(plain(value)) if isinstance(value, float) else str(value)
