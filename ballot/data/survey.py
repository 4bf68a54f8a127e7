"""What a folder of images is, at a glance: names and a few headers, read without torch."""

from __future__ import annotations

import contextlib
import mimetypes
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from ballot.data.layouts import (
    PATHS,
    SIDES,
    SPLITS,
    column,
    csv_files,
    label_columns,
    read_csv,
    side_folders,
)
from ballot.errors import UserError

if TYPE_CHECKING:
    from ballot.config.schema import Config


HEADERS = 48  # images whose size and colours are read
PERSON = re.compile(r".+_(male|female)_[^_]+_\d+$")  # a folder of the mask competition
MASK_CLASSES = {"multi": 18, "mask": 3, "gender": 2, "age": 3}
TINY = 40  # pixels


@dataclass(frozen=True)
class Survey:
    """Facts of a data set that a recipe asks for."""

    images: int  # labelled
    classes: int
    side: int  # pixels of the shorter side of the median image
    grey: bool
    uneven: float = 1.0  # images of the largest class for each of the smallest one

    @property
    def photos(self) -> bool:
        """Whether these are photos, and not small pictures in grey such as digits."""
        return not (self.grey and self.side <= TINY)


def survey(config: Config, base: Path) -> Survey | None:
    """Look at the images that `config` names, below `base`; None where there are none."""
    where = config.train_dir or config.data_dir
    if where is None and (config.dataset == "auto" or config.dataset.startswith("Mask")):
        where = os.environ.get("SM_CHANNEL_TRAIN")
    root = base / Path(where).expanduser() if where else None
    if root is None or not root.exists():
        return None
    try:
        labels, paths = labelled_images(root, config)
    except (UserError, OSError):  # told by whoever reads all of it
        return None
    if not paths:
        return None
    side, grey = _headers(paths)
    people = root.is_dir() and any(PERSON.fullmatch(name) for name in labels)
    if people:
        return Survey(len(paths), MASK_CLASSES.get(config.classification, 18), side, grey)
    uneven = max(labels.values()) / min(labels.values())
    return Survey(len(paths), len(labels), side, grey, uneven)


def labelled_images(root: Path, config: Config) -> tuple[Counter[str], list[Path]]:
    """Return the images of each class and the paths of the images, of no test row."""
    if config.train_dir is not None:
        return _by_folder([root])
    named = config.dataset == "csv" or any(
        (config.path_column, config.label_column, config.group_column, config.split_column)
    )
    sides = side_folders(root) if root.is_dir() else {}
    if not named and "train" in sides and any(_below(sides["train"])):
        folders = [folder for side, folder in sides.items() if side != "test"]
        return _by_folder(folders)
    with contextlib.suppress(UserError):
        if named or root.is_file() or config.dataset == "auto":
            labels, paths = _by_csv(root, config)
            if named or root.is_file() or any(path.is_file() for path in paths[:20]):
                return labels, paths
    return _by_folder([root])


def _by_folder(folders: Sequence[Path]) -> tuple[Counter[str], list[Path]]:
    labels: Counter[str] = Counter()
    paths = []
    for folder in folders:
        for name in _below(folder):
            first, slash, rest = name.partition("/")
            if first == "images" and "/" in rest:  # the mask competition's train/images/<person>
                first = rest.partition("/")[0]
            if slash:
                labels[first] += 1
                paths.append(folder / name)
    return labels, paths


def _below(folder: Path) -> Iterator[str]:
    """Yield the images below a folder, each by its path from there."""
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        prefix = os.path.relpath(where, folder).replace(os.sep, "/") + "/"
        prefix = "" if prefix == "./" else prefix
        for name in sorted(files):
            kind = mimetypes.guess_type(name, strict=False)[0] or ""
            if kind.startswith("image/") and not name.startswith("._"):
                yield prefix + name


def _by_csv(root: Path, config: Config) -> tuple[Counter[str], list[Path]]:
    labels: Counter[str] = Counter()
    paths = []
    for file, side in csv_files(root, config.dataset_args.get("file")):
        if side == "test":
            continue
        columns, rows = read_csv(file)
        path = column(file, columns, "path_column", config.path_column, PATHS)
        label = label_columns(file, columns, config.label_column)
        if path is None or not label:
            raise UserError(f"{file}: names no images and labels")
        split = column(file, columns, "split_column", config.split_column, SPLITS)
        for row in rows:
            of_test = split is not None and SIDES.get(row[split].lower()) == "test"
            if all(row[name] for name in label) and not of_test:
                labels[" ".join(row[name] for name in label)] += 1
                paths.append(file.parent / row[path])
    return labels, paths


def _headers(paths: Sequence[Path]) -> tuple[int, bool]:
    """Return the shorter side of the median image, and whether most have no colours."""
    from PIL import Image

    sides, grey = [], 0
    step = max(1, len(paths) // HEADERS)
    for path in paths[::step][:HEADERS]:
        with contextlib.suppress(OSError, ValueError), Image.open(path) as image:
            sides.append(min(image.size))
            grey += image.mode[0] in "1LI"
    return (round(median(sides)), 2 * grey > len(sides)) if sides else (0, False)


def check_folder(root: Path, config: Config) -> None:
    """Refuse a folder that is hardly meant so: one level too high, or a class of one image."""
    if not root.exists():
        raise UserError(f"data_dir: {root} is not there")
    if root.is_dir() and not side_folders(root):
        deeper = [folder for folder in sorted(root.iterdir()) if _holds_classes(folder)]
        if deeper and not any(_has_images(folder) for folder in root.iterdir() if folder.is_dir()):
            names = ", ".join(folder.name for folder in deeper[:3])
            raise UserError(
                f"{root}: holds data sets ({names}), not classes; name one, as in "
                f"--data_dir {deeper[0]}"
            )
    try:
        labels, _ = labelled_images(root, config)
    except (UserError, OSError):  # told by whoever reads all of it
        return
    single = [name for name, count in labels.items() if count == 1]
    if single and len(single) < len(labels) and not any(map(PERSON.fullmatch, labels)):
        raise UserError(
            f"{root}: class {single[0]!r} has one image, and validation needs another; "
            "add images, or take the class out"
        )


def _holds_classes(folder: Path) -> bool:
    """Whether a folder holds folders of images: two or more, or those of train and test."""
    if not folder.is_dir() or folder.name.startswith("."):
        return False
    inner = [each for each in folder.iterdir() if each.is_dir()]
    return sum(map(_has_images, inner)) > 1 or "train" in side_folders(folder)


def _has_images(folder: Path) -> bool:
    """Whether there are images in a folder itself."""
    kinds = (mimetypes.guess_type(f.name, strict=False)[0] or "" for f in folder.iterdir())
    return any(kind.startswith("image/") for kind in kinds)
