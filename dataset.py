"""Data sets and augmentations by name; `load_data` is all that a training script needs.

python dataset.py DIR                    what a folder is: layout, classes, sizes, problems
python dataset.py DIR --out sheet.png    and a contact sheet of augmented samples
python dataset.py DIR --check_labels outputs   labels that are probably wrong, by the runs there
python dataset.py --clean_cache          list decoded images, remove stale ones
"""

from __future__ import annotations

import inspect
import itertools
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    from ballot.installed import require

    require("numpy", "torch", "torchvision")

import numpy as np

from ballot.data import augment
from ballot.data.attributes import Attribute, renumbered
from ballot.data.augment import Recipe, each
from ballot.data.batches import Data
from ballot.data.images import ArraySource, FileSource, Geometry
from ballot.data.layouts import (
    GROUPS,
    JOINT,
    LABELS,
    PATHS,
    SIDES,
    SPLITS,
    Values,
    column,
    composed,
    csv_files,
    encode,
    join_values,
    label_columns,
    read_csv,
    side_folders,
    sorted_classes,
)
from ballot.data.prepare import Examined, examine, make_data
from ballot.data.splits import split_single
from ballot.data.tables import Problem, Table, first_few, list_images, subfolders
from ballot.errors import UserError, suggest
from ballot.names import check_names
from ballot.registry import Registry
from ballot.runs.csv_files import DuplicateColumn
from ballot.scripts import script_main
from ballot.wording import plural

if TYPE_CHECKING:
    from ballot.config.command_line import Parser
    from ballot.config.schema import Config

DATASETS = Registry("dataset")
AUGMENTATIONS = Registry("augmentation")


