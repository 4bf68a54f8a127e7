"""What a search of photos tries first, the cheapest safe configuration before all others, and the
space around it in which the tuner goes on.

A portfolio of good configurations beats a search from nothing (ZAP, ICML 2022; Quick-Tune, ICLR
2024), and networks that are trained in different ways vote better than many that are alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ballot.config.schema import Config
from ballot.values import Json

Values = Json
SHAPE = ("model", "image_size")  # what decides how large and how slow a network is
LITE = ("timm:tf_efficientnet_lite0", "timm:tf_efficientnet_lite1", "timm:tf_efficientnet_lite2")


LONGER = 2.5  # times the recipe's epochs (docs/recipes.md)


@dataclass(frozen=True)
class Portfolio:
    """A search space, and the configurations of it that are tried before any others."""

    space: Json
    first: list[Values]


def choice(*values: object) -> Json:
    """Return a range of the search space: one of several values."""
    return {"_type": "choice", "_value": list(dict.fromkeys(values))}


def loguniform(low: float, high: float) -> Json:
    """Return a range of the search space: numbers whose logarithms are equally likely."""
    return {"_type": "loguniform", "_value": [low, high]}


def shapes_of(made: Portfolio) -> list[Values]:
    """Return each network with each size of images in which the space has it.

    What is no choice of the space has no key.
    """
    found: list[Values] = []
    for branch in _branches(made.space):
        keys = [key for key in SHAPE if key in branch]
        for values in itertools.product(*(branch[key]["_value"] for key in keys)):
            shape = dict(zip(keys, values))
            if shape not in found:
                found.append(shape)
    return found


def without_shapes(made: Portfolio, above: Sequence[Values]) -> Portfolio:
    """Leave out networks and sizes of images, given by `shapes_of`, that are above a bound.

    A network or a size stays where it is within the bound with another one.
    """

    def fits(values: Values) -> bool:
        return not any(values.items() >= shape.items() for shape in above)

    branches = [kept for b in _branches(made.space) if (kept := _fitting(b, fits))]
    space = branches[0] if branches else {}
    if "recipe" in made.space:
        space = {"recipe": {"_type": "choice", "_value": branches}}
    first = [values for values in made.first if fits(values.get("recipe", values))]
    return Portfolio(space if branches else {}, first)


def _fitting(branch: Values, fits: Callable[[Values], bool]) -> Values | None:
    """Return a part of the space with the networks and sizes that fit; None without any."""
    keys = [key for key in SHAPE if key in branch]
    shapes = [
        dict(zip(keys, values))
        for values in itertools.product(*(branch[key]["_value"] for key in keys))
    ]
    kept = [shape for shape in shapes if fits(shape)]
    if not kept:
        return None
    return {**branch, **{key: choice(*(shape[key] for shape in kept)) for key in keys}}


def _branches(space: Values) -> list[Values]:
    """Return the parts of a space of which a configuration is of one."""
    return space["recipe"]["_value"] if "recipe" in space else [space]


def of_photos(
    base: Config, probe: Config, *, networks: Sequence[str], long: bool = False
) -> Portfolio:
    """Return the portfolio of fine-tuning.

    `base` and `probe` are what the recipes `auto` and `probe` make of the data and the time;
    `networks` are those whose weights can be had, the recipe's own first. `long` says that there is
    time for trials of `LONGER` times the epochs, in which all blocks are trained.
    """
    size, frozen_size = base.image_size or 160, probe.image_size or base.image_size or 160
    larger, lr = stepped(1.25 * size), base.lr
    frozen = {"_name": "probe", "model": networks[0], "image_size": frozen_size}
    wide = stepped(1.25 * frozen_size)  # more pixels are worth more to it than anything else
    usual = _usual(base, networks[0], size)
    longer: Values = {"epochs": round(LONGER * base.epochs)}
    longer |= {"freeze": "0"} if base.freeze else {}
    changes: list[Values] = [
        {},
        *([longer] if long else []),
        *({"model": network} for network in networks[1:]),
        {"image_size": larger, "lr": _rounded(0.7 * lr)},
        {"augmentation": "TrivialAugment", "lr": _rounded(1.5 * lr), "layer_decay": 0.8},
        {"lr": _rounded(1.5 * lr), "layer_decay": 0.65, "criterion_args.label_smoothing": 0.0},
    ]
    first = [
        {"recipe": frozen},
        {"recipe": {**frozen, "image_size": wide}},
        *({"recipe": {**usual, **change}} for change in changes),
    ]
    tuned = _space_around(usual, networks, (size, larger))
    if long:
        tuned |= {key: choice(usual[key], longer[key]) for key in longer}
    fixed = {
        "_name": "probe",
        "model": choice(*networks),
        "image_size": choice(frozen_size, wide, stepped(1.5 * frozen_size)),
    }
    return Portfolio({"recipe": {"_type": "choice", "_value": [tuned, fixed]}}, first)


def _usual(base: Config, network: str, size: int) -> Values:
    """Return the recipe's fine-tuning as a configuration of the search space."""
    return {
        "_name": "auto",
        "model": network,
        "epochs": base.epochs,
        "image_size": size,
        "lr": base.lr,
        "augmentation": base.augmentation,
        "augmentation_args.flip": 0.5,
        "criterion_args.label_smoothing": 0.1,
        "layer_decay": 1.0,
        "classifier_start": base.classifier_start,
        **({"freeze": base.freeze} if base.freeze else {}),
    }


def _space_around(usual: Values, networks: Sequence[str], sizes: Sequence[int]) -> Values:
    """Return the space in which the tuner goes on from the usual fine-tuning."""
    return {
        "_name": "auto",
        "model": choice(*networks),
        "epochs": choice(usual["epochs"]),
        "image_size": choice(*sizes),
        "lr": loguniform(usual["lr"] / 5, 4 * usual["lr"]),
        "augmentation": choice(usual["augmentation"], "TrivialAugment", "RandAugment"),
        "augmentation_args.flip": choice(0.5),
        "criterion_args.label_smoothing": choice(0.1, 0.0),
        "layer_decay": choice(1.0, 0.8, 0.65),
        "classifier_start": choice(usual["classifier_start"]),
        **({"freeze": choice(usual["freeze"])} if "freeze" in usual else {}),
    }


def from_scratch(base: Config, *, epochs: int) -> Portfolio:
    """Return the portfolio where no pretrained network can be had, or none is of use."""
    lr = base.lr
    space = {
        "epochs": choice(epochs),
        "batch_size": choice(*sorted({16, 32, 64, base.batch_size})),
        "criterion": choice("cross_entropy", "label_smoothing", "focal"),
        "lr": loguniform(lr / 3, 8 * lr),
        "weight_decay": loguniform(1e-4, 1e-1),
        "augmentation": choice(*dict.fromkeys((base.augmentation, "AffineAugmentation"))),
    }
    first = [
        {
            "epochs": epochs,
            "batch_size": base.batch_size,
            "criterion": "cross_entropy",
            "lr": min(3 * lr, 8 * lr),
            "augmentation": base.augmentation,
        }
    ]
    return Portfolio(space, first)


def _rounded(rate: float) -> float:
    """Return a learning rate as a person would write it."""
    return float(f"{rate:.2g}")


def stepped(size: float) -> int:
    """Round a side to a multiple of 32, in which convolutional networks work."""
    return max(32, 32 * round(size / 32))
