"""What can happen to a file on a disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], None]


def cut_in_half(path: Path) -> None:
    """As after a crash of the machine."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def empty(path: Path) -> None:
    """As on a filesystem that had only made the entry."""
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    """In the middle, so that a number or a name changes and the file may still look right."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove(path: Path) -> None:
    """As by a hand that slipped."""
    path.unlink()


def drop_a_line(path: Path) -> None:
    """The second."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1] + lines[2:]))


def cut_the_last_line(path: Path) -> None:
    """As a process leaves it that is killed while it writes."""
    path.write_bytes(path.read_bytes()[:-9])


DAMAGES: list[Damage] = [cut_in_half, empty, flip_a_bit, remove]
