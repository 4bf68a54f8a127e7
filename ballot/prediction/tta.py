"""Test-time augmentation: the views of an image whose predictions are averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from ballot.errors import UserError, suggest

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


def parse(text: str | None) -> list[str]:
    """Return the names in `hflip,crops`; an unknown one is a `UserError` with the nearest."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in VIEWS:
            raise UserError(f"--tta: unknown {name!r}{suggest(name, VIEWS)}")
        if names.count(name) > 1:
            raise UserError(f"--tta: {name} stands there twice")
    return names


def views(images: torch.Tensor, names: Sequence[str]) -> list[torch.Tensor]:
    """Return the images [B, 3, S, S] as they are and, name after name, each view so far changed.

    `hflip` gives 2, `crops` 6, both together 12.
    """
    found = [images]
    for name in names:
        found += [view for image in found for view in VIEWS[name](image)]
    return found
