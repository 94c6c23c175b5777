"""The command line. Heavy imports stand inside the commands, so that `--help` needs no torch."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer

from drpo_bench.errors import UserError

app = typer.Typer(
    help="A reproducible experiment suite for the policy losses of LLM RL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: importing rich would take a third of its time
)
losses_app = typer.Typer(help="The registry of losses.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(losses_app, name="losses")

OutOption = Annotated[Path, typer.Option("--out", help="Results directory.")]
DEFAULT_OUT = Path("results")


# Exit codes of a disk that takes nothing: full, which time or a hand can mend; not ours to write.
DISK = {errno.ENOSPC: 1, errno.EDQUOT: 1, errno.EROFS: 2, errno.EACCES: 2}


def main() -> None:
    """Entry point: a user's mistake is a line on stderr and exit code 2, a full disk one and 1; never a traceback."""
    try:
        app()
    except UserError as error:
        typer.echo(f"drpo-bench: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK:
            raise
        typer.echo(f"drpo-bench: {error.filename or 'a file'}: cannot be used: {error.strerror}", err=True)
        sys.exit(DISK[error.errno])


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help="An experiment file, or the name of a shipped one.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a field: a.b=c.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Runs to keep: loss=drpo,precision=bf16.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; default: cores / threads, or GPUs; on a cluster all.")
    ] = None,
    executor: Annotated[str, typer.Option(help="local, ray or slurm.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster: HOST:PORT, auto or ray://HOST:PORT; default: a local one.")
    ] = None,
    gpus_per_run: Annotated[float | None, typer.Option(help="Ray: GPUs of a run on cuda, such as 0.25.")] = None,
    slurm: Annotated[
        list[str] | None, typer.Option(help="Slurm: partition=gpu, time=120 (minutes), cluster=local to try it out.")
    ] = None,
    out: OutOption = DEFAULT_OUT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    force: Annotated[bool, typer.Option(help="Also run what summary.csv already has a result of.")] = False,
    tracking: Annotated[bool, typer.Option(help="Log to MLflow.")] = True,
    retries: Annotated[int, typer.Option(min=0, help="How often a run that failed is tried again.")] = 1,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Take a folder over from a runner on a machine that is gone.")
    ] = False,
) -> None:
    """Run every unfinished run of an experiment's sweep, then draw its figures and report."""
    from drpo_bench.sweep.executors import ExecutorOptions
    from drpo_bench.sweep.plan import load_experiment
    from drpo_bench.sweep.session import print_plan, run_experiment
    from drpo_bench.tracking.store import store_uri

    plan = load_experiment(experiment, overrides or [], only or [])
    options = ExecutorOptions(executor, workers, retries, address, gpus_per_run, tuple(slurm or ()))
    if dry_run:
        print_plan(plan, out, options, force)
        return
    uri = store_uri(out) if tracking else None
    if not run_experiment(plan, out, options, force, uri, take_over):
        raise typer.Exit(1)


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(help="Experiment folders, results/<name>.")],
) -> None:
    """Regenerate summary.csv, curves.csv, the figures and report.md of experiments."""
    from drpo_bench.analysis.report import write_report

    for directory in directories:
        typer.echo(write_report(directory))


@app.command()
def compare(directories: Annotated[list[Path], typer.Argument(help="Experiment folders, results/<name>.")]) -> None:
    """Print the tables of several experiments below one another; writes nothing."""
    from rich.console import Console

    from drpo_bench.analysis.report import comparison_table

    Console().print(comparison_table(directories))


