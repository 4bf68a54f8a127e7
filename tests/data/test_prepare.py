"""From rows to data: folds, normalisation, pipelines of each stage."""

import pytest
import torch
from images_for_tests import class_folders, mask_competition

from ballot.config.schema import Config
from ballot.data.images import Geometry
from ballot.data.prepare import examine
from ballot.errors import UserError
from dataset import AUGMENTATIONS, find_table, load_data


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    class_folders(root / "train", {"cat": 12, "dog": 9})
    return class_folders(root / "test", {"cat": 2, "dog": 2}, start=100).parent


def load(root, native=None, **options):
    options = {"cache": "off", "image_size": 16, **options}
    config = Config(data_dir=str(root), **options)
    return load_data(config, input_size=20, mean=native and native[0], std=native and native[1])


def test_all_folds_hold_every_row_out_once(root):
    data = load(root, folds=3)
    held_out = [name for fold in data.folds for name in fold.val.ids]
    assert len(data.folds) == 3 and len(set(held_out)) == len(held_out) == 21
    sides = {row["split"] for row in data.split_rows()}
    assert sides == {"fold0", "fold1", "fold2", "test"}


def test_one_fold_is_the_same_one_alone(root):
    every, one = load(root, folds=3), load(root, folds=3, fold=1)
    assert len(one.folds) == 1 and one.folds[0].index == 1
    assert one.folds[0].val.ids == every.folds[1].val.ids


def test_the_split_seed_alone_decides_the_split(root):
    held_out = {
        key: load(root, folds=3, fold=1, seed=key[0], split_seed=key[1]).folds[0].val.ids
        for key in ((1, None), (2, None), (2, 1), (3, 1), (1, 2))
    }
    assert held_out[1, None] != held_out[2, None]
    assert held_out[1, None] == held_out[2, 1] == held_out[3, 1]
    assert held_out[2, None] == held_out[1, 2]


def test_a_fold_that_is_not_there_is_refused(root):
    with pytest.raises(UserError, match="fold: is 3; of 3 folds the last is 2"):
        load(root, folds=3, fold=3)


def test_the_normalisation_is_the_datas_where_there_are_no_weights(root):
    data = load(root)
    assert data.mean != (0.0, 0.0, 0.0)
    fold = data.folds[0]
    both = [x.clone() for part in (fold.train, fold.val) for x, _ in part.batches(8)]
    images = torch.cat(both).transpose(0, 1).flatten(1)
    assert images.mean(1).abs().max() < 0.01
    assert (images.std(1) - 1).abs().max() < 0.01


def test_the_weights_normalisation_wins_over_the_datas_and_the_users_over_both(root):
    native = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    data = load(root, native)
    assert (data.mean, data.std) == native
    data = load(root, native, mean=(0.7,))
    assert (data.mean, data.std) == ((0.7, 0.7, 0.7), native[1])
    with pytest.raises(UserError, match="mean: has 2 values"):
        load(root, mean=(0.1, 0.2))


def test_the_size_is_the_users_or_the_models(root):
    assert load(root, image_size=None).image_size == 20
    assert load(root, image_size=12).image_size == 12


def test_a_pipeline_is_shown_in_its_stage_only(root):
    spec = {"train": {"RandomResizedCrop": {"size": 12}, "RandomHorizontalFlip": None}}
    data = load(root, image_size=None, pipeline=spec)
    assert data.image_size == 12
    train, _ = next(data.folds[0].train.batches(4, train=True, epoch=0))
    plain, _ = next(data.folds[0].train.batches(4))
    assert train.shape == plain.shape == (4, 3, 12, 12)
    again, _ = next(data.folds[0].val.batches(4))
    assert torch.equal(again, next(data.folds[0].val.batches(4))[0])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"trian": {}}, "unknown stage 'trian'; did you mean 'train'"),
        ({"decode": "big"}, "decode is 'big'"),
        (
            {"train": {"Resize": {"size": [12, 12]}}, "val": {"Resize": {"size": [16, 16]}}},
            "images of different sizes",
        ),
        (
            {
                "train": {
                    "Resize": {"size": [16, 16]},
                    "ToTensor": None,
                    "Normalize": {"mean": [0.5] * 3, "std": [0.5] * 3},
                }
            },
            "some stages only",
        ),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(spec, message, root):
    with pytest.raises(UserError, match=message):
        load(root, image_size=None, pipeline=spec)


def test_a_pipeline_and_an_image_size_must_agree(root):
    spec = {"train": {"Resize": {"size": [12, 12]}}}
    with pytest.raises(UserError, match="image_size: is 16, but the pipeline makes images of 12"):
        load(root, pipeline=spec)


def test_a_crop_that_shows_little_is_told(tmp_path, caplog):
    class_folders(tmp_path, {"a": 4, "b": 4})
    load(tmp_path, augmentation_args={"crop": 20})
    assert "the centre crop of 20 pixels keeps 13% of an image" in caplog.text


def test_the_cached_and_the_uncached_path_are_equal(root, tmp_path):
    for options in ({}, {"augmentation": "AffineAugmentation"}):
        kept, direct = load(root, cache=str(tmp_path), **options), load(root, **options)
        for choice in ({}, {"train": True, "epoch": 3, "seed": 9}):
            first = torch.cat([x.clone() for x, _ in kept.folds[0].train.batches(5, **choice)])
            other = torch.cat([x.clone() for x, _ in direct.folds[0].train.batches(5, **choice)])
            assert torch.equal(first, other)


def test_the_fingerprint_tells_other_labels_and_rows_apart(root, tmp_path):
    prints = {load(root).fingerprint, load(root, seed=1, image_size=24).fingerprint}
    assert len(prints) == 1
    other = class_folders(tmp_path, {"cat": 12, "dog": 9})
    assert load(other).fingerprint not in prints


def test_too_few_rows_to_hold_any_out_are_refused(tmp_path):
    class_folders(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(UserError, match="2 rows are too few to hold some out"):
        load(tmp_path)


def test_the_shorter_side_is_resized_and_the_centre_shown(tmp_path):
    class_folders(tmp_path, {"a": 4, "b": 4})
    shown = find(tmp_path).recipes["val"].geometry
    assert shown == Geometry(16, edge=16)


def test_the_mask_competition_keeps_its_crop_in_every_augmentation(tmp_path):
    mask_competition(tmp_path)
    for name in ("BaseAugmentation", "TrivialAugment"):
        shown = find(tmp_path, augmentation=name).recipes
        assert {recipe.geometry for recipe in shown.values()} == {Geometry(16, crop=350)}
    assert find(tmp_path, augmentation_args={"crop": 40}).recipes["test"].geometry.crop == 40
    assert load(tmp_path).crop == 350


def find(root, **options):
    config = Config(data_dir=str(root), cache="off", **{"image_size": 16, **options})
    return examine(config, find_table(config), AUGMENTATIONS)