def load_data(
    config: Config,
    *,
    input_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Data:
    """Load, split, check and prepare the data that `config` names.

    `input_size`, `mean` and `std` are the pretrained model's own, or None; the configuration's win.
    Raises `UserError` for data that cannot be trained on or a split that leaks.
    """
    table = find_table(config, input_size)
    return make_data(config, table, AUGMENTATIONS, input_size=input_size, mean=mean, std=std)


def find_table(config: Config, input_size: int | None = None) -> Table:
    """Read the rows of the data set that `config` names or that its folder shows."""
    where, name = config.data_dir, config.dataset
    if where is None and (name == "auto" or name.startswith("Mask")):
        where = os.environ.get("SM_CHANNEL_TRAIN")  # as the mask competition's machines set it
    if name == "auto":
        columns = (config.path_column, config.label_column, config.group_column)
        if config.train_dir is not None:
            name = "class_folders"
        elif where is None:
            name = "digits"
        elif any(columns) or config.split_column:
            name = "csv"
        else:
            name = recognise(Path(where))
    offered = {
        "train_dir": config.train_dir,
        "val_dir": config.val_dir,
        "test_dir": config.test_dir,
        "classification": config.classification,
        "path_column": config.path_column,
        "label_column": config.label_column,
        "group_column": config.group_column,
        "split_column": config.split_column,
        "download": config.download,
        "image_size": config.image_size or input_size or 224,
        "seed": config.seed if config.split_seed is None else config.split_seed,
    }
    takes = inspect.signature(DATASETS.entry(name).build).parameters
    given = {key: value for key, value in offered.items() if key in takes}
    folder = None if where is None else _existing(where)
    table = DATASETS.create(name, folder, args=config.dataset_args, **given)
    table = named(replace(table, layout=name), config.classes)
    check_names(folder or config.train_dir, [str(folder), *table.classes, *table.ids])
    return table


def named(table: Table, classes: Sequence[str]) -> Table:
    """Put the classes of `table` into the order of `classes`, or give them these names by number.

    The names of its own classes in another order renumber them; other names are given to them.
    """
    if not classes or tuple(classes) == tuple(table.classes):
        return table
    if len(classes) != len(table.classes) or len(set(classes)) < len(classes):
        raise UserError(
            f"classes: are {len(classes)} names ({first_few(classes)}), but {table.name} has "
            f"{len(table.classes)} classes ({first_few(table.classes)})"
        )
    labels, attributes = table.labels, table.attributes
    if set(classes) == set(table.classes):
        place = [list(classes).index(name) for name in table.classes]
        labels = np.where(labels < 0, labels, np.array(place)[labels])
        attributes = renumbered(attributes, place)
    return replace(table, classes=list(classes), labels=labels, attributes=attributes)


def _existing(where: str, key: str = "data_dir") -> Path:
    path = Path(where).expanduser()
    if not path.exists():
        raise UserError(f"{key}: {where} is not there")
    return path.resolve()


def recognise(where: Path) -> str:
    """Name the layout of a folder or CSV file: the one that is surest of it."""
    where = _existing(str(where))
    entries = [DATASETS.entry(name) for name in DATASETS.names(families=False)]
    rated = [(e.info["sure"](where), e.name) for e in entries if "sure" in e.info]
    best = max(rated, key=lambda pair: pair[0])
    if best[0] > 0:
        return best[1]
    if where.is_dir() and list_images(where):
        raise UserError(
            f"{where}: holds images, but neither class folders nor a CSV with paths and labels; "
            "put each class in a folder, or name the columns with --path_column and --label_column"
        )
    if where.is_file() or list(where.glob("*.csv")):
        read_csv(csv_files(where, None)[0][0])  # says why it is none
    raise UserError(
        f"{where}: there are no images in it; choose another data_dir (what a class of your own "
        "reads from other files becomes a data set in a file of --plugins)"
    )


# Data sets: a builder takes the folder (or None) and returns a Table. `sure` rates from 0 to 4
# whether a folder is of that layout. Options it names (classification, path_column, ...) are
# handed to it.


@DATASETS.register("digits")
def digits(data_dir: Path | None) -> Table:  # noqa: ARG001
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels; a fifth is always the test set."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    _, test = split_single(labels, np.arange(len(labels)), 0.2, 0, by_group=False)
    splits = np.full(len(labels), "train", dtype=object)
    splits[test] = "test"
    return Table(
        name="digits",
        classes=[str(k) for k in range(10)],
        ids=[f"digit-{k:04d}" for k in range(len(labels))],
        labels=labels,
        source=ArraySource((bunch.images * (255 / 16)).round().astype(np.uint8)),
        splits=splits.tolist(),
        image_size=32,
    )


MOST_DUMMIES = 10_000_000  # their ids alone take a gigabyte


@DATASETS.register("dummy")
def dummy(
    data_dir: Path | None,  # noqa: ARG001
    *,
    image_size: int,
    rows: int | None = None,
    num_classes: int = 10,
) -> Table:
    """Random tensors that cost nothing to read: what a model does without them is the ceiling.

    There are 1,024 rows, or four for each of many classes, unless `rows` says how many.
    """
    rows = max(1024, 4 * num_classes) if rows is None else rows
    if rows > MOST_DUMMIES:
        raise UserError(f"dataset_args: rows is {rows}; {MOST_DUMMIES:,} are the most")
    if rows < 4 * num_classes or num_classes < 2:
        raise UserError("dataset_args: dummy needs two classes, and four rows for each of them")
    rng = np.random.default_rng(0)
    held = min(rows, 256)  # more rows are the same images again: memory does not grow with them
    images = rng.integers(0, 256, (held, image_size, image_size, 3), dtype=np.uint8)
    return Table(
        name="dummy",
        classes=[str(k) for k in range(num_classes)],
        ids=[f"dummy-{k:06d}" for k in range(rows)],
        labels=np.arange(rows) % num_classes,
        source=ArraySource(images, np.arange(rows) % held),
        splits=["test" if k % 5 == 4 else "train" for k in rng.permutation(rows)],
        image_size=image_size,
        audited=False,
    )


PROFILE = re.compile(r"(?P<id>.+)_(?P<gender>male|female)_(?P<race>[^_]+)_(?P<age>\d+)$")
MASK_CROP = 350  # pixels of the centre, where the competition's photos have the face
ATTRIBUTES = {
    "mask": ("worn", "incorrect", "none"),
    "gender": ("male", "female"),
    "age": ("under30", "30to59", "60plus"),
}


def _profiles(where: Path) -> list[Path]:
    """Folders of persons, wherever in the competition's layout `where` is."""
    for folder in (where / "train" / "images", where / "images", where):
        if folder.is_dir():
            found = [f for f in sorted(folder.iterdir()) if PROFILE.fullmatch(f.name)]
            found = [f for f in found if f.is_dir() and not f.name.startswith("._")]
            if found:
                return found
    return []


@DATASETS.register("MaskSplitByProfileDataset", sure=lambda where: 4 * bool(_profiles(where)))
def mask_split_by_profile(data_dir: Path | None, *, classification: str = "multi") -> Table:
    """The mask competition's data; a person is either trained on or validated on."""
    return _mask_table("MaskSplitByProfileDataset", data_dir, classification, by_person=True)


@DATASETS.register("MaskBaseDataset")
def mask_base(data_dir: Path | None, *, classification: str = "multi") -> Table:
    """The mask competition's data by random rows: a person stands on both sides and flatters."""
    return _mask_table("MaskBaseDataset", data_dir, classification, by_person=False)


def _mask_table(name: str, where: Path | None, classification: str, *, by_person: bool) -> Table:
    if where is None or not (folders := _profiles(where)):
        raise UserError(
            f"data_dir: {where} has no folders named <id>_<gender>_<race>_<age>; "
            "give the competition's folder, which holds train/images"
        )
    root = folders[0].parent
    ids, labels, groups, problems = _mask_train(folders, classification)
    problems += _mask_listing(root, folders)
    paths = [str(root / name) for name in ids]
    splits = ["train"] * len(ids)
    test_ids, test_root = _mask_eval(root)
    ids, splits = ids + test_ids, splits + ["test"] * len(test_ids)
    paths += [str(test_root / name) for name in test_ids]
    joint = _mask_joint()
    classes = joint[0] if classification == "multi" else list(ATTRIBUTES[classification])
    return Table(
        name=name,
        classes=classes,
        ids=ids,
        labels=np.array(labels + [-1] * len(test_ids), dtype=np.int64),
        source=FileSource(where, paths),
        splits=splits,
        groups=[*groups, *[""] * len(test_ids)] if by_person else None,
        submission_columns=("ImageID", "ans"),
        crop=MASK_CROP,
        answers=[str(k) for k in range(len(classes))],
        problems=problems,
        attributes=joint[1] if classification == "multi" else (),
    )


def _mask_joint() -> tuple[list[str], tuple[Attribute, ...]]:
    """Return the 18 joint classes, all of which the competition asks for, and the attributes."""
    places = list(itertools.product(*(range(len(classes)) for classes in ATTRIBUTES.values())))
    names = ["_".join(values) for values in itertools.product(*ATTRIBUTES.values())]
    attributes = (
        Attribute(name, classes, tuple(place[k] for place in places))
        for k, (name, classes) in enumerate(ATTRIBUTES.items())
    )
    return names, tuple(attributes)


def _mask_train(
    folders: list[Path], classification: str
) -> tuple[list[str], list[int], list[str], list[Problem]]:
    """Ids, labels and persons of the training images: label = mask * 6 + gender * 3 + age."""
    ids, labels, groups, odd = [], [], [], []
    facts: dict[str, set[tuple[int, int]]] = {}
    for folder in folders:
        profile = PROFILE.fullmatch(folder.name)
        if profile is None:  # _profiles has chosen those that fit
            continue
        years = int(profile["age"])
        gender, age = int(profile["gender"] == "female"), int(years >= 30) + int(years >= 60)
        facts.setdefault(profile["id"], set()).add((gender, age))
        for file in list_images(folder):
            stem = Path(file).stem.lower()
            if stem not in ("incorrect_mask", "normal") and not re.fullmatch(r"mask\d*", stem):
                odd.append(f"{folder.name}/{file}")
                continue
            mask = {"incorrect_mask": 1, "normal": 2}.get(stem, 0)
            joint = {"mask": mask, "gender": gender, "age": age}
            ids.append(f"{folder.name}/{file}")
            labels.append(joint.get(classification, mask * 6 + gender * 3 + age))
            groups.append(profile["id"])
    problems = []
    torn = tuple(person for person, said in facts.items() if len(said) > 1)
    if torn and classification != "mask":
        text = f"{len(torn)} persons have folders that disagree about their gender or age"
        problems.append(Problem(text, torn))
    if odd:
        many = plural(len(odd), "image")
        text = f"left out: {many} named neither mask<N>, incorrect_mask nor normal"
        problems.append(Problem(text, tuple(odd)))
    return ids, labels, groups, problems


def _mask_listing(root: Path, folders: list[Path]) -> list[Problem]:
    """Compare the folders of persons with what train.csv lists, where there is one."""
    listing = next(
        (p for p in (root.parent / "train.csv", root / "train.csv") if p.is_file()), None
    )
    if listing is None:
        return []
    columns, rows = read_csv(listing)
    if "path" not in columns:
        return [Problem(f"{listing.name} has no column 'path' and was not compared")]
    listed, there = {row["path"] for row in rows}, {folder.name for folder in folders}
    problems = []
    if listed - there:
        text = f"{len(listed - there)} folders that {listing.name} lists are not there"
        problems.append(Problem(text, tuple(sorted(listed - there))))
    if there - listed:
        text = f"{len(there - listed)} folders are not listed in {listing.name}"
        problems.append(Problem(text, tuple(sorted(there - listed))))
    return problems


def _mask_eval(root: Path) -> tuple[list[str], Path]:
    """Image ids of eval/info.csv in their order and the folder of the images; none without it."""
    given = os.environ.get("SM_CHANNEL_EVAL")
    places = [root.parent.parent / "eval", root.parent / "eval", *([Path(given)] if given else [])]
    place = next((p for p in places if (p / "info.csv").is_file()), None)
    if place is None:
        return [], root
    columns, rows = read_csv(place / "info.csv")
    if "ImageID" not in columns:
        raise UserError(f"{place / 'info.csv'}: has no column 'ImageID'; it has {columns}")
    ids = [row["ImageID"] for row in rows]
    _check_there(place / "info.csv", [place / "images" / name for name in ids], ids)
    return ids, place / "images"


def _check_there(where: Path, paths: Iterable[Path], names: Iterable[str]) -> None:
    missing = [name for path, name in zip(paths, names) if not path.is_file()]
    if missing:
        raise UserError(
            f"{where}: {len(missing)} images that it lists are not there: {first_few(missing)}"
        )


def _are_class_folders(where: Path) -> int:
    if not where.is_dir():
        return 0
    sides = side_folders(where)
    if "train" in sides and subfolders(sides["train"]):
        return 3
    return int(bool(subfolders(where)))


@DATASETS.register("class_folders", sure=_are_class_folders)
def class_folders(
    data_dir: Path | None,
    *,
    train_dir: str | None = None,
    val_dir: str | None = None,
    test_dir: str | None = None,
) -> Table:
    """A folder for each class, below train/, val/ and test/ where there are such.

    Without them every folder is a class. `train_dir`, `val_dir` and `test_dir` may lie anywhere.
    A test folder whose images stand in no class folder is unlabelled.
    """
    sides, root = _sides_of(data_dir, {"train": train_dir, "val": val_dir, "test": test_dir})
    classes = _class_names(sides["train"])
    ids: list[str] = []
    paths: list[str] = []
    names: list[str] = []
    splits: list[str] = []
    loose: list[str] = []
    for side, folder in sides.items():
        # Of folders that lie apart the names may be alike; the sides are not.
        prefix = f"{side}/" if train_dir else "" if folder == root else folder.name + "/"
        for file, name in _named_images(folder, set(classes), side):
            if name is None:
                loose.append(prefix + file)
                continue
            ids.append(prefix + file)
            paths.append(f"{folder}/{file}" if train_dir else prefix + file)
            names.append(name)
            splits.append(side)
    text = f"left out: {plural(len(loose), 'image')} in no folder of a class"
    return Table(
        name=root.name,
        classes=classes,
        ids=ids,
        labels=encode(names, classes),
        source=FileSource(root, paths),
        splits=splits,
        problems=[Problem(text, tuple(loose))] if loose else [],
    )


def _class_names(train: Path) -> list[str]:
    classes = sorted({composed(folder.name) for folder in subfolders(train)})
    if not classes:
        raise UserError(f"{train}: there are no folders with images; one for each class is needed")
    return classes


def _named_images(folder: Path, classes: set[str], side: str) -> Iterator[tuple[str, str | None]]:
    """Yield images and their classes: "" in an unlabelled test folder, None in no class folder."""
    inside = {composed(below.name) for below in subfolders(folder)}
    labelled = side != "test" or bool(inside & classes)
    for file in list_images(folder):
        name = composed(file.partition("/")[0])
        if not labelled:
            yield file, ""
        else:  # a file right in the folder has another name
            yield file, name if name in classes else None


def _sides_of(data_dir: Path | None, apart: dict[str, str | None]) -> tuple[dict[str, Path], Path]:
    """Return the folder of each side, and the one that the paths of images begin at."""
    given = {side: where for side, where in apart.items() if where is not None}
    if "train" in given:
        sides = {side: _existing(where, f"{side}_dir") for side, where in given.items()}
        return sides, sides["train"]
    if given:
        raise UserError("train_dir: val_dir and test_dir go with it; name all, or data_dir alone")
    root = _needed(data_dir)
    sides = side_folders(root)
    if "train" not in sides or not subfolders(sides["train"]):
        sides = {"train": root}
    return sides, root


def _needed(data_dir: Path | None) -> Path:
    if data_dir is None:
        raise UserError("data_dir: this data set needs a folder; give --data_dir")
    return data_dir


def _is_csv(where: Path) -> int:
    try:
        file = csv_files(where, None)[0][0]
        columns, rows = read_csv(file)
    except DuplicateColumn as error:
        if {*PATHS} & error.columns and {*LABELS} & error.columns:  # no other file of the folder
            raise
        return 0
    except UserError:
        return 0
    path = column(file, columns, "path_column", None, PATHS)
    label = column(file, columns, "label_column", None, LABELS)
    if where.is_file():
        return 2
    return 2 * bool(path and label and any((where / row[path]).is_file() for row in rows[:20]))


@DATASETS.register("csv", sure=_is_csv)
def csv_table(
    data_dir: Path | None,
    *,
    path_column: str | None = None,
    label_column: Sequence[str] | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
    file: str | None = None,
) -> Table:
    """A CSV with a row an image: its path, its label, and optionally a group and a split.

    Paths are relative to the CSV. train.csv, val.csv and test.csv side by side belong together;
    test rows may lack a label. Several columns of labels are attributes of one joint class.
    """
    where = _needed(data_dir)
    rows: list[tuple[str, Values, str, str]] = []  # id, values of the label, group, split
    grouped = False
    files = csv_files(where, file)
    for path, side in files:
        columns, lines = read_csv(path)
        image = column(path, columns, "path_column", path_column, PATHS)
        label = label_columns(path, columns, label_column, needed=side != "test")
        if image is None or not (label or side == "test"):
            key = "path_column" if image is None else "label_column"
            raise UserError(f"{path}: which column is it? give --{key}, one of {columns}")
        group = column(path, columns, "group_column", group_column, GROUPS)
        split = _split_column(path, columns, lines, split_column, image)
        grouped |= group is not None
        for line in lines:
            values = tuple(composed(line[name]) for name in label)
            where_to = SIDES[line[split].lower()] if split else side
            rows.append((line[image], values, composed(line[group]) if group else "", where_to))
        if path == files[0][0]:
            titles, labels = (image, JOINT.join(label) or "label"), label
    root = files[0][0].parent
    return _csv_rows(files[0][0], root, rows, grouped, titles, labels)


def _split_column(
    path: Path, columns: list[str], lines: list[dict[str, str]], given: str | None, image: str
) -> str | None:
    """Find the column of the split; one that is only guessed has to know a side at least."""
    guesses = [column(path, columns, "split_column", None, [guess]) for guess in SPLITS]
    if given is not None:
        guesses = [column(path, columns, "split_column", given, ())]
    for name in filter(None, guesses):
        odd = [n for n, line in enumerate(lines) if line[name].lower() not in SIDES]
        if len(odd) == len(lines) and given is None:
            continue
        if odd:
            first = lines[odd[0]]
            what = f"row {odd[0] + 1} ({first[image]}) has {first[name]!r}"
            raise UserError(
                f"{path}: {name} names no side of the split in {len(odd)} of {len(lines)} rows: "
                f"{what}{suggest(first[name], SIDES)}"
            )
        return name
    return None


def _csv_rows(
    path: Path,
    root: Path,
    rows: Sequence[tuple[str, Values, str, str]],
    grouped: bool,
    titles: tuple[str, str],
    labels: Sequence[str],
) -> Table:
    ids, values, groups, splits = (list(part) for part in zip(*rows))
    attributes: tuple[Attribute, ...] = ()
    if len(labels) > 1:
        names, classes, attributes = join_values(path, labels, values)
    else:
        names = [row[0] if row else "" for row in values]
        classes = sorted_classes([name for name in names if name])
    empty = [i for i, name, split in zip(ids, names, splits) if not name and split != "test"]
    if empty:
        raise UserError(f"{path}: {len(empty)} training rows have no label: {first_few(empty)}")
    _check_there(path, [root / name for name in ids], ids)
    return Table(
        name=root.name,
        classes=classes,
        ids=ids,
        labels=encode(names, classes),
        source=FileSource(root, ids),
        splits=splits,
        groups=groups if grouped else None,
        submission_columns=titles,
        attributes=attributes,
    )


def _torchvision_names() -> list[str]:
    from torchvision import datasets

    return [name for name in datasets.__all__ if name not in ("DatasetFolder", "ImageFolder")]


@DATASETS.family("", _torchvision_names)
def torchvision_dataset(name: str) -> object:
    """Any classification data set of torchvision, by the name of its class."""
    from torchvision import datasets

    from ballot.data.torchvision_sets import read_torchvision
    from ballot.registry import Entry

    def build(data_dir: Path | None, *, download: bool = False, **args: object) -> Table:
        return read_torchvision(getattr(datasets, name), data_dir, download=download, args=args)

    return Entry(name, build)


# Augmentations: a builder takes the side of the images in pixels and returns a Recipe. Steps get
# whole batches; mixup and cutmix are arguments of all of them.

MAGNITUDE = 30  # torchvision divides the range of each operation into so many steps


def seen(size: int, crop: int) -> Geometry:
    """Show the centre `crop` pixels; with 0 the shorter side is resized, and its square shown."""
    return Geometry(size, crop) if crop else Geometry(size, edge=size)


@AUGMENTATIONS.register("BaseAugmentation")
def base_augmentation(size: int, *, crop: int = 0, flip: float = 0.0) -> Recipe:
    """Resize to the centre square, normalise; mirrored with probability `flip`."""
    return Recipe(seen(size, crop), (augment.flip(flip),) if flip else ())


@AUGMENTATIONS.register("AffineAugmentation")
def affine_augmentation(
    size: int,
    *,
    crop: int = 0,
    flip: float = 0.5,
    degrees: float = 15.0,
    translate: float = 0.1,
    scale: tuple[float, float] = (0.9, 1.1),
) -> Recipe:
    """Mirror, turn, shift and zoom."""
    steps = (augment.flip(flip), augment.affine(degrees, translate, scale))
    return Recipe(seen(size, crop), steps)


@AUGMENTATIONS.register("CropAugmentation")
def crop_augmentation(
    size: int,
    *,
    crop: int = 0,
    flip: float = 0.5,
    area: tuple[float, float] = (0.35, 1.0),
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
) -> Recipe:
    """A random part of each image, enlarged (RandomResizedCrop), mirrored, with other colours."""
    steps = [augment.flip(flip), augment.crop(area)]
    if brightness or contrast or saturation:
        steps.append(augment.jitter(brightness, contrast, saturation))
    return Recipe(seen(size, crop), tuple(steps))


@AUGMENTATIONS.register("GaussianAugmentation")
def gaussian_augmentation(
    size: int,
    *,
    crop: int = 0,
    flip: float = 0.5,
    std: float = 0.04,
    sigma: tuple[float, float] = (0.1, 1.0),
) -> Recipe:
    """Mirror, blur and add noise: cameras that are worse than the training set's."""
    return Recipe(seen(size, crop), (augment.flip(flip), augment.blur(sigma), augment.noise(std)))


@AUGMENTATIONS.register("CustomAugmentation")
def custom_augmentation(
    size: int,
    *,
    crop: int = 0,
    flip: float = 0.5,
    brightness: float = 0.2,
    contrast: float = 0.2,
    saturation: float = 0.2,
    std: float = 0.02,
    erase: float = 0.25,
) -> Recipe:
    """Mirror, change the light and the colours, add noise, cover a part."""
    steps = (
        augment.flip(flip),
        augment.jitter(brightness, contrast, saturation),
        augment.noise(std),
        augment.erase(erase),
    )
    return Recipe(seen(size, crop), steps)


@AUGMENTATIONS.register("RandAugment")
def rand_augment(
    size: int, *, crop: int = 0, flip: float = 0.5, num_ops: int = 2, magnitude: int = 9
) -> Recipe:
    """RandAugment (Cubuk et al., 2020), drawn anew for every image."""
    if not 0 <= magnitude <= MAGNITUDE:
        raise UserError(
            f"augmentation_args: magnitude is {magnitude}; it goes from 0 to {MAGNITUDE}"
        )
    args = {"num_ops": num_ops, "magnitude": magnitude}
    transform = augment.make_transform("RandAugment", args, "augmentation_args")
    return Recipe(seen(size, crop), (augment.flip(flip), each(transform)))


@AUGMENTATIONS.register("TrivialAugment")
def trivial_augment(size: int, *, crop: int = 0, flip: float = 0.5) -> Recipe:
    """TrivialAugment (Mueller and Hutter, 2021), drawn anew for every image."""
    transform = augment.make_transform("TrivialAugmentWide", None, "augmentation_args")
    return Recipe(seen(size, crop), (augment.flip(flip), each(transform)))


def check_labels(found: Examined, outputs: Path, out: Path) -> int:
    """Print and write the rows whose labels the runs in `outputs` doubt, with their pictures."""
    from ballot.data.preview import draw_rows
    from ballot.vote.suspects import find_suspects, judge, table_lines, write_suspects
    from ballot.wording import plural

    if not outputs.is_dir():
        raise UserError(f"check_labels: {outputs} is no folder; name that of the runs")
    if out.suffix == ".png":
        raise UserError(f"out: {out} is to be the list; name a CSV, the pictures stand beside it")
    table = found.table
    rows = {table.ids[row]: int(row) for row in table.rows_of("train", "val")}
    labels = {name: table.label(row) for name, row in rows.items()}
    judged = judge(sorted(run for run in outputs.iterdir() if run.is_dir()), labels)
    suspects = find_suspects(judged)
    print(
        f"judged    {len(judged.ids):,} of {len(rows):,} labelled rows, by "
        f"{plural(judged.runs, 'run')} that did not train on them"
    )
    if len(judged.ids) < len(rows):
        print("note      the others were never held out; --folds 5 of train.py holds out each")
    for note in judged.notes:
        print(f"note      {note}")
    print(f"suspects  {len(suspects)}")
    if suspects:
        print("\n".join(f"  {line}" for line in table_lines(suspects)))
        write_suspects(out, suspects)
        captions = [f"{each.label} > {each.suggested}" for each in suspects]
        sheet = out.with_suffix(".png")
        shown = draw_rows(found, [rows[each.id] for each in suspects], captions, sheet)
        print(f"written   {out}, and the first {shown} pictures: {sheet}")
        print(f"next      look at them; train.py --exclude {out} trains without those listed")
    return 0


def build_parser() -> Parser:
    """Make the command line."""
    from ballot.config import command_line

    parser = command_line.build_parser("dataset.py", "Describe a data set as a trial would see it.")
    parser.add_argument("dir", nargs="?", metavar="DIR", help="same as --data_dir")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="draw a contact sheet of augmented samples (PNG); with --check_labels: the list",
    )
    parser.add_argument(
        "--check_labels",
        metavar="OUTPUTS",
        help="list rows whose labels are probably wrong, by the validation rows of the runs in "
        "this folder, as a table, a CSV (default: suspects.csv) and a sheet of pictures beside it",
    )
    parser.add_argument(
        "--clean_cache",
        action="store_true",
        help="list the caches of decoded images and remove stale ones",
    )
    return parser


