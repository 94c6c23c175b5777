"""Imports go down the floors only, and the light commands load no heavy library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "drpo_bench"

# Floor of each module or package; a module imports from its own floor or below.
FLOORS = {
    "errors": 0, "task_configs": 0, "loss_configs": 0, "precision_configs": 0, "config": 0, "records": 0,
    "process": 0, "same_run": 0, "manifest": 0, "console": 0, "shipped": 0,
    "correction_configs": 0, "loss_presets": 0, "rollout_configs": 0,
    "types": 1, "ops": 1, "random_state": 1,
    "advantages": 2, "losses": 2, "packed": 2, "batching": 2, "metrics": 2, "tasks": 2, "collapse": 2,
    "architectures": 3, "limits": 3, "precision": 3, "precision_fp8": 3, "precision_experts": 3,
    "qwen3": 3, "models": 3, "model_check": 3, "head": 3,
    "text": 3, "rollout": 3, "scoring": 3, "routing": 3, "evaluate": 3,
    "warmstart": 3, "optim": 3,
    "environment": 3, "verify": 3, "tracking": 3,
    "update": 4, "collect": 4, "checkpoint": 4, "trainer": 4, "bench": 4, "doctor": 4,
    "recorder": 4, "wiring": 4, "mismatch": 4,
    "sweep": 5, "reproduce": 5, "cli": 6, "analysis": 5, "integrations": 5,
}  # fmt: skip
NO_TORCH = (
    *("errors", "task_configs", "loss_configs", "correction_configs", "loss_presets", "precision_configs", "config"),
    *("records", "process", "same_run", "manifest", "shipped", "console", "tasks", "analysis", "rollout_configs"),
)


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def top(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """First component below the package of everything that the file imports from it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("drpo_bench."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "drpo_bench":
            names |= {alias.name for alias in node.names} - {"__version__"}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    above = {name for name in imported(path) if FLOORS[name] > FLOORS[top(path)]}
    assert not above


def test_training_and_analysis_meet_in_files_only():
    for path in modules():
        if top(path) == "analysis":
            assert imported(path) <= {"analysis", "config", "records", "errors", *NO_TORCH}
        elif top(path) not in ("cli", "sweep"):
            assert "analysis" not in imported(path)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["run", "quickstart", "--dry-run"]], ids=lambda a: " ".join(a)
)
def test_light_commands_load_no_heavy_library(arguments, tmp_path):
    code = (
        "import sys; from drpo_bench import cli\n"
        f"sys.argv = ['drpo-bench', *{arguments!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'pandas', 'matplotlib', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    assert not list(tmp_path.iterdir())
