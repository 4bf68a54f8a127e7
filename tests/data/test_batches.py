"""Batches: every row, in an order and with chance that the seed and the epoch decide alone."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from ballot.data.augment import flip, mixing
from ballot.data.batches import Data, Fold, Look, Subset, cut
from ballot.data.images import ArraySource, Geometry, MemoryStore
from ballot.data.tables import Submission, Table

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def subset(count=21, labels=None, weighted=False, steps=(), mixer=None, groups=None):
    labels = np.arange(count) % 3 if labels is None else np.asarray(labels)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    table = Table(
        "test",
        ["a", "b", "c"],
        [f"r{k}" for k in range(count)],
        labels,
        ArraySource(pixels),
        ["train"] * count,
        groups,
    )
    store = MemoryStore(table.source, Geometry(8))
    plain = Look(store, MEAN, STD)
    train = Look(store, MEAN, STD, steps, mixer)
    return Subset(table, np.arange(count), train=train, plain=plain, weighted=weighted), pixels


def epoch_of(part, size=4, **options):
    batches = [(x.clone(), y.clone()) for x, y in part.batches(size, **options)]
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_plain_rows_come_once_in_order_and_normalised():
    part, pixels = subset()
    images, targets = epoch_of(part)
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)
    expected = expected / torch.tensor(STD).view(3, 1, 1)
    assert torch.allclose(images, expected, atol=1e-5)
    assert targets.tolist() == part.labels.tolist()
    assert images.dtype == torch.float32 and targets.dtype == torch.int64


def test_training_rows_come_once_in_another_order_each_epoch():
    part, _ = subset()
    orders = [epoch_of(part, train=True, seed=1, epoch=e)[0].sum((1, 2, 3)) for e in (0, 1)]
    assert not torch.equal(*orders)
    assert torch.allclose(orders[0].sort().values, orders[1].sort().values)


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_chance_derives_from_seed_and_epoch_alone(mixup):
    options = {"steps": (flip(),), "mixer": mixing(3, mixup=mixup)}
    whole, _ = subset(**options)
    for epoch in range(3):
        last = epoch_of(whole, train=True, seed=5, epoch=epoch)
    torch.rand(3), np.random.rand(3)
    resumed = epoch_of(subset(**options)[0], train=True, seed=5, epoch=2)
    assert torch.equal(last[0], resumed[0]) and torch.equal(last[1], resumed[1])
    other = epoch_of(whole, train=True, seed=6, epoch=2)
    assert not torch.equal(last[0], other[0])


@pytest.mark.parametrize(
    ("rows", "size", "join", "sizes"),
    [
        (9, 4, True, [4, 5]),
        (9, 4, False, [4, 4, 1]),
        (10, 4, True, [4, 4, 2]),
        (1, 4, True, [1]),
        (3, 1, True, [1, 1, 1]),
        (0, 4, False, []),
    ],
)
def test_no_batch_of_one_image_is_trained_on(rows, size, join, sizes):
    assert [len(part) for part in cut(np.arange(rows), size, join_last=join)] == sizes


def test_batches_that_are_kept_are_not_overwritten():
    part, _ = subset()
    kept = [images for images, _ in part.batches(4)]
    assert torch.equal(torch.cat(kept), epoch_of(part)[0])


def test_weighted_draws_every_class_alike():
    labels = [0] * 800 + [1] * 150 + [2] * 50
    part, _ = subset(1000, labels, weighted=True)
    drawn = np.bincount(epoch_of(part, 100, train=True)[1].numpy())
    assert len(drawn) == 3 and drawn.min() > 260 and drawn.sum() == 1000
    assert np.bincount(epoch_of(part, 100)[1].numpy()).tolist() == [800, 150, 50]


def data_of(folds, weighting="balanced", test=None):
    return Data(
        "t",
        ["a", "b", "c"],
        8,
        MEAN,
        STD,
        folds,
        test,
        Submission(("id", "label"), []),
        "x",
        weighting,
    )


def test_balanced_weights_are_scikit_learns():
    labels = [0] * 12 + [1] * 6 + [2] * 3
    part, _ = subset(21, labels)
    weights = data_of([Fold(0, part, part)]).class_weights(Fold(0, part, part))
    reference = compute_class_weight("balanced", classes=np.arange(3), y=np.array(labels))
    assert np.allclose(weights.numpy(), reference)
    assert data_of([Fold(0, part, part)], "none").class_weights(Fold(0, part, part)) is None


def test_a_class_that_is_not_there_weighs_nothing():
    part, _ = subset(4, [0, 0, 2, 2])
    assert data_of([Fold(0, part, part)]).class_weights(Fold(0, part, part)).tolist() == [1, 0, 1]


def test_split_rows_name_the_side_or_the_fold():
    part, _ = subset(3, groups=["x", "y", "z"])
    held_out, _ = subset(2)
    held_out.ids = ["v0", "v1"]
    single = data_of([Fold(0, part, held_out)], test=part).split_rows()
    assert [row["split"] for row in single] == ["train"] * 3 + ["val"] * 2 + ["test"] * 3
    assert single[1] == {"id": "r1", "label": "b", "split": "train", "group": "y"}
    folds = data_of([Fold(0, part, part), Fold(1, part, part)]).split_rows()
    assert [row["split"] for row in folds] == ["fold0"] * 3 + ["fold1"] * 3