@script_main
def main(argv: list[str] | None = None) -> int:
    """Print what a folder of images is; draw samples; look after the cache."""
    import logging

    from ballot.config.command_line import parse_command_line
    from ballot.config.files import read_config_files
    from ballot.config.layers import merge
    from ballot.data.preview import clean_cache, describe, draw_sheet
    from ballot.registry import load_plugins
    from ballot.training.recipes import with_recipe

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    layer, known = parse_command_line(build_parser(), argv)
    if known.dir is not None:
        layer = replace(layer, values={"data_dir": known.dir, **layer.values})
    config, origin = merge(with_recipe([*read_config_files(known.config), layer])[0])
    if known.print_config:
        values = asdict(config)
        print("\n".join(f"{key} = {values[key]!r}  ({origin[key]})" for key in values))
        return 0
    if known.clean_cache:
        print(clean_cache(config.cache))
        return 0
    load_plugins(config.plugins)
    found = examine(config, find_table(config), AUGMENTATIONS)
    if known.check_labels:
        return check_labels(found, Path(known.check_labels), Path(known.out or "suspects.csv"))
    print(describe(found, config))
    if known.out:
        shown = draw_sheet(found, Path(known.out), config)
        print(f"samples   {known.out}: training with {shown}")
        if config.image_size is None and found.table.image_size is None:
            print("note      a network that was made for another size is shown images of that size")
    return 2 if any(p.fatal or config.strict for p in found.problems) else 0


if __name__ == "__main__":
    # A plugin imports `dataset`, and has to find the registries that this run looks into.
    sys.modules["dataset"] = sys.modules[__name__]
    sys.exit(main())
