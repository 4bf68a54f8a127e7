"""How search.py and the driver of a search speak: files in the search's folder, each whole.

driver.lock     held as long as the driver lives         state.json   how it stands
control/*.json  what search.py wants, in their order     news.txt     what is to be shown
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ballot.runs.files import json_or_empty, write_json
from ballot.values import Json

LOCK, STATE, WISHES, NEWS = "driver.lock", "state.json", "control", "news.txt"
BEAT_S = 2.0


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Hold the search as its driver; whether no other one does."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield True
    finally:
        os.close(descriptor)


def driver_of(folder: Path) -> int | None:
    """Return the process id of the driver that lives; None where there is none."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        said = os.pread(descriptor, 20, 0).decode()
        return int(said) if said.isdigit() else 0
    finally:
        os.close(descriptor)


class Board:
    """Where the driver writes how it stands: when that changes, and as a sign of life."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATE
        self._before = float(json_or_empty(self._path).get("seconds") or 0.0)
        self._began, self._written, self._last = time.monotonic(), 0.0, ""

    def write(self, state: str, **facts: object) -> None:
        """Write down how the search stands."""
        now = time.monotonic()
        if state == self._last and now - self._written < BEAT_S:
            return
        self._last, self._written = state, now
        seconds = round(self._before + now - self._began, 1)
        said = {"state": state, "errors": [], "at": time.time(), "seconds": seconds, **facts}
        write_json(self._path, said)


def state_of(folder: Path) -> Json:
    """Return what the driver wrote last."""
    return json_or_empty(folder / STATE)


def ask(folder: Path, do: str, **facts: object) -> None:
    """Want something of the driver."""
    place = folder / WISHES
    place.mkdir(exist_ok=True)
    write_json(place / f"{time.time_ns():020}.json", {"do": do, **facts})


def take(folder: Path) -> list[Json]:
    """Return what is wanted, each thing once."""
    wishes = []
    for path in sorted((folder / WISHES).glob("[0-9]*.json")):
        wishes.append(json_or_empty(path))
        path.unlink()
    return wishes


def say(folder: Path, line: str) -> None:
    """Let search.py show a line."""
    with (folder / NEWS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def news_after(folder: Path, place: int) -> tuple[list[str], int]:
    """Return the lines from a place of the file on, and the next place."""
    try:
        with (folder / NEWS).open("rb") as file:
            file.seek(place)
            text = file.read()
    except FileNotFoundError:
        return [], place
    whole = text[: text.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], place + len(whole)
