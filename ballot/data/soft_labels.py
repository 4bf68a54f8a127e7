"""Soft labels: probabilities of the classes, from a file, as targets of training images.

The file is a CSV with an id or a path in each row and one column per class, as `predict.py` writes
it. Validation rows keep their labels, and no copy of a validation image is trained on.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ballot.data.images import FileSource, Store
from ballot.data.layouts import PATHS, column, composed, read_csv
from ballot.data.tables import SoftRows, Table, first_few
from ballot.errors import UserError

SUM_WITHIN = 1e-3  # of 1: probabilities that were written with few digits


@dataclass(frozen=True)
class SoftLabels:
    """What a file says: of rows of the data set by their number, and of other images."""

    rows: Mapping[int, np.ndarray]  # float32 [C] each
    ids: list[str]  # of other images, as the file names them
    source: FileSource
    probs: np.ndarray  # float32 [len(ids), C]
    digest: str  # of all that the file says


class JoinedStore:
    """Two stores as one: numbers from `start` on are images of the second."""

    def __init__(self, first: Store, second: Store, start: int) -> None:
        self.size = first.size
        self._first, self._second, self._start = first, second, start

    def stream(self, batches: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        later = [rows >= self._start for rows in batches]
        own = self._first.stream([rows[~there] for rows, there in zip(batches, later)])
        added = self._second.stream([rows[t] - self._start for rows, t in zip(batches, later)])
        for there, ones, others in zip(later, own, added):
            images = torch.empty((len(there), *ones.shape[1:]), dtype=ones.dtype)
            where = torch.from_numpy(there)
            images[~where], images[where] = ones, others
            yield images


def read_soft_labels(where: str, table: Table) -> SoftLabels:
    """Read a CSV of soft labels for the classes of `table`.

    A name is an id of the data set, or else a path, which starts at the CSV. Raises `UserError`
    for what is neither, for missing classes and for numbers that are no probabilities.
    """
    path = Path(where).expanduser()
    if not path.is_file():
        raise UserError(f"soft_labels: {where} is not there; give a CSV of ids and probabilities")
    columns, lines = read_csv(path)
    lines = [{composed(name): value for name, value in line.items()} for line in lines]
    columns = [composed(name) for name in columns]
    missing = [name for name in table.classes if name not in columns]
    if missing:
        raise UserError(
            f"{path}: has no column for {first_few(missing)}; it takes an id or a path, and one "
            "column of probabilities per class"
        )
    other = [name for name in columns if name not in table.classes]
    image = column(path, other, "path", None, PATHS)
    name = column(path, other, "id", None, ("id",)) or image
    if name is None:
        raise UserError(f"{path}: has no column of names; expected id or path")
    names = [line[name] for line in lines]
    probs = _probabilities(path, names, [[line[k] for k in table.classes] for line in lines])
    places = [line[image or name] for line in lines]
    rows = _rows_of(table, path, names, places)
    own = {row: probs[k] for k, row in enumerate(rows) if row is not None}
    rest = [k for k, row in enumerate(rows) if row is None]
    source = FileSource(path.parent.resolve(), [places[k] for k in rest])
    lost = [places[k] for k in rest if not (source.root / places[k]).is_file()]
    if lost:
        raise UserError(
            f"{path}: {len(lost)} names are neither ids of {table.name} nor images that are "
            f"there: {first_few(lost)}; paths start at the CSV"
        )
    digest = hashlib.sha256("\0".join(names).encode() + probs.tobytes()).hexdigest()[:16]
    return SoftLabels(own, [names[k] for k in rest], source, probs[rest], digest)


def _probabilities(path: Path, names: Sequence[str], values: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the numbers as float32 [N, C] whose rows sum to 1; each name has one row."""
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise UserError(f"{path}: {len(twice)} images stand there twice: {first_few(twice)}")
    try:
        probs = np.array(values, dtype=np.float64)
    except ValueError as error:
        raise UserError(f"{path}: {error}; columns of classes hold probabilities") from None
    sums = probs.sum(axis=1)
    fine = np.isfinite(probs).all(axis=1) & (probs >= 0).all(axis=1)
    fine &= np.abs(sums - 1) <= SUM_WITHIN
    if not fine.all():
        bad = int(np.flatnonzero(~fine)[0])
        raise UserError(
            f"{path}: {np.count_nonzero(~fine)} rows are no probabilities, as {names[bad]}, whose "
            f"numbers sum to {sums[bad]:.4g}; they are from 0 to 1 and sum to 1"
        )
    return (probs / sums[:, None]).astype(np.float32)


