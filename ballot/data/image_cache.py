"""The shared cache of decoded images: built once on a machine, read by every trial.

A cache is a folder: `images.u8` [N, 3, S, S], `digests.bin` (20 bytes an image), `families.i32`
(the near duplicates), `files.txt` (the stamps it was made from) and `info.json`. It appears whole,
by one rename, or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ballot.cpus import cpu_count
from ballot.data.images import (
    ArraySource,
    DecodingStore,
    Geometry,
    MappedStore,
    MemoryStore,
    Store,
    UnreadableImage,
    channels_first,
    file_stamp,
)
from ballot.data.near_duplicates import NONE, SIDE, find_families, thumbnail
from ballot.data.source import Source, is_image
from ballot.errors import UserError
from ballot.runs.files import json_or_empty
from ballot.values import Json
from ballot.walking import walk

log = logging.getLogger(__name__)

DIGEST = 20  # bytes of SHA-1, which is about equality here, not about security
FAMILY = 4  # bytes of a number
SAY_EVERY = 10.0  # seconds between two lines about a build


@dataclass(frozen=True)
class Prepared:
    """A store, with what decoding every image once has shown.

    `bad` gives the reason for each row that cannot be decoded; `digests` [N] is the hash of each
    image's decoded pixels at full size (b"" where it cannot be), `families` int32 [N] a number that
    near duplicates have in common (`NONE` without any; images in memory are not looked at).
    """

    store: Store
    bad: dict[int, str]
    digests: list[bytes]
    families: np.ndarray


@dataclass
class Scan:
    """What decoding every image shows, beside the pixels; see `Prepared`."""

    bad: dict[int, str] = field(default_factory=dict)
    digests: list[bytes] = field(default_factory=list)
    families: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))


def cache_folder(option: str) -> Path | None:
    """Folder of `--cache`: None for off, the user's cache folder for auto."""
    if option == "off":
        return None
    if option != "auto":
        return Path(option).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ballot"


def prepare(
    source: Source, geometry: Geometry, *, label: str, cache: str, limit_gib: float, workers: int
) -> Prepared:
    """Give `source` a store: memory, the shared cache, or threads where neither will do.

    `label` names the data in listings of the cache; `workers` is the number of threads.
    """
    if isinstance(source, ArraySource):
        families = np.full(len(source), NONE, dtype=np.int32)
        return Prepared(MemoryStore(source, geometry), {}, _array_digests(source), families)
    folder = cache_folder(cache)
    wanted = len(source) * 3 * geometry.size**2
    keep_pixels = wanted <= limit_gib * 2**30
    if folder is not None and not keep_pixels:
        log.warning(
            "cache: the decoded images would take %.1f GiB, more than cache_limit (%g GiB); "
            "they are decoded anew every epoch",
            wanted / 2**30,
            limit_gib,
        )
    if folder is not None:
        try:
            return _from_cache(source, geometry, folder, label, keep_pixels, workers)
        except OSError as error:
            reason = f"{error.strerror or error} ({folder})"
            log.warning("cache: %s; images are decoded anew every epoch", reason)
    log.info("cache: looking at %d images", len(source))
    seen = scan(source, geometry, None)
    store = DecodingStore(source, geometry, workers)
    return Prepared(store, seen.bad, seen.digests, seen.families)


def _array_digests(source: ArraySource) -> list[bytes]:
    of_image = {k: _digest(channels_first(source.array[k][None])[0]) for k in set(source.index)}
    return [of_image[k] for k in source.index]


def _digest(image: torch.Tensor) -> bytes:
    """Hash of an image's pixels and shape; an image without pixels of its own has none."""
    digest = hashlib.sha1(str(tuple(image.shape)).encode(), usedforsecurity=False)
    pixels = np.ascontiguousarray(image.numpy().transpose(1, 2, 0))  # as decoders leave them
    digest.update(pixels.data)
    return digest.digest()


