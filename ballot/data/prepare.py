"""From the rows of a data set to what a trial trains on: decoded, checked, split, normalised."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ballot.data.audit import Copies, audit, check_table, keep_whole, refuse
from ballot.data.augment import Mixer, Recipe, mixing, output_size, pipeline
from ballot.data.batches import Data, Fold, Look, Subset
from ballot.data.exclusion import EXCLUDED, mark_excluded, without_excluded
from ballot.data.image_cache import Prepared, prepare
from ballot.data.images import FileSource, Geometry, Store
from ballot.data.same_data import pixel_digest
from ballot.data.soft_labels import JoinedStore, SoftLabels, read_soft_labels, soft_rows
from ballot.data.source import Source
from ballot.data.splits import natural_groups, split_folds, split_single
from ballot.data.tables import Problem, SoftRows, Table
from ballot.errors import UserError, suggest
from ballot.registry import Registry
from ballot.values import Values

if TYPE_CHECKING:
    from ballot.config.schema import Config


log = logging.getLogger(__name__)

STAGES = ("train", "val", "test")
SAMPLE = 1024  # images that the mean and the standard deviation are taken from


@dataclass(frozen=True)
class Examined:
    """A data set decoded, split and audited, with every problem found; nothing is refused yet."""

    table: Table
    size: int
    recipes: dict[str, Recipe]
    mixer: Mixer | None
    stores: dict[str, Store]
    pairs: list[tuple[np.ndarray, np.ndarray]]  # rows of training and validation, for each fold
    numbers: list[int]  # the number of each of those folds
    test: np.ndarray
    problems: list[Problem]
    pixels: str  # a hash of all images as decoded, and of soft labels
    soft: list[SoftRows | None]  # of each fold
    soft_lines: list[str]  # what soft labels are for each fold, for people

    @property
    def excluded(self) -> list[str]:
        """Ids of the rows that were left out by hand."""
        return [self.table.ids[row] for row in self.table.rows_of(EXCLUDED)]


def make_data(
    config: Config,
    table: Table,
    augmentations: Registry,
    *,
    input_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Data:
    """Prepare `table` as `config` says; raises `UserError` for what the audit calls an error."""
    found = examine(config, table, augmentations, input_size=input_size)
    notes = [*refuse(found.table.name, found.problems, strict=config.strict), cut_away(found)]
    for note in filter(None, notes):
        log.warning("%s: %s", found.table.name, note)
    for line in dict.fromkeys(found.soft_lines):
        log.info("%s: %s", found.table.name, line)
    mean, std = normalisation(config, found, mean, std)
    looks = looks_of(found, mean, std)
    test = make_subset(found, found.test, looks["test"], looks["test"])
    return Data(
        name=found.table.name,
        classes=found.table.classes,
        image_size=found.size,
        mean=mean,
        std=std,
        folds=make_folds(found, looks, weighted=config.sampler == "weighted"),
        test=test if len(test) else None,
        submission=found.table.submission,
        fingerprint=found.table.fingerprint(),
        pixels=found.pixels,
        weighting=config.class_weights,
        crop=found.table.crop,
        attributes=found.table.attributes,
        excluded=found.excluded,
    )


def make_folds(found: Examined, looks: Mapping[str, Look], *, weighted: bool) -> list[Fold]:
    """Make the training and validation subsets of each fold."""
    return [
        Fold(
            number,
            make_subset(found, train, looks["train"], looks["val"], weighted=weighted, soft=soft),
            make_subset(found, val, looks["val"], looks["val"]),
        )
        for number, (train, val), soft in zip(found.numbers, found.pairs, found.soft)
    ]


def cut_away(found: Examined) -> str:
    """Say so where the centre crop shows a model only a small part of the images."""
    source, crop = found.table.source, found.recipes["val"].geometry.crop
    if not crop or not isinstance(source, FileSource):
        return ""
    from PIL import Image

    shares = []
    for row in found.pairs[0][0][:16]:
        with contextlib.suppress(OSError), Image.open(source.root / source.paths[row]) as image:
            wide, high = image.size
            shares.append(min(crop, wide) * min(crop, high) / (wide * high))
    if not shares or np.median(shares) > 0.25:
        return ""
    return (
        f"the centre crop of {crop} pixels keeps {np.median(shares):.0%} of an image; "
        "--augmentation_args.crop 0 shows the square of its whole shorter side"
    )


def make_subset(
    found: Examined,
    rows: np.ndarray,
    train: Look,
    plain: Look,
    *,
    weighted: bool = False,
    soft: SoftRows | None = None,
) -> Subset:
    """Make the subset of `rows`, shown by `train` in training and by `plain` otherwise."""
    return Subset(found.table, rows, train=train, plain=plain, weighted=weighted, soft=soft)


def looks_of(found: Examined, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Look]:
    """How images of each stage become what a model sees."""
    looks = {}
    for stage, recipe in found.recipes.items():
        mixer = found.mixer if stage == "train" else None
        looks[stage] = Look(found.stores[stage], mean, std, recipe.steps, mixer, recipe.normalised)
    return looks


def examine(
    config: Config, table: Table, augmentations: Registry, *, input_size: int | None = None
) -> Examined:
    """Decode, split and audit `table`."""
    table = table.in_order()
    check_table(table)
    size = config.image_size or table.image_size or input_size or 224
    recipes, mixing_args = make_recipes(config, size, augmentations, crop=table.crop)
    mixer = mixing(len(table.classes), **mixing_args)
    geometries = list(dict.fromkeys(recipe.geometry for recipe in recipes.values()))
    label = str(Path(config.data_dir).expanduser().resolve()) if config.data_dir else table.name
    prepared = _prepare(config, table.source, label, geometries)
    first = prepared[recipes["val"].geometry]
    table, pairs, numbers, copies, doubt = chosen_folds(config, table, first)
    problems = audit(table, copies, first.bad, _sides(table, pairs, first.bad), config.folds)
    problems += [doubt] if doubt else []
    if config.all_rows:
        pairs = [(np.sort(np.concatenate(pair)), pair[1]) for pair in pairs]
    stores = {geometry: each.store for geometry, each in prepared.items()}
    soft, lines, said = _read_soft(config, table, first.digests, pairs, stores)
    return Examined(
        table,
        output_size(recipes["train"]),
        recipes,
        mixer,
        {stage: stores[recipe.geometry] for stage, recipe in recipes.items()},
        pairs,
        numbers,
        table.rows_of("test"),
        problems,
        pixel_digest(table.ids, first.digests) + said,
        soft,
        lines,
    )


def chosen_folds(
    config: Config, table: Table, prepared: Prepared
) -> tuple[Table, list[tuple[np.ndarray, np.ndarray]], list[int], Copies, Problem | None]:
    """Split the labelled rows that can be decoded, and leave out what is to be excluded.

    Returns the table, the wanted folds and their numbers, the copies, and a doubt about these.
    """
    pool = np.array([r for r in table.rows_of("train", "val") if r not in prepared.bad], np.int64)
    near = prepared.families if config.near_duplicates == "together" else ()
    copies, doubt = Copies(prepared.digests, near).believed(pool)
    pairs = make_split(config, table, pool, copies)
    if config.exclude is not None:
        table = mark_excluded(table, Path(config.exclude).expanduser())
        check_table(table)
        pairs = without_excluded(table, pairs)
    return table, *_wanted_folds(config, pairs), copies, doubt


def _wanted_folds(
    config: Config, pairs: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[int]]:
    """Return the folds that are trained, and their numbers."""
    if config.fold is None:
        return pairs, list(range(len(pairs)))
    if config.fold >= len(pairs):
        raise UserError(
            f"fold: is {config.fold}; of {len(pairs)} folds the last is "
            f"{len(pairs) - 1}, and folds is the number of folds"
        )
    return [pairs[config.fold]], [config.fold]


def _read_soft(
    config: Config,
    table: Table,
    digests: Sequence[bytes],
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    stores: dict[Geometry, Store],
) -> tuple[list[SoftRows | None], list[str], str]:
    """Return the soft labels of each fold, a line about each, and a mark of what they say."""
    if config.soft_labels is None:
        return [None] * len(pairs), [], ""
    labels = read_soft_labels(config.soft_labels, table)
    added = _add(config, labels, stores, len(table))
    made = [soft_rows(labels, table, digests, added, *pair) for pair in pairs]
    return [rows for rows, _ in made], [line for _, line in made], f"+{labels.digest}"


def _add(
    config: Config, labels: SoftLabels, stores: dict[Geometry, Store], start: int
) -> list[bytes]:
    """Join the images that only soft labels name to the stores; return their digests."""
    if not labels.ids:
        return []
    name = str(Path(config.soft_labels or "").expanduser().resolve())
    prepared = _prepare(config, labels.source, name, list(stores))
    for geometry, each in prepared.items():
        stores[geometry] = JoinedStore(stores[geometry], each.store, start)
    return prepared[next(iter(stores))].digests


def _prepare(
    config: Config, source: Source, label: str, geometries: Sequence[Geometry]
) -> dict[Geometry, Prepared]:
    """Decode images for each geometry; `label` names them in listings of the cache."""
    return {
        geometry: prepare(
            source,
            geometry,
            label=label,
            cache=config.cache,
            limit_gib=config.cache_limit,
            workers=config.workers,
        )
        for geometry in geometries
    }


def make_recipes(
    config: Config, size: int, augmentations: Registry, *, crop: int = 0
) -> tuple[dict[str, Recipe], dict[str, float]]:
    """Return the recipe of each stage, and the arguments that mix images.

    `crop` is what the data set's layout shows of an image, where the configuration does not say.
    """
    args = dict(config.augmentation_args)
    if (
        crop
        and "crop" in inspect.signature(augmentations.entry(config.augmentation).build).parameters
    ):
        args.setdefault("crop", crop)
    mixing_args = {key: args.pop(key) for key in ("mixup", "cutmix") if key in args}
    recipe = augmentations.create(config.augmentation, size, args=args)
    plain = Recipe(recipe.plain or recipe.geometry)
    recipes = {"train": recipe, "val": plain, "test": plain}
    if config.pipeline:
        recipes = _pipelines(config.pipeline, recipes, size)
    sizes = {stage: output_size(recipe) for stage, recipe in recipes.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"pipeline: makes images of different sizes: {sizes}")
    if config.image_size not in (None, sizes["train"]):
        raise UserError(
            f"image_size: is {config.image_size}, but the pipeline makes images of "
            f"{sizes['train']}; leave one of them out"
        )
    return recipes, mixing_args


def _pipelines(spec: Values, recipes: dict[str, Recipe], size: int) -> dict[str, Recipe]:
    """Put the pipelines of `spec` in the place of the augmentation's recipes."""
    known = (*STAGES, "decode")
    for key in spec:
        if key not in known:
            raise UserError(f"pipeline: unknown stage {key!r}{suggest(key, known)}")
    decode = spec.get("decode")
    if decode is not None and (not isinstance(decode, int) or not 4 <= decode <= 4096):
        raise UserError(f"pipeline: decode is {decode!r}; it is the side of a square in pixels")
    own = {s: pipeline(spec[s], f"pipeline.{s}", size, decode) for s in STAGES if s in spec}
    made = dict(recipes, **own)
    if "train" in own and "val" not in own:
        # Shown whole, as the training images are before chance cuts a part of them out.
        out = output_size(own["train"])
        whole = own["train"].geometry
        made["val"] = Recipe(whole if whole.size == out else Geometry(out))
    if "test" not in own:
        made["test"] = made["val"]
    if made["train"].normalised != made["val"].normalised:
        # The same Normalize has to follow wherever the model looks.
        raise UserError(
            "pipeline: Normalize stands in some stages only; name it in train, val "
            "and test, or in none (null stands for --mean and --std)"
        )
    return made