@app.command()
def reproduce(
    run_dir: Annotated[Path, typer.Argument(help="A run directory, results/<name>/runs/<run_id>.")],
    steps: Annotated[int | None, typer.Option(help="Replay the first batches only; default: all recorded.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep the replay's files in this new folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a recorded run again from its config.json and compare every metric bit for bit.

    Writes nothing into RUN_DIR. Where the environment differs, says what differs and compares within tolerances.
    Exit 1 if the numbers are not reproduced.
    """
    from drpo_bench.reproduce.run import reproduce

    if not reproduce(run_dir, steps, keep, as_json):
        raise typer.Exit(1)


@app.command()
def status(
    directory: Annotated[Path, typer.Argument(help="A results folder, an experiment folder, or one run directory.")],
    watch: Annotated[bool, typer.Option("--watch", help="Until all is over; a line a change in a pipe.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; with --watch an object a line.")] = False,
) -> None:
    """Every run's state, step, accuracy, reward, speed and time to go, from the files alone."""
    from drpo_bench.sweep.status import print_status

    print_status(directory, as_json, watch)


@app.command()
def sync(
    directories: Annotated[list[Path], typer.Argument(help="Experiment folders, results/<name>.")],
) -> None:
    """Send to MLflow what it has not received yet."""
    from drpo_bench.same_run import check_schema
    from drpo_bench.tracking import Sender
    from drpo_bench.tracking.store import check_store, shown, store_uri

    stores = {directory: store_uri(directory.absolute().parent) for directory in directories}
    for directory, uri in stores.items():
        if not (directory / "runs").is_dir():
            raise UserError(f"{directory}: no runs folder")
        check_schema(directory)
        check_store(uri)
    everything = True
    for directory, uri in stores.items():
        sender = Sender(directory, uri)
        everything &= sender.attempt(artifacts=True)
        typer.echo(f"{directory}: {sender.records} records sent to {shown(uri)}")
    if not everything:
        raise typer.Exit(1)


@app.command()
def ui(
    results: Annotated[Path, typer.Argument(metavar="[DIR]", help="Results directory.")] = DEFAULT_OUT,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve on.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to serve on; this machine alone by default.")] = "127.0.0.1",
) -> None:
    """Serve MLflow's page for the store in use, until Ctrl-C."""
    from drpo_bench.tracking.store import store_uri
    from drpo_bench.tracking.ui import serve

    is_experiment = not (results / "mlflow.db").exists() and (results / "runs").is_dir()
    serve(store_uri(results.absolute().parent if is_experiment else results), host, port)


@app.command()
def bench(
    peer: Annotated[str | None, typer.Option(help="trl, hf or vllm; without one, this machine's own figures.")] = None,
    part: Annotated[str, typer.Option(help="speed, startup, workers (minutes) or growth (a minute).")] = "speed",
    size: Annotated[str, typer.Option(help="nano, micro, mini or small.")] = "nano",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    precision: Annotated[str, typer.Option(help="A precision preset.")] = "fp32",
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each; medians are printed.")] = 5,
    peer_python: Annotated[Path | None, typer.Option(help="A Python that has TRL.")] = None,
    warmstarts: Annotated[Path, typer.Option(help="Cache of warm starts.")] = DEFAULT_OUT / "warmstarts",
    out: Annotated[Path, typer.Option("--out", help="Folder for growth's figure and CSV.")] = DEFAULT_OUT / "bench",
    against: Annotated[
        Path | None, typer.Option(help="JSON of an earlier bench: exit 1 if a ratio to the peer has fallen behind.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Speed of rollout and trainer as a share of the matmul rate, or against a peer that takes turns with us."""
    from drpo_bench.bench.report import Request
    from drpo_bench.bench.report import bench as run_bench

    request = Request(peer, part, size, threads, precision, repeats, peer_python, warmstarts, against)
    measured = run_bench(request, as_json)
    if "growth" in measured:
        from drpo_bench.analysis.growth import draw_growth

        draw_growth(**measured["growth"], out=out)
    if measured["fallen_behind"]:
        raise typer.Exit(1)


@app.command()
def mismatch(
    model: Annotated[str, typer.Argument(metavar="CHECKPOINT_OR_SIZE", help="A directory, or nano to small.")],
    architecture: Annotated[
        str | None, typer.Option(help="Of a size: qwen3 by default; its warm start is trained (minutes) unless cached.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Held-out problems; the checkpoint's own, or arithmetic.")] = None,
    sides: Annotated[str | None, typer.Option(help="Of trainer, torch, vllm: trainer:fp32,vllm:fp8_kv.")] = None,
    sampler: Annotated[str, typer.Option(help="The engine that samples the sequences, once.")] = "torch:fp32",
    problems: Annotated[int, typer.Option(min=1, help="Problems.")] = 64,
    samples: Annotated[int, typer.Option(min=1, help="Responses a problem.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="A longer response is truncated.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the warm start and the sampling.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default: results/mismatch/<model>.")] = None,
    warmstarts: Annotated[Path, typer.Option(help="Cache of warm starts.")] = DEFAULT_OUT / "warmstarts",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What the same weights say of the same tokens, every pair of (engine, precision): CSV, figures, report.

    Every side scores twice; exit 1 unless a side against itself has exactly no mismatch.
    """
    from drpo_bench.analysis.mismatch import print_summary, write_report
    from drpo_bench.mismatch.measure import Request, measure
    from drpo_bench.mismatch.pairs import ControlFailed

    options = (model, architecture, task, sides, sampler, problems, samples, max_new_tokens, seed, threads, device)
    try:
        folder = measure(Request(*options, out=out, warmstarts=warmstarts))
    except ControlFailed as error:
        typer.echo(f"drpo-bench: {error}", err=True)
        raise typer.Exit(1) from None
    write_report(folder)
    print_summary(folder, as_json)


@app.command()
def doctor(
    out: OutOption = DEFAULT_OUT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Hardware, real and emulated precisions, engines, versions, what to install. Exit 1 if the default is broken."""
    from drpo_bench.doctor import report
    from drpo_bench.tracking.store import store_uri

    if not report.doctor(out, store_uri(out), as_json):
        raise typer.Exit(1)


@losses_app.command("list")
def losses_list(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Every loss with its gradient, parameters and defaults."""
    from drpo_bench.losses.listing import print_losses

    print_losses(as_json)


@losses_app.command("show")
def losses_show(loss_id: Annotated[str, typer.Argument(metavar="ID", help="A loss, as in `losses list`.")]) -> None:
    """One loss: formula, gradient, what it does beyond its boundary, source, parameters, presets."""
    from drpo_bench.losses.listing import print_loss

    print_loss(loss_id)


@losses_app.command("plot")
def losses_plot(
    out: Annotated[Path, typer.Option("--out", help="Folder for the figures and tables.")] = DEFAULT_OUT / "losses",
) -> None:
    """Gradient weight of every loss against the ratio and against pi - mu, and the table of weights; no training."""
    from drpo_bench.analysis.weights import draw_weights
    from drpo_bench.losses.curves import weight_rows
    from drpo_bench.losses.listing import registry_rows

    for path in draw_weights(weight_rows(), registry_rows(), out):
        typer.echo(path)


@losses_app.command("verify")
def losses_verify(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check every loss: closed-form gradients, limits, invariances, extreme inputs. Exit 1 if a check does not hold."""
    from drpo_bench.verify.run import verify

    if not verify(as_json):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
