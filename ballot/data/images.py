"""Images decoded once: where they come from, how they are brought to one size, where they are kept.

A `Source` reads single images; a `Geometry` says how each becomes [3, S, S] bytes; a `Store` gives
batches of them: from memory, from the shared cache (`image_cache`), or by decoding in threads.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from ballot.data.source import Source
from ballot.errors import UserError

# A picture with more pixels than this is a decompression bomb or a scan nobody trains on.
MOST_PIXELS = 89_478_485
END_OF_JPEG = b"\xff\xd9"
ORIENTATION = 0x0112  # EXIF's tag
IN_MEMORY = 512 * 2**20  # bytes of resized images that a data set held in memory may take


class UnreadableImage(Exception):
    """An image that cannot be decoded; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Geometry:
    """How an image becomes a square: a centre crop where it is larger than `crop`, then a resize.

    `crop` 0 takes the whole image. With `edge` the shorter side is brought to that many pixels
    first, keeping the shape, and the square is cut from the centre.
    """

    size: int
    crop: int = 0
    edge: int = 0

    def __post_init__(self) -> None:
        for name, low in (("size", 1), ("crop", 0), ("edge", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise UserError(
                    f"augmentation_args: {name} is {value!r}; it takes a whole number from {low} on"
                )

    @property
    def method(self) -> str:
        """Every choice that decides about pixels: a part of the cache's key."""
        return f"crop{self.crop}-edge{self.edge}-size{self.size}-bilinear-v2"

    def fit(self, images: torch.Tensor) -> torch.Tensor:
        """Crop and resize uint8 images [3, H, W] or [B, 3, H, W] to [..., 3, S, S]."""
        if self.edge:
            high, wide = images.shape[-2:]
            ratio = self.edge / min(high, wide)
            shape = [self.edge if n == min(high, wide) else int(n * ratio) for n in (high, wide)]
            images = _center(_resize(images, (max(shape[0], 1), max(shape[1], 1))), self.size)
        else:
            images = _center(images, self.crop) if self.crop else images
        return _resize(images, (self.size, self.size))


def _center(images: torch.Tensor, size: int) -> torch.Tensor:
    """Cut the central `size` pixels of each side that is longer, rounding as torchvision does."""
    high, wide = images.shape[-2:]
    top, left = (round(max(n - size, 0) / 2.0) for n in (high, wide))
    return images[..., top : top + min(size, high), left : left + min(size, wide)]


def _resize(images: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    if tuple(images.shape[-2:]) == shape:
        return images
    batch = images if images.ndim == 4 else images[None]
    batch = F.interpolate(batch, size=shape, mode="bilinear", antialias=True, align_corners=False)
    return batch if images.ndim == 4 else batch[0]


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
        return [f"item\tarray\t{number}" for number in self.index]


class ItemSource:
    """Images that somebody's object gives by number, as a PIL image or an array."""

    in_memory = False

    def __init__(self, get: Callable[[int], Any], label: str, index: np.ndarray) -> None:
        self._get, self._label, self.index = get, label, index

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: np.ndarray) -> ItemSource:
        return ItemSource(self._get, self._label, self.index[rows])

    def read(self, row: int) -> torch.Tensor:
        from PIL import Image

        image = self._get(int(self.index[row]))
        return _from_pillow(image if isinstance(image, Image.Image) else Image.fromarray(image))

    def name(self, row: int) -> str:
        return f"{self._label} image {self.index[row]}"

    def sizes(self) -> list[str]:
        return [self._label]

    def stamps(self) -> list[str]:
        return [f"item\t{self._label}\t{number}" for number in self.index]


class FileSource:
    """Images in files below one folder."""

    in_memory = False

    def __init__(self, root: Path, paths: list[str]) -> None:
        self.root, self.paths = root, paths

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: np.ndarray) -> FileSource:
        return FileSource(self.root, [self.paths[r] for r in rows])

    def read(self, row: int) -> torch.Tensor:
        return decode_file(self.root / self.paths[row])

    def name(self, row: int) -> str:
        return self.paths[row]

    def sizes(self) -> list[str]:
        return [stamp.split("\t")[2] for stamp in self.stamps()]

    def stamps(self) -> list[str]:
        # The change time too: a file can be replaced and given its old modification time.
        return [file_stamp(os.path.join(self.root, path)) for path in self.paths]  # noqa: PTH118


def file_stamp(path: str) -> str:
    """A text that changes whenever the file does; a missing one has a stamp too."""
    try:
        stat = os.stat(path)  # noqa: PTH116
    except OSError:
        return f"file\t{path}\tmissing"
    return f"file\t{path}\t{stat.st_size}\t{stat.st_mtime_ns}\t{stat.st_ctime_ns}"


def decode_file(path: Path) -> torch.Tensor:
    """Decode an image file to uint8 [3, H, W]; raises `UnreadableImage` with the reason."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UnreadableImage("is not there") from None
    except OSError as error:
        raise UnreadableImage(f"cannot be read ({error.strerror})") from None
    if not data:
        raise UnreadableImage("is empty")
    return decode(data)


def decode(data: bytes) -> torch.Tensor:
    """Decode an image to uint8 [3, H, W] as a person sees it: turned upright, on white where clear.

    The size in the header is looked at first, because a few bytes can claim gigabytes. Raises
    `UnreadableImage` with the reason.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            wide, high = image.size
            if wide * high > MOST_PIXELS:
                raise UnreadableImage(_too_large(f"{wide}x{high} pixels"))
            if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
                return _upright(
                    _decode_jpeg(data, "progressive" in image.info), _orientation(image)
                )
            return _from_pillow(image)
    except Image.DecompressionBombError as error:
        raise UnreadableImage(_too_large(str(error).split(" exceeds")[0])) from None
    except Image.UnidentifiedImageError:
        raise UnreadableImage("is no image of a known format") from None
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError) as error:
        # torch puts the place in its own source before the reason.
        line = str(error).strip().split("\n")[0].rsplit(".cpp:", 1)[-1]
        place, _, words = line.partition(", ")
        reason = words or place or type(error).__name__
        raise UnreadableImage(f"cannot be decoded ({reason})") from None


