"""The sha256 of every file in a folder, so that a folder cut short or changed is noticed and not used."""

from __future__ import annotations

import hashlib
from pathlib import Path


def describe_files(directory: Path) -> dict[str, str]:
    """Name -> sha256 of every file in the folder."""
    return {path.name: file_hash(path) for path in sorted(directory.iterdir()) if path.is_file()}


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(directory: Path, files: dict[str, str]) -> str | None:
    """What is wrong with the files that `describe_files` described, or None."""
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if file_hash(path) != expected:
            return f"{name} is damaged"
    return None
