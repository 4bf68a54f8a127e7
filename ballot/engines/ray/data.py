"""The data of a search on their way to a node that lacks them: once a node, a piece at a time.

The receiver reads a piece when a node asks for it, so that nothing holds more than that in memory.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ballot.errors import UserError
from ballot.machines.sent import facts
from ballot.values import Values
from ballot.wording import size

PIECE = 8 << 20
PREFIX = "ballot-data-"
SPARE = 200e6  # bytes of disk that the data leave to the trials, at least
Place = tuple[int, int]  # a file's place in the listing, and a byte of it
Part = tuple[str, int, bytes]  # a file's name, the first byte, and what is there


class Source:
    """The folder of the data at home."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files = facts.listing(str(folder))
        self._names = sorted(self.files)

    def piece(self, place: Place) -> tuple[list[Part], Place]:
        """Return files, the last one perhaps in part, and where the next piece begins."""
        (number, offset), room = place, PIECE
        parts: list[Part] = []
        while number < len(self._names) and room > 0:
            name = self._names[number]
            wanted = min(room, self.files[name] - offset)
            with (self._folder / name).open("rb") as file:
                file.seek(offset)
                content = file.read(wanted)
            if len(content) < wanted:
                raise UserError(f"{self._folder / name}: has changed while it was copied")
            parts.append((name, offset, content))
            room, offset = room - wanted, offset + wanted
            if offset >= self.files[name]:
                number, offset = number + 1, 0
        return parts, (number, offset)


class Home(Protocol):
    """The way to the receiver, as far as data come by it."""

    def data_files(self) -> dict[str, int]:
        """Return the bytes of each file."""

    def data_piece(self, place: Place) -> tuple[list[Part], Place]:
        """Return a piece, and where the next one begins."""

    def report(self, said: Values) -> bool:
        """Send words for the driver."""


def place_of(search: str) -> Path:
    """Return what a search has on this node beside its trials."""
    return Path(tempfile.gettempdir(), f"{PREFIX}{search}")


def data_folder(home: Home, search: str, named: str) -> Path:
    """Return where the data are on this node: where the command says, or in a copy.

    The first trial on a node looks and copies; others wait for it.
    """
    place = place_of(search)
    place.mkdir(mode=0o700, exist_ok=True)
    if place.is_symlink() or place.stat().st_uid != os.getuid():
        raise UserError(f"{place}: belongs to another user; remove it")
    ready = place / "ready"
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if ready.exists():
            return Path(ready.read_text(encoding="utf-8"))
        folder, files = Path(facts.expand(named)), home.data_files()
        if not folder.is_dir() or facts.listing(str(folder)) != files:
            folder = place / "data"
            _copy(home, files, folder)
        ready.write_text(str(folder), encoding="utf-8")
    return folder


def _copy(home: Home, files: Mapping[str, int], folder: Path) -> None:
    total, free = sum(files.values()), shutil.disk_usage(folder.parent).free
    node = os.uname().nodename
    if total > free - SPARE:
        what = f"{size(total)} of data do not fit in {folder.parent}, where {size(free)} are free"
        raise UserError(f"{node}: {what}; set TMPDIR for ray start to a larger disk")
    home.report({"copies": node, "bytes": total})
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was ended
    place: Place = (0, 0)
    while place[0] < len(files):
        parts, place = home.data_piece(place)
        for name, offset, content in parts:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                file.write(content)


def remove_data(search: str) -> None:
    """Remove what a search has on this node beside its trials."""
    shutil.rmtree(place_of(search), ignore_errors=True)