def _too_large(what: str) -> str:
    return f"is too large: {what}, more than {MOST_PIXELS / 1e6:.0f} million pixels"


def _decode_jpeg(data: bytes, progressive: bool) -> torch.Tensor:
    """Decode as it lies in the file; an end marker that is missing, and nothing else, is added."""
    try:
        return _jpeg_pixels(data)
    except RuntimeError:
        if progressive:  # whole scans may be missing, which nothing tells
            raise
        # Behind a whole picture further bits are skipped; of a cut one they become pixels.
        body = data.rstrip(b"\xff")
        image = _jpeg_pixels(body + END_OF_JPEG)
        if not torch.equal(image, _jpeg_pixels(body + b"\xaa" * 64 + END_OF_JPEG)):
            raise
        return image


def _jpeg_pixels(data: bytes) -> torch.Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg

    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return decode_jpeg(buffer, mode=ImageReadMode.RGB)


def _orientation(image: Any) -> int:
    """Return the orientation that EXIF tells, 1 where it tells none; torchvision reads it only
    where EXIF is the first of a file's segments."""
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        return int(exif.get(ORIENTATION, 1))
    except Exception:  # whatever the parser raises on damaged tags: such a picture is not turned
        return 1


def _upright(image: torch.Tensor, orientation: int) -> torch.Tensor:
    """Turn and mirror [3, H, W] as the orientation 1..8 of EXIF wants it."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 2)
    mirrored = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation)
    return image.flip(mirrored) if mirrored else image.contiguous()


def _from_pillow(image: Any) -> torch.Tensor:
    """Turn any mode of a Pillow image into uint8 [3, H, W]; of an animation the first frame."""
    from PIL import Image, ImageOps

    _halve_clear_colour(image)
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise UnreadableImage(
            "has 32-bit pixels without a known maximum; save it with 8 or 16 bits"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        array = _from_16_bit(np.asarray(image), image.info.get("transparency"))
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        array = np.array(Image.alpha_composite(white, image).convert("RGB"))
    else:
        array = np.array(image.convert("RGB"))  # a copy: Pillow's is read-only
    return channels_first(array[None])[0]


def _from_16_bit(grey: np.ndarray, clear: int | None) -> np.ndarray:
    """Bring grey pixels [H, W] to 8 bits; those of the value that stands for clear become white.

    Pillow's own conversion clips at 255, which leaves a white image and a label for it.
    """
    if grey.min() < 0 or grey.max() > 65535:
        raise UnreadableImage("has pixels that are no 8 or 16-bit ones")
    array = np.round(grey.astype(np.float64) / 257).astype(np.uint8)
    if clear is not None:
        array[grey == clear] = 255
    return array


def _halve_clear_colour(image: Any) -> None:
    """Say the colour that stands for clear in 8 bits where Pillow reads a PNG's 16 bits as 8."""
    tiles = getattr(image, "tile", None)
    colour = image.info.get("transparency")
    if tiles and image.mode == "RGB" and "16B" in str(tiles[0][3]) and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def channels_first(array: np.ndarray) -> torch.Tensor:
    """Turn uint8 [N, H, W] or [N, H, W, C] into a tensor [N, 3, H, W]; grey is repeated."""
    images = torch.from_numpy(np.ascontiguousarray(array))
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    return images[:, :3]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to the calling thread, for work that memory bounds and not arithmetic.

    Two threads gain a fifth on an idle machine; where trials share the cores, each of the many
    small regions waits for a thread that is not running, and reading is 7 times slower.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a host tensor on `device` without waiting for what the device is doing.

    A GPU fetches from pinned memory by itself; torch lends that out again when it has been read.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


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
                fitted = self._geometry.fit(channels_first(self._array[index.numpy()]))
                yield fitted.contiguous()  # repeated grey shares its memory; steps write in place
                continue
            out = self._buffers.take((len(rows), 3, self.size, self.size))
            with one_thread():
                torch.index_select(self._images, 0, index, out=out)
            yield out
            del out


