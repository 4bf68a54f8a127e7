"""Probabilities in the place of labels: whose they are, what is kept away, what is refused."""

import csv
import shutil

import numpy as np
import pytest
import torch
from images_for_tests import class_folders, save
from trained_for_tests import coloured, run

from ballot.config.schema import Config
from ballot.data.augment import mixing
from ballot.errors import UserError
from ballot.runs.files import read_rows
from ballot.runs.folder import read_result
from dataset import load_data
from loss import check_soft_targets, create_criterion


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("soft")
    class_folders(root / "train", {"cat": 12, "dog": 9})
    return class_folders(root / "test", {"cat": 2, "dog": 2}, start=100).parent


def load(root, **options):
    options = {"cache": "off", "image_size": 16, **options}
    return load_data(Config(data_dir=str(root), **options))


def write(path, rows, header=("id", "dog", "cat")):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_images_are_named_by_id_or_by_path_and_classes_by_their_columns(root, tmp_path):
    plain = load(root).folds[0]
    train, val = plain.train.ids[0], plain.val.ids[0]
    save(tmp_path / "more" / "new.jpg", 900)
    rows = [
        (train, 0.25, 0.75),
        (val, 0.5, 0.5),
        ("test/cat/cat-0.jpg", 0.125, 0.875),
        ("more/new.jpg", 1, 0),
        (str(root / "test/dog/dog-1.jpg"), 0.75, 0.25),
    ]
    data = load(root, soft_labels=str(write(tmp_path / "soft.csv", rows)))
    fold = data.folds[0]
    assert fold.val.ids == plain.val.ids and fold.val.targets is None
    added = ["test/cat/cat-0.jpg", "test/dog/dog-1.jpg", "more/new.jpg"]
    assert fold.train.ids == [*plain.train.ids, *added]
    by_id = dict(zip(fold.train.ids, fold.train.targets.tolist()))
    assert by_id[train] == [0.75, 0.25] and by_id["more/new.jpg"] == [0, 1]  # cat, dog
    assert by_id[plain.train.ids[1]] == np.eye(2)[plain.train.labels[1]].tolist()
    assert fold.train.labels[-3:].tolist() == [0, 1, 1]
    assert {row["id"] for row in data.split_rows()} == set(
        plain.train.ids + plain.val.ids + data.test.ids
    )


def test_a_batch_holds_the_added_images_as_they_would_be_seen_as_data(root, tmp_path):
    shutil.copytree(root / "train", tmp_path / "data" / "train")
    save(tmp_path / "data" / "train" / "dog" / "new.jpg", 900)
    save(tmp_path / "new.jpg", 900)
    mean = {"mean": (0.5,), "std": (0.25,)}
    soft = load(root, soft_labels=str(write(tmp_path / "s.csv", [("new.jpg", 0.5, 0.5)])), **mean)
    subset = soft.folds[0].train
    drawn = {"epoch": 0, "train": True, "seed": 1}
    batches = list(zip(subset.places(4, **drawn), subset.batches(4, **drawn)))
    place = subset.ids.index("new.jpg")
    seen = [
        (images[list(places).index(place)], targets[list(places).index(place)])
        for places, (images, targets) in batches
        if place in places
    ]
    assert len(seen) == 1 and seen[0][1].tolist() == [0.5, 0.5]
    as_data = load(tmp_path / "data", folds=21, **mean)
    own = next(f.val for f in as_data.folds if "train/dog/new.jpg" in f.val.ids)
    images, _ = next(own.batches(64))
    torch.testing.assert_close(seen[0][0], images[own.ids.index("train/dog/new.jpg")])


def test_copies_of_validation_and_training_images_are_left_out(root, tmp_path, caplog):
    caplog.set_level("INFO")
    fold = load(root).folds[0]
    for name, file in (("v", fold.val.ids[0]), ("t", fold.train.ids[0])):
        shutil.copy(root / file, tmp_path / f"{name}.jpg")
    save(tmp_path / "new.jpg", 900)
    shutil.copy(tmp_path / "new.jpg", tmp_path / "again.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    names = ("v.jpg", "t.jpg", "new.jpg", "again.jpg", "broken.jpg")
    file = write(tmp_path / "soft.csv", [(name, 0.5, 0.5) for name in names])
    train = load(root, soft_labels=str(file)).folds[0].train
    assert train.ids[len(fold.train) :] == ["new.jpg"]
    assert (
        "soft labels: 1 images added to the training rows; left out: 1 that are in validation, "
        "1 that are training images, 1 that are there twice, 1 that cannot be decoded"
    ) in caplog.text


@pytest.mark.parametrize(
    "rows, header, message",
    [
        ([("x.jpg", 0.5, 0.5)], ("id", "dog", "cat"), "1 names are neither ids of soft"),
        ([("x.jpg", 1)], ("id", "dog"), "has no column for cat; it takes an id or a path"),
        ([("test/cat/cat-0.jpg", 0.5, 0.6)], ("id", "dog", "cat"), "numbers sum to 1.1"),
        ([("test/cat/cat-0.jpg", "?", 1)], ("id", "dog", "cat"), "hold probabilities"),
        ([("test/cat/cat-0.jpg", 0, 1)] * 2, ("id", "dog", "cat"), "1 images stand there twice"),
        ([(0, 1)], ("dog", "cat"), "no column of names"),
    ],
)
def test_what_is_no_soft_label_is_refused(root, tmp_path, rows, header, message):
    file = write(tmp_path / "soft.csv", rows, header)
    with pytest.raises(UserError, match=message):
        load(root, soft_labels=str(file))


def test_mixing_blends_probabilities():
    images = torch.zeros(2, 3, 4, 4)
    targets = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    _, mixed = mixing(2, mixup=1.0)(images, targets, np.random.default_rng(0))
    assert mixed.sum(1).tolist() == pytest.approx([1, 1]) and (mixed[:, 0] <= 0.5).all()


def test_a_criterion_that_takes_no_probabilities_is_refused():
    check_soft_targets(create_criterion("focal", 3), "focal", 3)
    with pytest.raises(UserError, match="criterion 'margin' takes no probabilities as targets"):
        check_soft_targets(torch.nn.MultiMarginLoss(), "margin", 3)


def test_a_run_learns_what_soft_labels_say(tmp_path, capsys):
    data = coloured(tmp_path / "data", {"train": 8, "test": 4}, size=16)
    coloured(tmp_path, {"more": 20}, size=16, seed=5)
    names = ["blue", "green", "red"]
    rows = [
        (f"more/{name}/{name}-{k}.png", *(np.eye(3)[c] * 0.9 + 0.1 / 3).round(6))
        for c, name in enumerate(names)
        for k in range(20)
    ]
    soft = write(tmp_path / "soft.csv", rows, ("path", *names))
    words = ("--image_size", 16, "--epochs", 6, "--lr", 0.005, "--batch_size", 8, "--soft_labels")
    folder = run(tmp_path, data, "softened", *words, soft)
    result = read_result(folder)
    assert result["status"] == "done" and "+" in result["data_pixels"]
    assert result["test"]["acc"] > 0.5
    history = read_rows(folder / "history.csv")
    # Smoothed targets have an entropy: no loss is below it.
    assert float(history[-1]["train_loss"]) > 60 / 79 * 0.29
    assert len(read_rows(folder / "split.csv")) == 24 + 12
    rows[0] = (rows[0][0], 1, 0, 0)
    write(soft, rows, ("path", *names))
    with pytest.raises(AssertionError):  # of another status than 0
        run(tmp_path, data, "softened", *words, soft, "--resume", folder)
    assert "begun with: the soft labels are others" in capsys.readouterr().err
