"""The disk under a search: checkpoints that nobody will want, and room for what is to come."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from ballot.runs.folder import FINISHED, read_result

LATEST = 50  # runs that are measured, so that the thousandth costs what the first did
RESERVE = 512 * 2**20  # bytes that a machine needs for itself, logs and temporary files


def checkpoints_of(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, those of its folds too."""
    return sorted([*folder.glob("*.pt"), *folder.glob("fold*/*.pt")])


class Pruner:
    """Removes the checkpoints of all runs but the `keep` best by score, as they end.

    A run without a score is none of the best. Ballots, histories and results stay, so that every
    run still votes.
    """

    def __init__(self, keep: int, *, maximize: bool) -> None:
        self._keep, self._sign = keep, -1 if maximize else 1
        self._surpassed: set[Path] = set()  # and so for ever

    def prune(self, folders: Iterable[Path]) -> list[Path]:
        """Remove what runs have left of which `folders` are all; return what was removed.

        Only runs that have ended are looked at, and those that were surpassed before are not.
        """
        ended = []
        for folder in folders:
            result = {} if folder in self._surpassed else read_result(folder)
            if result.get("status") in FINISHED:
                score = result.get("score")
                ended.append((score is None, 0.0 if score is None else score, folder))
        ended.sort(key=lambda each: (each[0], self._sign * each[1], each[2].name))
        removed = []
        for _, _, folder in ended[self._keep :]:
            self._surpassed.add(folder)
            for path in checkpoints_of(folder):
                with contextlib.suppress(OSError):
                    path.unlink()
                    removed.append(path)
        return removed


def shortage(outputs: Path, folders: Sequence[Path], left: int | None) -> str:
    """Say that the disk will not hold the trials that are to come, or nothing where it will.

    `folders` are runs that have ended, by the size of whose last ones the others are judged; `left`
    is the number of trials to come, unknown where only time limits the search.
    """
    try:
        free = shutil.disk_usage(outputs).free
    except OSError:
        return ""
    each = median(sizes) if (sizes := [_size(folder) for folder in folders[-LATEST:]]) else 0
    needed = RESERVE + int(each * (left if left is not None else 10))
    if free >= needed:
        return ""
    room = max(0, free - RESERVE) // int(each) if each else 0
    more = f", and {left} are to come" if left is not None else ""
    return (
        f"{outputs}: {free / 2**30:.1f} GiB are free on its disk, room for about {room} more "
        f"trials of {each / 2**20:,.0f} MiB{more}; make room, or --keep_checkpoints 5 keeps "
        "those of the best alone"
    )


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return total