def _rows_of(
    table: Table, path: Path, names: Sequence[str], places: Sequence[str]
) -> list[int | None]:
    """Return the row of the data set that each name stands for, by its id or by its path."""
    by_id = {name: row for row, name in enumerate(table.ids)}
    by_path: dict[str, int] = {}
    if isinstance(table.source, FileSource) and any(name not in by_id for name in names):
        root = table.source.root
        by_path = {_whole(root, file): row for row, file in enumerate(table.source.paths)}
    folder = path.parent.resolve()
    return [
        by_id.get(name, by_path.get(_whole(folder, place))) for name, place in zip(names, places)
    ]


def _whole(folder: Path, path: str) -> str:
    return os.path.normpath(os.path.join(folder, path))  # noqa: PTH118


def soft_rows(
    soft: SoftLabels,
    table: Table,
    digests: Sequence[bytes],
    added: Sequence[bytes],
    train: np.ndarray,
    val: np.ndarray,
) -> tuple[SoftRows, str]:
    """Return what soft labels are for one split, and a line that says so.

    `digests` are those of the images of `table`, `added` those of the other images. Left out are
    copies of validation images, images of their groups, copies of training images, and what cannot
    be decoded.
    """
    training = set(train.tolist())
    held = set(val.tolist()) - training
    targets = {row: probs for row, probs in soft.rows.items() if row in training}
    tested = [row for row in soft.rows if table.splits[row] == "test"]
    rows = [*tested, *range(len(table), len(table) + len(soft.ids))]
    ids = [*(table.ids[row] for row in tested), *soft.ids]
    probs = np.stack([*(soft.rows[row] for row in tested), *soft.probs]) if rows else soft.probs
    pixels = [*(digests[row] for row in tested), *added]
    reasons = _reasons(table, digests, training, held, rows, pixels)
    kept = [place for place, reason in enumerate(reasons) if not reason]
    line = f"soft labels: {len(kept):,} images added to the training rows"
    if targets:
        line += f", {len(targets):,} training rows have soft targets"
    if hard := sum(row in held for row in soft.rows):
        line += f"; {hard:,} validation rows keep their labels and are not trained on"
    left = Counter(filter(None, reasons))
    if left:
        line += "; left out: " + ", ".join(f"{n} that {reason}" for reason, n in left.items())
    numbers = np.array([rows[k] for k in kept], dtype=np.int64)
    return SoftRows(targets, numbers, [ids[k] for k in kept], probs[kept]), line


def _reasons(
    table: Table,
    digests: Sequence[bytes],
    training: set[int],
    held: set[int],
    rows: Sequence[int],
    pixels: Sequence[bytes],
) -> list[str]:
    """Say why each of the images `rows` is left out; nothing where it can be trained on."""
    groups = table.groups or [""] * len(table)
    closed = {groups[row] for row in held} - {""}
    seen = {digests[row]: "are training images" for row in training}
    seen |= {digests[row]: "are in validation" for row in held}
    seen = seen if table.audited else {}
    reasons = []
    for row, digest in zip(rows, pixels, strict=True):
        reason = "cannot be decoded" if not digest else seen.get(digest, "")
        if not reason and row < len(table) and groups[row] in closed:
            reason = "are of a group in validation"
        if table.audited:
            seen.setdefault(digest, "are there twice")
        reasons.append(reason)
    return reasons
