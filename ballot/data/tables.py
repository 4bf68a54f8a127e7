"""What a layout says about a data set: its rows, labels, groups and where the images are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ballot.data.attributes import Attribute
from ballot.data.source import Source, is_image
from ballot.walking import walk

UNKNOWN = -1  # the label of a test row whose truth nobody told


@dataclass(frozen=True)
class Submission:
    """The form of the answer: two columns, and what is written for class k."""

    columns: tuple[str, str]
    answers: list[str]


@dataclass(frozen=True)
class Problem:
    """Something about the data that a person should know before training."""

    text: str
    rows: tuple[str, ...] = ()
    fatal: bool = False

    def __str__(self) -> str:
        return self.text + (f": {first_few(self.rows)}" if self.rows else "")


@dataclass(frozen=True)
class Table:
    """The rows of a data set as its layout tells them, before anything is decoded or split.

    `splits` holds "train", "val" or "test" for each row; `groups` what must not be parted.
    `published` marks benchmarks whose split is not ours to judge, `audited` is off where
    there is nothing to find.
    """

    name: str
    classes: list[str]
    ids: list[str]
    labels: np.ndarray  # int64 [N], UNKNOWN where nobody told
    source: Source
    splits: list[str]
    groups: list[str] | None = None
    submission_columns: tuple[str, str] = ("id", "label")
    answers: list[str] | None = None
    image_size: int | None = None
    crop: int = 0  # pixels of the centre to keep, where a layout has a usual crop of its own
    problems: list[Problem] = field(default_factory=list)
    layout: str = ""
    published: bool = False
    audited: bool = True
    attributes: tuple[Attribute, ...] = ()  # of which the classes are made, where there are any

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def submission(self) -> Submission:
        return Submission(self.submission_columns, self.answers or self.classes)

    def label(self, row: int) -> str:
        """Name the class of a row; nothing where nobody told."""
        return self.classes[self.labels[row]] if self.labels[row] != UNKNOWN else ""

    def take(self, rows: Sequence[int] | np.ndarray) -> Table:
        """Return the table of `rows` alone, in that order."""
        rows = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            ids=[self.ids[r] for r in rows],
            labels=self.labels[rows],
            source=self.source.take(rows),
            splits=[self.splits[r] for r in rows],
            groups=None if self.groups is None else [self.groups[r] for r in rows],
        )

    def rows_of(self, *splits: str) -> np.ndarray:
        """Numbers of the rows that stand in any of `splits`, in the table's order."""
        return np.array([r for r, s in enumerate(self.splits) if s in splits], dtype=np.int64)

    def in_order(self) -> Table:
        """Sort labelled rows by id, so that no split depends on the order of files on disk.

        Test rows keep the order of the data: the submission has to come in it.
        """
        known = sorted(self.rows_of("train", "val"), key=lambda r: self.ids[r])
        return self.take(np.concatenate([np.array(known, np.int64), self.rows_of("test")]))

    def fingerprint(self) -> str:
        """Hash of what the data are: ids, labels, classes, splits and sizes of the images."""
        digest = hashlib.sha256()
        for part in (self.classes, self.ids, self.splits, self.groups or [], self.source.sizes()):
            digest.update("\0".join(map(str, part)).encode() + b"\1")
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class SoftRows:
    """What soft labels are for one split: other targets of training rows, and further rows."""

    targets: Mapping[int, np.ndarray]  # by the number of the row
    rows: np.ndarray  # numbers [M] of the added images in the store
    ids: list[str]
    probs: np.ndarray  # float32 [M, C]


def first_few(names: Iterable[str], count: int = 5) -> str:
    """Join the first names, and say how many there are beyond them."""
    names = list(names)
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + rest


def list_images(folder: Path) -> list[str]:
    """Paths below `folder` of every image in it, sorted; hidden folders are passed over.

    Texts and not `Path`s: a trial lists all of its images, and those cost 20 times as much.
    """
    found: list[str] = []
    for where, folders, files in walk(folder):
        folders[:] = [f for f in folders if not f.startswith((".", "__MACOSX"))]
        below = os.path.relpath(where, folder).replace(os.sep, "/")
        prefix = "" if below == "." else below + "/"
        found += [prefix + name for name in files if is_image(name)]
    return sorted(found)


def subfolders(folder: Path) -> list[Path]:
    """Folders right below `folder` that hold an image somewhere, by name."""
    below = [f for f in sorted(folder.iterdir()) if f.is_dir() and not f.name.startswith(".")]
    return [f for f in below if has_image(f)]


def has_image(folder: Path) -> bool:
    """Tell whether there is an image anywhere below `folder`, without walking all of it."""
    return any(is_image(name) for _, _, files in walk(folder) for name in files)
