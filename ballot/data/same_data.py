"""The data that a run was begun with: it goes on with the same classes, rows, pixels and split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ballot.data.tables import first_few
from ballot.errors import UserError
from ballot.runs.files import read_rows
from ballot.runs.folder import read_result

Row = Mapping[str, str]  # of split.csv: id, label, split, group


def pixel_digest(ids: Iterable[str], digests: Iterable[bytes]) -> str:
    """Hash the decoded pixels of the images by their ids; those that nobody can decode are out.

    Sizes and times of files play no role, so that data may be copied or saved anew.
    """
    whole = hashlib.sha256()
    for name, digest in zip(ids, digests, strict=True):
        if digest:
            whole.update(name.encode("utf-8", "surrogateescape") + b"\0" + digest)
    return whole.hexdigest()[:16]


def check_same_data(folder: Path, classes: Sequence[str], rows: Sequence[Row], pixels: str) -> None:
    """Refuse to go on with the run in `folder` on other data than it was begun with.

    A folder where no run has begun yet takes any.
    """
    result, before = read_result(folder), read_rows(folder / "split.csv")
    difference = (
        (_other_classes(result["classes"], classes) if "classes" in result else "")
        or (_other_rows(before, rows) if before else "")
        or (_other_pixels(result["data_pixels"], pixels) if "data_pixels" in result else "")
        or (_other_sides(before, rows) if before else "")
    )
    if difference:
        raise UserError(
            f"resume: the data are not those that {folder} was begun with: {difference}; "
            "restore them, or start a new run"
        )


def _other_classes(before: Sequence[str], now: Sequence[str]) -> str:
    if list(before) == list(now):
        return ""
    gone = [repr(name) for name in before if name not in now]
    new = [repr(name) for name in now if name not in before]
    if not gone and not new:
        return "the classes stand in another order"
    return "the classes differ" + _listed(gone, new)


def _other_rows(before: Sequence[Row], now: Sequence[Row]) -> str:
    old, new = ({row["id"]: row for row in rows} for rows in (before, now))
    gone = [name for name in old if name not in new]
    added = [name for name in new if name not in old]
    if gone or added:
        return "the rows differ" + _listed(gone, added)
    for key in ("label", "group"):
        other = [name for name in old if old[name][key] != new[name][key]]
        if other:
            first = other[0]
            return (
                f"the rows have another {key}, as {first}: "
                f"{old[first][key]!r} before, {new[first][key]!r} now"
            )
    return ""


def _other_pixels(before: str, now: str) -> str:
    if before == now:
        return ""
    if before.partition("+")[0] == now.partition("+")[0]:  # behind it the hash of soft labels
        return "the soft labels are others"
    return "the images have other pixels under the same names"


def _other_sides(before: Sequence[Row], now: Sequence[Row]) -> str:
    old, new = ({row["id"]: row["split"] for row in rows} for rows in (before, now))
    moved = [name for name in old if old[name] != new[name]]
    return f"rows stand on another side of the split: {first_few(moved)}" if moved else ""


def _listed(gone: Sequence[str], new: Sequence[str]) -> str:
    words = []
    if gone:
        words.append(f"{first_few(gone)} missing")
    if new:
        words.append(f"{first_few(new)} added")
    return f" ({', '.join(words)})"
