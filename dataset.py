"""Data sets and augmentations by name; `load_data` is all a training script needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.batches import Data, Fold, Look, Subset
from harness.errors import UserError
from harness.images import ArraySource, Geometry, MemoryStore
from harness.registry import Registry
from harness.splits import natural_groups, split_folds, split_single
from harness.tables import Table

if TYPE_CHECKING:
    from harness.config import Config

DATASETS = Registry("dataset")
AUGMENTATIONS = Registry("augmentation")


def load_data(config: Config, *, input_size=None, mean=None, std=None) -> Data:
    """Load, split and prepare the data that `config` names."""
    name = "digits" if config.dataset == "auto" else config.dataset
    table = DATASETS.create(name, config.data_dir, args=config.dataset_args).in_order()
    size = config.image_size or table.image_size or input_size or 224
    store = MemoryStore(table.source, Geometry(size))
    pool = table.rows_of("train", "val")
    if mean is None:
        mean, std = (0.30, 0.30, 0.30), (0.36, 0.36, 0.36)
    look = Look(store, config.mean or mean, config.std or std)
    labels, groups = table.labels[pool], natural_groups(len(pool))
    if config.folds > 1:
        pairs = split_folds(labels, groups, config.folds, config.seed, by_group=False)
    else:
        pairs = [split_single(labels, groups, config.val_ratio, config.seed, by_group=False)]
    if config.fold is not None and config.fold >= len(pairs):
        raise UserError(f"fold: {config.fold} of {len(pairs)} folds; they count from 0")
    folds = [
        Fold(
            k,
            Subset(table, pool[train], train=look, plain=look),
            Subset(table, pool[val], train=look, plain=look),
        )
        for k, (train, val) in enumerate(pairs)
        if config.fold in (None, k)
    ]
    test = Subset(table, table.rows_of("test"), train=look, plain=look)
    return Data(
        table.name, table.classes, size, look.mean, look.std, folds, test if len(test) else None,
        table.submission, table.fingerprint(), config.class_weights,
    )  # fmt: skip


@DATASETS.register("digits")
def digits(data_dir: str | None) -> Table:
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
