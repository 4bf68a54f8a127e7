"""Test-time augmentation: the views of an image whose predictions are averaged.

A run takes them where the log loss of its validation rows gets better by them and their accuracy
not worse, and keeps to them in its ballot and in `best.pt`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ballot.errors import UserError, suggest
from ballot.vote import combine

CROP = 7 / 8  # of the side: 224 of 256, as ten crops were first taken (Krizhevsky et al., 2012)


def hflip(images: torch.Tensor) -> list[torch.Tensor]:
    """Mirror left and right."""
    return [images.flip(-1)]


def vflip(images: torch.Tensor) -> list[torch.Tensor]:
    """Mirror up and down: for images without an upright, as from above or of tissue."""
    return [images.flip(-2)]


def crops(images: torch.Tensor) -> list[torch.Tensor]:
    """Cut the centre and the four corners, at 7/8 of the side, and bring them to full size."""
    side = images.shape[-1]
    part = max(1, round(side * CROP))
    rest = side - part
    places = [(rest // 2, rest // 2), (0, 0), (0, rest), (rest, 0), (rest, rest)]
    cut = [images[..., y : y + part, x : x + part].float() for y, x in places]
    return [F.interpolate(c, size=(side, side), mode="bilinear", align_corners=False) for c in cut]


VIEWS: dict[str, Callable[[torch.Tensor], list[torch.Tensor]]] = {
    "hflip": hflip,
    "vflip": vflip,
    "crops": crops,
}


AUTO = ("hflip",)  # tried where nobody says what: one more prediction of each row


def parse(text: str | None) -> list[str] | None:
    """Return the names in `hflip,crops`, none of `off`, and None of None.

    An unknown name is a `UserError` with the nearest.
    """
    if text is None:
        return None
    if text.strip() in ("off", "none"):
        return []
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in VIEWS:
            raise UserError(f"tta: unknown {name!r}{suggest(name, VIEWS)}")
        if names.count(name) > 1:
            raise UserError(f"tta: {name} stands there twice")
    return names


def candidates(wish: str) -> list[str]:
    """Return the views that a run tries: `auto`, `off`, or names as `parse` takes them."""
    return list(AUTO) if wish == "auto" else parse(wish) or []


@dataclass(frozen=True)
class Choice:
    """The views that a run predicts with, its validation rows by them, and what they gained."""

    names: list[str]
    probs: np.ndarray  # [N, C] float32
    val_nll: float
    val_nll_plain: float


def choose(
    names: Sequence[str],
    plain: np.ndarray,
    targets: np.ndarray,
    predict: Callable[[Sequence[str]], np.ndarray],
) -> Choice:
    """Take name after name where the log loss of the validation rows gets better by it.

    One that costs accuracy, by more than a standard error, is not taken: the log loss of a network
    that is wrong and sure of it gets better by whatever makes it less sure. `predict` gives the
    probabilities by the views of some names, `plain` are those of none.
    """
    before = combine.score("nll", plain, targets)
    chosen = Choice([], plain, before, before)
    for name in names:
        tried = [*chosen.names, name]
        probs = predict(tried)
        loss = combine.score("nll", probs, targets)
        if loss < chosen.val_nll and not _costs_accuracy(chosen.probs, probs, targets):
            chosen = Choice(tried, probs, loss, before)
    return chosen


def _costs_accuracy(before: np.ndarray, after: np.ndarray, targets: np.ndarray) -> bool:
    """Whether more rows become wrong than right, by more than a standard error (McNemar, 1947)."""
    was, now = (probs.argmax(axis=1) == targets for probs in (before, after))
    lost, won = int((was & ~now).sum()), int((now & ~was).sum())
    return lost - won > math.sqrt(lost + won)


def mean_of(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of float32 predictions, taken in float64, as float32."""
    if len(parts) == 1:
        return parts[0]
    return np.asarray(np.mean(parts, axis=0, dtype=np.float64), dtype=np.float32)


def number_of_views(names: Sequence[str]) -> int:
    """Return how often each image is predicted: once by no names, twice by hflip."""
    return len(views(torch.zeros(1, 3, 8, 8), names))


def views(images: torch.Tensor, names: Sequence[str]) -> list[torch.Tensor]:
    """Return the images [B, 3, S, S] as they are and, name after name, each view so far changed.

    `hflip` gives 2, `crops` 6, both together 12.
    """
    found = [images]
    for name in names:
        found += [view for image in found for view in VIEWS[name](image)]
    return found
