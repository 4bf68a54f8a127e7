"""The audit: what stops a trial, what is only told."""

import shutil

import pytest
from images_for_tests import class_folders, photo, save, table

from ballot.config.schema import Config
from ballot.errors import UserError
from dataset import load_data


def load(root, **options):
    return load_data(Config(data_dir=str(root), cache="off", image_size=16, **options))


@pytest.fixture
def root(tmp_path):
    class_folders(tmp_path / "train", {"cat": 8, "dog": 8})
    class_folders(tmp_path / "test", {"cat": 2, "dog": 2}, start=100)
    return tmp_path


def copy_into_test(root):
    shutil.copy(root / "train/cat/cat-0.jpg", root / "test/cat/other-name.jpg")


def link_into_test(root):
    (root / "test/cat/linked.jpg").symlink_to(root / "train/cat/cat-0.jpg")


def save_as_another_format(root):
    from PIL import Image

    with Image.open(root / "train/cat/cat-0.jpg") as image:
        image.save(root / "train/cat/again.png")
        image.save(root / "test/cat/again.bmp")


@pytest.mark.parametrize("leak", [copy_into_test, save_as_another_format])
def test_an_image_on_both_sides_of_a_given_split_is_an_error_that_names_it(leak, root):
    leak(root)
    with pytest.raises(UserError, match=r"the same image stands on both sides.*test/cat/"):
        load(root)


def test_a_file_on_both_sides_is_an_error_that_names_it(root):
    link_into_test(root)
    with pytest.raises(UserError, match=r"a file stands on both sides.*linked\.jpg in test"):
        load(root)


def test_a_group_on_both_sides_is_an_error_that_names_it(tmp_path):
    rows = [
        {
            "path": save(tmp_path / f"{k}.png", k).name,
            "label": "ab"[k % 2],
            "person": f"p{k // 2}",
            "split": "test" if k in (1, 8, 9) else "train",
        }
        for k in range(12)
    ]
    table(tmp_path / "labels.csv", rows)
    with pytest.raises(UserError, match=r"a group stands on both sides of the split: p0 \(0.png"):
        load(tmp_path)


def test_copies_are_told_and_stay_on_one_side_of_a_split_of_ours(root, caplog):
    for k in range(4):
        shutil.copy(root / f"train/cat/cat-{k}.jpg", root / f"train/cat/copy-{k}.jpg")
    for seed in range(10):
        (fold,) = load(root, seed=seed).folds
        for k in range(4):
            pair = {f"train/cat/cat-{k}.jpg", f"train/cat/copy-{k}.jpg"}
            assert pair <= set(fold.train.ids) or pair <= set(fold.val.ids)
    assert "4 images are there more than once" in caplog.text


def test_a_training_image_in_an_unlabelled_test_set_is_only_told(root, caplog):
    shutil.rmtree(root / "test")
    save(root / "test" / "x.jpg", 500)
    shutil.copy(root / "train/cat/cat-0.jpg", root / "test/y.jpg")
    load(root)
    assert "the same image stands on both sides" in caplog.text
    with pytest.raises(UserError, match="an error because of strict"):
        load(root, strict=True)


def test_labels_that_contradict_each_other_are_told(root, caplog):
    shutil.copy(root / "train/cat/cat-0.jpg", root / "train/dog/cat-0.jpg")
    load(root)
    assert "1 identical images have labels that contradict each other" in caplog.text
    assert "train/cat/cat-0.jpg is cat, train/dog/cat-0.jpg is dog" in caplog.text


def test_a_broken_training_image_is_left_out_and_told(root, caplog):
    photo(600).save(root / "train/cat/cut.jpg")
    data = (root / "train/cat/cut.jpg").read_bytes()
    (root / "train/cat/cut.jpg").write_bytes(data[:-60])
    loaded = load(root)
    assert len(loaded.folds[0].train) + len(loaded.folds[0].val) == 16
    assert "train/cat/cut.jpg cannot be decoded (" in caplog.text
    with pytest.raises(UserError, match="1 training images cannot be decoded"):
        load(root, strict=True)


def test_a_broken_test_image_is_an_error_because_its_row_must_be_answered(root):
    (root / "test/cat/bad.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"test images cannot be decoded; repair.*bad\.png"):
        load(root)


def test_classes_with_too_few_rows_are_told(root, caplog):
    class_folders(root / "train", {"owl": 1}, start=700)
    load(root)
    assert "fewer than 2 rows of a class, too few to split: owl (1)" in caplog.text


def test_classes_with_too_few_groups_are_told(tmp_path, caplog):
    rows = [
        {
            "path": save(tmp_path / f"{k}.png", k).name,
            "label": "a" if k < 8 else "b",
            "person": f"p{min(k, 8) // 2}",
        }
        for k in range(12)
    ]
    table(tmp_path / "labels.csv", rows)
    load(tmp_path)
    assert "fewer than 2 groups of a class, too few to split: b (1)" in caplog.text