def make_split(
    config: Config, table: Table, pool: np.ndarray, copies: Copies
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split the rows `pool` into pairs of training and validation rows, one for each fold."""
    given = np.array([table.splits[row] == "val" for row in pool])
    if config.folds == 1 and given.any():
        return [(pool[~given], pool[given])]
    if given.any():
        log.info("%s: its own validation rows join the %d folds", table.name, config.folds)
    labels = table.labels[pool]
    groups = natural_groups(len(pool), *keep_whole(table, pool, copies))
    by_group = table.groups is not None
    seed = config.seed if config.split_seed is None else config.split_seed
    if config.folds > 1:
        pairs = split_folds(labels, groups, config.folds, seed, by_group=by_group)
    else:
        amount = config.val_rows or config.val_ratio
        pairs = [split_single(labels, groups, amount, seed, by_group=by_group)]
    for train, val in pairs:
        if not len(train) or not len(val):
            raise UserError(
                f"{table.name}: {len(pool)} rows are too few to hold some out; "
                "change val_ratio, val_rows or folds"
            )
    return [(pool[train], pool[val]) for train, val in pairs]


def _sides(
    table: Table, pairs: list[tuple[np.ndarray, np.ndarray]], bad: Mapping[int, str]
) -> list[str]:
    """The side of each row, for the audit; of all folds the one that holds it out."""
    sides = [split if split == "test" else "" for split in table.splits]
    for number, (train, val) in enumerate(pairs):
        for row in train if len(pairs) == 1 else ():
            sides[row] = "train"
        for row in val:
            sides[row] = "val" if len(pairs) == 1 else f"fold{number}"
    return ["" if row in bad else side for row, side in enumerate(sides)]


def normalisation(
    config: Config,
    found: Examined,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation [3]: the configuration's, the weights', or else the data's."""
    mean, std = config.mean or mean, config.std or std
    if mean is None or std is None:
        rows = np.concatenate([found.pairs[0][0], found.pairs[0][1]])
        measured = measure_colours(found.stores["val"], np.sort(rows))
        mean, std = mean or measured[0], std or measured[1]
    return _three("mean", mean), _three("std", std)


def measure_colours(store: Store, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in 0..1, from rows spread evenly over `rows`."""
    picked = rows[np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.int64)]
    total, squares, count = torch.zeros(3), torch.zeros(3), 0
    total, squares = total.double(), squares.double()
    parts = [picked[k : k + 32] for k in range(0, len(picked), 32)]
    for images in store.stream(parts):
        scaled = images.double() / 255
        total += scaled.sum((0, 2, 3))
        squares += scaled.square().sum((0, 2, 3))
        count += scaled.numel() // 3
    mean = total / count
    # Images of one colour have no spread; a step of 1/255 keeps the division harmless.
    std = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())


def _three(name: str, values: Sequence[float]) -> tuple[float, ...]:
    if len(values) not in (1, 3):
        raise UserError(f"{name}: has {len(values)} values; it takes one, or one for each of 3")
    return tuple(float(v) for v in values) * (3 // len(values))