class MappedStore:
    """A store for images in a cache file [N, 3, S, S], mapped into memory and read in place."""

    DROP = 128 * 2**20  # bytes read between two times of giving pages back

    def __init__(self, path: Path, size: int, position: np.ndarray) -> None:
        self.size = size
        self._position = torch.from_numpy(position)
        with path.open("rb") as file:
            # A private mapping is writable for torch, and nothing ever reaches the file.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        flat = torch.from_numpy(np.frombuffer(self._map, dtype=np.uint8))
        self._images = flat.view(-1, 3, size, size)
        self._buffers = Buffers(np.uint8)
        self._touched = 0

    def stream(self, batches: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        for rows in batches:
            out = self._buffers.take((len(rows), 3, self.size, self.size))
            index = self._position[torch.from_numpy(rows)]
            with one_thread():
                torch.index_select(self._images, 0, index, out=out)
            self._forget(out.numel())
            yield out
            del out

    def _forget(self, count: int) -> None:
        """Give mapped pages back now and then: they stay in the system's cache, not in our size."""
        self._touched += count
        if self._touched >= self.DROP and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0


class DecodingStore:
    """A store that decodes as it goes, in threads: decoders let go of the interpreter's lock.

    Threads write straight into the batch, which passing between processes would copy twice, and
    none is left behind when a trial is killed.
    """

    AHEAD = 2  # batches being decoded while one is used

    def __init__(self, source: Source, geometry: Geometry, workers: int) -> None:
        self.size = geometry.size
        self._source, self._geometry, self._workers = source, geometry, workers
        self._buffers = Buffers(np.uint8)

    def stream(self, batches: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        pool = ThreadPoolExecutor(max(1, self._workers))
        waiting: deque[tuple[torch.Tensor, list[Future[None]]]] = deque()
        rest = iter(batches)
        try:
            for _ in range(self.AHEAD):
                self._submit(pool, waiting, rest)
            while waiting:
                out, parts = waiting.popleft()
                for part in parts:
                    part.result()
                self._submit(pool, waiting, rest)
                del parts
                yield out
                del out
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, waiting: deque, rest: Iterator) -> None:
        rows = next(rest, None)
        if rows is None:
            return
        out = self._buffers.take((len(rows), 3, self.size, self.size))
        parts = [pool.submit(self._fill, out[k], int(row)) for k, row in enumerate(rows)]
        waiting.append((out, parts))

    def _fill(self, out: torch.Tensor, row: int) -> None:
        try:
            # By numpy: torch would start threads of its own under each of ours.
            np.copyto(out.numpy(), self._geometry.fit(self._source.read(row)).numpy())
        except UnreadableImage as error:
            raise UserError(
                f"{self._source.name(row)}: {error}, although it could be decoded before training; "
                "leave the images alone while a trial runs"
            ) from None