def scan(source: Source, geometry: Geometry, out: IO[bytes] | None) -> Scan:
    """Decode every image once; write the fitted pixels to `out` in the order of the rows.

    Holds a few images at a time, whatever their number, and a small thumbnail of each.
    """
    blank = np.zeros((3, geometry.size, geometry.size), dtype=np.uint8)
    thumbs = np.zeros((len(source), SIDE, SIDE), dtype=np.uint8)
    seen = Scan()

    def work(row: int) -> tuple[np.ndarray | None, bytes, str]:
        try:
            image = source.read(row)
            fitted = np.ascontiguousarray(geometry.fit(image).numpy()) if out else None
            thumbs[row] = thumbnail(image)
            return fitted, _digest(image), ""
        except UnreadableImage as error:
            return blank, b"", str(error)

    said = time.monotonic()
    for row, (image, digest, reason) in enumerate(_in_threads(work, len(source))):
        if reason:
            seen.bad[row] = reason
        seen.digests.append(digest)
        if out is not None:
            out.write(image.data)
        if time.monotonic() - said > SAY_EVERY:
            said = time.monotonic()
            log.info("cache: %d of %d images decoded", row + 1, len(source))
    seen.families = find_families(thumbs, seen.digests)
    return seen


def _in_threads(work: Any, count: int) -> Iterator[Any]:
    """Yield `work(row)` in order, with a few rows in hand: never all of them."""
    threads = cpu_count()
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Any]] = deque()
        try:
            for row in range(count):
                waiting.append(pool.submit(work, row))
                if len(waiting) > 8 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _from_cache(
    source: Source, geometry: Geometry, folder: Path, label: str, keep_pixels: bool, workers: int
) -> Prepared:
    """Open the cache of `source`, and build it first where it is not there; raises `OSError`."""
    stamps = source.stamps()
    order = sorted(range(len(stamps)), key=stamps.__getitem__)  # any layout shares one cache
    files = [stamps[row] for row in order]
    method = geometry.method if keep_pixels else "scan"
    digest = hashlib.sha256("\n".join([method, *files]).encode()).hexdigest()[:24]
    path = folder / f"{digest}-{method}"
    if not _is_whole(path, len(files), geometry.size, keep_pixels):
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(path.with_name(path.name + ".lock"), label):
            # Another process may have built it while this one waited.
            if not _is_whole(path, len(files), geometry.size, keep_pixels):
                _build(source.take(np.array(order)), geometry, path, label, files, keep_pixels)
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    info = json.loads((path / "info.json").read_text())
    raw = (path / "digests.bin").read_bytes()
    digests = [raw[p * DIGEST : (p + 1) * DIGEST] for p in position]
    digests = [digest if any(digest) else b"" for digest in digests]
    families = np.fromfile(path / "families.i32", dtype=np.int32)[position]
    bad = {order[int(place)]: reason for place, reason in info["bad"].items()}
    if keep_pixels:
        store: Store = MappedStore(path / "images.u8", geometry.size, position)
    else:
        store = DecodingStore(source, geometry, workers)
    return Prepared(store, bad, digests, families)


def _is_whole(path: Path, count: int, size: int, keep_pixels: bool) -> bool:
    try:
        pixels = (path / "images.u8").stat().st_size if keep_pixels else 0
        digests = (path / "digests.bin").stat().st_size
        families = (path / "families.i32").stat().st_size
    except OSError:
        return False
    info = _info(path)
    if info is None or not isinstance(info.get("bad"), dict):
        return False
    if (digests, families) != (count * DIGEST, count * FAMILY):
        return False
    return not keep_pixels or pixels == count * 3 * size**2


@contextlib.contextmanager
def _lock(path: Path, label: str) -> Iterator[None]:
    """Hold the lock of one cache; wait for whoever has it, and say so.

    The system lets go of it when its holder dies, however that happens.
    """
    import fcntl

    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            log.info("cache: waiting for %s, which is decoding %s", holder, label)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


