"""Images decoded once: where they come from, how they are brought to one size, where they are kept.

A `Source` reads single images; a `Geometry` says how each becomes [3, S, S] bytes; a `Store` gives
batches of them, from memory, from the shared cache (`harness.cache`), or by decoding in threads.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

# A picture with more pixels than this is a decompression bomb or a scan nobody trains on.
MOST_PIXELS = 89_478_485
IN_MEMORY = 512 * 2**20  # bytes of resized images that a data set held in memory may take


class UnreadableImage(Exception):
    """An image that cannot be decoded; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Geometry:
    """How an image becomes a square: a centre crop where it is larger than `crop`, then a resize.

    `crop` 0 takes the whole image. Both steps are part of the cache's key.
    """

    size: int
    crop: int = 0

    @property
    def method(self) -> str:
        return f"crop{self.crop}-size{self.size}-bilinear-antialias-uint8-v1"

    def fit(self, images: torch.Tensor) -> torch.Tensor:
        """Crop and resize uint8 images [..., 3, H, W] to [..., 3, S, S]."""
        high, wide = images.shape[-2:]
        crop_h, crop_w = min(high, self.crop or high), min(wide, self.crop or wide)
        # As torchvision's CenterCrop rounds, so that the pixels are the ones people expect.
        top, left = round((high - crop_h) / 2.0), round((wide - crop_w) / 2.0)
        images = images[..., top : top + crop_h, left : left + crop_w]
        if (crop_h, crop_w) == (self.size, self.size):
            return images
        batch = images if images.ndim == 4 else images[None]
        batch = F.interpolate(
            batch, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False
        )
        return batch if images.ndim == 4 else batch[0]


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


class ArraySource:
    """Images that are in memory already: uint8 [N, H, W] grey, or [N, H, W, 3]."""

    in_memory = True

    def __init__(self, array: np.ndarray, index: np.ndarray | None = None) -> None:
        self.array = array
        self.index = np.arange(len(array)) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: np.ndarray) -> ArraySource:
        return ArraySource(self.array, self.index[rows])

    def read(self, row: int) -> torch.Tensor:
        return channels_first(self.array[self.index[row]][None])[0]

    def name(self, row: int) -> str:
        return f"image {self.index[row]}"

    def sizes(self) -> list[str]:
        return ["x".join(map(str, self.array.shape[1:]))]

    def stamps(self) -> list[str]:
        return [f"{number}" for number in self.index]


def channels_first(array: np.ndarray) -> torch.Tensor:
    """Turn uint8 [N, H, W] or [N, H, W, C] into a tensor [N, 3, H, W]; grey is repeated."""
    images = torch.from_numpy(np.ascontiguousarray(array))
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    return images[:, :3].contiguous()


class Buffers:
    """Host memory for batches, made once and used again when nobody holds it any more.

    Fresh memory for every batch costs a page fault every 4 KiB, which is dearer than filling it. A
    tensor keeps its numpy array alive, so the array's reference count tells whether a batch, a view
    of one or autograd still needs it: what was handed out is never overwritten.
    """

    def __init__(self, dtype: type) -> None:
        self._dtype = dtype
        self._arrays: list[np.ndarray] = []
        probe = [np.empty(0)]
        self._idle = sys.getrefcount(probe[0])

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return an uninitialised tensor of `shape` that shares memory with nothing in use."""
        needed = int(np.prod(shape))
        for place in range(len(self._arrays)):
            idle = sys.getrefcount(self._arrays[place]) <= self._idle
            if idle and self._arrays[place].size >= needed:
                return torch.from_numpy(self._arrays[place])[:needed].view(shape)
            if idle:
                del self._arrays[place]
                break
        self._arrays.append(np.empty(needed, dtype=self._dtype))
        return torch.from_numpy(self._arrays[-1]).view(shape)


class Store(Protocol):
    """Batches of images of one size."""

    size: int

    def stream(self, batches: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        """Yield uint8 [B, 3, S, S] for each array of row numbers, in their order."""


class MemoryStore:
    """A store for images that are in memory; resized once where that is small."""

    def __init__(self, source: ArraySource, geometry: Geometry) -> None:
        self.size = geometry.size
        self._geometry = geometry
        self._index = torch.from_numpy(source.index)
        self._images: torch.Tensor | None = None
        self._array = source.array
        if len(source.array) * 3 * self.size**2 <= IN_MEMORY:
            chunks = range(0, len(source.array), 256)
            fitted = [geometry.fit(channels_first(source.array[k : k + 256])) for k in chunks]
            self._images = torch.cat(fitted)
        self._buffers = Buffers(np.uint8)

    def stream(self, batches: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        for rows in batches:
            index = self._index[torch.from_numpy(rows)]
            if self._images is None:
                yield self._geometry.fit(channels_first(self._array[index.numpy()]))
                continue
            out = self._buffers.take((len(rows), 3, self.size, self.size))
            yield torch.index_select(self._images, 0, index, out=out)
