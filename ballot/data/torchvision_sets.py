"""Data sets of torchvision by name, from what lies on disk."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import numpy as np

from ballot.data.images import ArraySource, ItemSource
from ballot.data.source import Source
from ballot.data.tables import Table
from ballot.errors import UserError
from ballot.values import Values

log = logging.getLogger(__name__)

SIDES = ("train", "val", "test")


def read_torchvision(kind: type, data_dir: Path | None, *, download: bool, args: Values) -> Table:
    """Read every side of the torchvision data set `kind` below `data_dir` (`data` by default)."""
    root = data_dir or Path("data")
    parts = {side: _open(kind, root, side, download, args) for side in SIDES}
    parts = {side: part for side, part in parts.items() if part is not None}
    if "train" not in parts:
        raise UserError(f"{kind.__name__}: has no training images to classify; choose another")
    ids, labels, splits = [], [], []
    for side, part in parts.items():
        found = _labels(kind, part)
        labels.append(found)
        ids += [f"{side}-{k:06d}" for k in range(len(found))]
        splits += [side] * len(found)
    joined = np.concatenate(labels)
    source, size = _source(kind, parts, root, args)
    return Table(
        name=kind.__name__,
        classes=_classes(parts["train"], joined),
        ids=ids,
        labels=joined,
        source=source,
        splits=splits,
        image_size=size,
        published=True,
    )


def _open(kind: type, root: Path, side: str, download: bool, args: Values) -> object:
    """Make one side, or None where the data set has no such side."""
    takes = inspect.signature(kind).parameters
    for key in args:
        if key not in takes or key in ("root", "train", "split", "transform", "download"):
            raise UserError(f"dataset_args: {kind.__name__} takes no argument {key!r}")
    given = dict(args)
    if "train" in takes:
        if side == "val":
            return None
        given["train"] = side == "train"
    elif "split" in takes:
        given["split"] = side
    elif side != "train":
        return None
    if "root" in takes:
        given["root"] = str(root)
    if "download" in takes:
        given["download"] = download
    try:
        return kind(**given)
    except ValueError as error:  # it names the splits that there are; val is often not one
        if side == "train":
            raise UserError(f"{kind.__name__}: {error}") from None
        return None
    except (RuntimeError, OSError, TypeError, ModuleNotFoundError) as error:
        hint = "" if download else "; --download fetches it"
        reason = str(error).split("You can use")[0].split("\n")[0].strip().rstrip(".")
        raise UserError(f"{kind.__name__}: is not in {root}: {reason}{hint}") from None


def _labels(kind: type, part: Any) -> np.ndarray:
    """Labels [N], without decoding an image where the data set keeps a list of them."""
    for name in ("targets", "labels", "_labels"):
        kept = getattr(part, name, None)
        if kept is not None and len(kept) == len(part):
            labels = np.asarray(kept)
            break
    else:
        labels = np.asarray([part[k][1] for k in range(len(part))])
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"{kind.__name__}: its answers are no classes; it cannot be learnt here")
    return labels.astype(np.int64)


def _classes(part: object, labels: np.ndarray) -> list[str]:
    count = int(labels.max()) + 1
    names = getattr(part, "classes", None) or []
    names = [" ".join(n) if isinstance(n, tuple) else str(n) for n in names]
    if len(names) < count or len(set(names)) < len(names):
        return [str(k) for k in range(count)]
    return names


def _source(kind: type, parts: Values, root: Path, args: Values) -> tuple[Source, int | None]:
    """Take the arrays that a small data set holds in memory, else ask for image after image."""
    arrays = [np.asarray(getattr(part, "data", ())) for part in parts.values()]
    shapes = {array.shape[1:] for array in arrays}
    whole = all(len(a) == len(p) and a.dtype == np.uint8 for a, p in zip(arrays, parts.values()))
    if whole and len(shapes) == 1:
        array = np.concatenate(arrays)
        if array.ndim == 4 and array.shape[1] == 3:  # SVHN and STL10 put the channels first
            array = array.transpose(0, 2, 3, 1)
        return ArraySource(array), max(32, *array.shape[1:3])
    ends = np.cumsum([len(part) for part in parts.values()])
    every = list(parts.values())

    def get(row: int) -> object:
        part = int(np.searchsorted(ends, row, side="right"))
        return every[part][row - (ends[part - 1] if part else 0)][0]

    label = f"{kind.__name__} in {root.resolve()} with {sorted(args.items())}"
    return ItemSource(get, label, np.arange(ends[-1])), None
