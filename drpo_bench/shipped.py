"""The experiments that come with the package."""

from __future__ import annotations

from pathlib import Path


def shipped_folders() -> list[Path]:
    """Where they lie: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return [folder for folder in (package / "experiments", package.parent / "experiments") if folder.is_dir()]


def shipped_experiments() -> dict[str, Path]:
    """Their files by name."""
    return {path.stem: path for folder in shipped_folders() for path in sorted(folder.glob("*.toml"))}
