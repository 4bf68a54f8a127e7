"""Arguments of registered things: their values are checked before anything is made of them."""

import pytest

from ballot.errors import UserError
from ballot.registry import Registry
from dataset import AUGMENTATIONS, DATASETS


@pytest.mark.parametrize(
    "name, key, value",
    [
        *(("BaseAugmentation", "crop", value) for value in (-5, 2.5, "a", True, None)),
        ("BaseAugmentation", "flip", "a"),
        ("RandAugment", "magnitude", 99),
        ("RandAugment", "magnitude", -1),
        ("RandAugment", "num_ops", 2.5),
        ("AffineAugmentation", "degrees", -5),
        ("AffineAugmentation", "translate", 3),
        ("AffineAugmentation", "scale", [-1, 1]),
        ("GaussianAugmentation", "std", -1),
        ("GaussianAugmentation", "std", float("nan")),
        ("CustomAugmentation", "brightness", -1),
        ("CustomAugmentation", "contrast", "a"),
        ("CustomAugmentation", "saturation", float("inf")),
    ],
)
def test_an_augmentation_names_the_argument_that_it_cannot_take(name, key, value):
    with pytest.raises(UserError, match=f"^augmentation_args: {key} is .*"):
        AUGMENTATIONS.create(name, 32, args={key: value})


@pytest.mark.parametrize(
    "key, value",
    [("rows", 10**10), ("rows", 64.5), ("rows", "a"), ("num_classes", "a"), ("num_classes", True)],
)
def test_dummy_data_name_the_argument_that_they_cannot_take(key, value):
    with pytest.raises(UserError, match=f"^dataset_args: {key} is "):
        DATASETS.create("dummy", None, args={key: value}, image_size=8)


def test_annotations_of_plain_types_are_held_and_others_take_anything():
    things = Registry("thing")

    @things.register("all")
    def build(*, a: int = 0, b: "float | None" = None, c: bool = False, d: str = "", e=None):
        return a, b, c, d, e

    good = {"a": 1, "b": None, "c": True, "d": "x", "e": object}
    assert things.create("all", args=good) == tuple(good.values())
    wrong = {"a": 1.0, "b": "x", "c": 1, "d": 3}
    words = ["a whole number", "a number or null", "true or false", "a text"]
    for (key, value), text in zip(wrong.items(), words):
        with pytest.raises(UserError, match=f"^thing_args: {key} is .*; it takes {text}$"):
            things.create("all", args={key: value})
