"""Where the images of a data set come from, and which files are images; torch is not needed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


class Source(Protocol):
    """Images by number, each of its own size."""

    in_memory: bool

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> Source:
        """Return the source of `rows` alone, in that order."""

    def read(self, row: int) -> torch.Tensor:
        """Decode one image to uint8 [3, H, W]; raises `UnreadableImage`."""

    def name(self, row: int) -> str:
        """What a person calls the image."""

    def sizes(self) -> list[str]:
        """The size of each image as stored, for the fingerprint of the data."""

    def stamps(self) -> list[str]:
        """A text for each image that changes when the image does; part of the cache's key."""


def is_image(name: str) -> bool:
    """Tell whether a file name is an image's; `._*` is what macOS leaves beside the real one."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("._")  # noqa: PTH122