def _build(
    source: Source, geometry: Geometry, path: Path, label: str, files: list[str], keep_pixels: bool
) -> None:
    """Decode everything into a folder of another name, then rename it; the lock is held."""
    partial = path.with_name(path.name + ".partial")
    # What is there was left by a build that died: its lock would be held otherwise.
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)
    wanted = len(source) * 3 * geometry.size**2 if keep_pixels else 0
    if shutil.disk_usage(path.parent).free < wanted * 1.02:
        raise OSError(f"no room for {wanted / 2**30:.1f} GiB of decoded images")
    partial.mkdir()
    log.info("cache: decoding %d images of %s once, into %s", len(source), label, path)
    try:
        with (partial / "images.u8").open("wb") as out:
            seen = scan(source, geometry, out if keep_pixels else None)
            _flush(out)
        if source.stamps() != files:
            raise UserError(f"{label}: files changed while they were being decoded; start again")
        _write(partial / "digests.bin", b"".join(d.ljust(DIGEST, b"\0") for d in seen.digests))
        _write(partial / "families.i32", seen.families.tobytes())
        _write(partial / "files.txt", "\n".join(files).encode())
        info = {
            "label": label,
            "method": path.name.partition("-")[2],
            "count": len(files),
            "created": time.time(),
            "images_below": _images_below(label),
            "bad": seen.bad,
        }
        _write(partial / "info.json", json.dumps(info, indent=1).encode())
        os.replace(partial, path)  # noqa: PTH105
        _flush_folder(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        _flush(file)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _images_below(label: str) -> int:
    """Number of images below the data's folder; another number later: files came or went."""
    return sum(is_image(name) for _, _, files in walk(label) for name in files)


@dataclass(frozen=True)
class Cached:
    """One cache in the folder: what it is of, and why it is stale ("" where it is not)."""

    path: Path
    label: str
    count: int
    size: int
    stale: str


def list_caches(folder: Path) -> list[Cached]:
    """Describe every cache in `folder`, also what a killed build has left."""
    found: list[Cached] = []
    newest: dict[tuple[str, str], tuple[float, Path]] = {}
    if not folder.is_dir():
        return found
    infos = {path: _info(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    for path, info in infos.items():
        if info is not None:
            kind = (info["label"], info["method"])
            newest[kind] = max(newest.get(kind, (0.0, path)), (info["created"], path))
    for path, info in infos.items():
        if path.name.endswith(".partial"):
            if not _is_locked(path.with_suffix(".lock")):
                found.append(Cached(path, "", 0, _bytes(path), "a build that did not finish"))
        elif info is None:
            if (path / "images.u8").exists():
                found.append(Cached(path, "", 0, _bytes(path), "not readable as a cache"))
        else:
            reason = _staleness(path, info)
            if not reason and newest[info["label"], info["method"]][1] != path:
                reason = "a newer cache of the same data is there"
            found.append(Cached(path, info["label"], info["count"], _bytes(path), reason))
    return found


def _info(path: Path) -> Json | None:
    info = json_or_empty(path / "info.json")
    return info if {"label", "method", "count", "created"} <= info.keys() else None


def _staleness(path: Path, info: Json) -> str:
    for line in (path / "files.txt").read_text().split("\n"):
        kind, _, rest = line.partition("\t")
        if kind == "file":
            name = rest.split("\t")[0]
            if file_stamp(name) != line:
                there = Path(name).exists()
                return f"{name} {'has changed' if there else 'is gone'}"
    if info.get("images_below") != _images_below(info["label"]):
        return "files were added or removed"
    return ""


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def _is_locked(path: Path) -> bool:
    import fcntl

    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def remove_stale(folder: Path) -> list[Cached]:
    """Remove the stale caches in `folder` and return them; a trial that reads one keeps its map."""
    stale = [cached for cached in list_caches(folder) if cached.stale]
    for cached in stale:
        shutil.rmtree(cached.path, ignore_errors=True)
        if not cached.path.name.endswith(".partial"):
            cached.path.with_name(cached.path.name + ".lock").unlink(missing_ok=True)
    return stale
