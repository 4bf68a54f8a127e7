"""The same picture in other clothes: re-encoded, resized, mirrored, or with a narrow edge cut off.

Each image leaves a grey thumbnail. Candidates are pairs whose low frequencies (DCT) agree, as they
are or mirrored; what counts is whether the finer structure of the two thumbnails agrees as well
once the one is laid over the other, because walls and faces have similar low frequencies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

NONE = -1  # the family of an image without near duplicates
SIDE = 32  # pixels of a thumbnail; smaller images are not looked at
LOW = 8  # frequencies of each axis that find candidates
COARSE = 6  # frequencies of each axis that say nothing of the finer structure
CANDIDATE = 0.8  # correlation of low frequencies; of crops by 3 % at least 0.87 (docs/data.md)
SAME = (
    0.93  # correlation of the finer structure; two different photos had 0.91 at most (docs/data.md)
)
FAINT = 2.0  # grey levels: with less structure, what is left is noise of the encoder
CROPS = (0.015, 0.03, 0.045)  # shares of an axis that were cut off, which are tried
PAIRS_EACH = 8  # candidates of an image that are compared closely, the best first
MOST_ROWS = 200_000  # the search grows by the square of the rows: minutes
BLOCK, CHUNK = 512, 2048  # rows compared at once, pairs compared closely at once


def thumbnail(image: torch.Tensor) -> np.ndarray:
    """Shrink an image uint8 [3, H, W] to grey uint8 [SIDE, SIDE]; a small one to zeros."""
    if min(image.shape[-2:]) < SIDE:
        return np.zeros((SIDE, SIDE), dtype=np.uint8)
    size = (SIDE, SIDE)
    small = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0].numpy()
    return np.round(small.mean(axis=0)).astype(np.uint8)


def find_families(thumbs: np.ndarray, digests: Sequence[bytes]) -> np.ndarray:
    """Give near duplicates among `thumbs` uint8 [N, SIDE, SIDE] a number in common: int32 [N].

    An image without any has `NONE`, as have further copies of a `digest`: these are identical.
    """
    first = {digest: row for row, digest in reversed(list(enumerate(digests))) if digest}
    # By digest and not by row: the order of the files decides nothing.
    rows = np.array([first[digest] for digest in sorted(first)], dtype=np.int64)
    families = np.full(len(thumbs), NONE, dtype=np.int32)
    rows = rows[_structure(thumbs[rows]) >= FAINT] if len(rows) else rows
    if not 2 <= len(rows) <= MOST_ROWS:
        return families
    kept = thumbs[rows]
    pairs = [pair[_are_same(kept, pair)] for pair in candidate_pairs(kept)]
    a, b = np.concatenate(pairs).T
    family = _connected(len(rows), a, b)
    members = np.union1d(a, b)
    families[rows[members]] = rows[family[members]]
    return families


def _structure(thumbs: np.ndarray) -> np.ndarray:
    """Standard deviation of the finer structure of each thumbnail, in grey levels: [N]."""
    parts = [_fine(thumbs[k : k + CHUNK]) for k in range(0, len(thumbs), CHUNK)]
    return np.concatenate([np.sqrt((part**2).mean(axis=(1, 2))) for part in parts])


def _cosines(count: int) -> np.ndarray:
    """Return the first `count` rows of the orthonormal DCT-II of SIDE samples: [count, SIDE]."""
    k = np.arange(SIDE)
    rows = np.cos(np.pi * (2 * k + 1) * k[:count, None] / (2 * SIDE)) * np.sqrt(2 / SIDE)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


def _fine(images: np.ndarray) -> np.ndarray:
    """Take the coarse frequencies out of images [..., SIDE, SIDE], and the outermost pixels."""
    cosines = _cosines(COARSE)
    coarse = cosines.T @ cosines
    images = images.astype(np.float32)
    return (images - coarse @ images @ coarse)[..., 1:-1, 1:-1]


def _descriptors(thumbs: np.ndarray) -> list[np.ndarray]:
    """Low frequencies of each thumbnail, together of length 1, by parity: four of [N, 16].

    Even and odd down, and within each even and odd across: a mirror changes the sign of the odd
    ones. High frequencies count more, as those of natural images are weaker.
    """
    cosines, u = _cosines(LOW), np.arange(LOW)
    weights = np.hypot(u[:, None], u).astype(np.float32)  # 0 for the mean
    found = (cosines @ thumbs.astype(np.float32) @ cosines.T) * weights
    found /= np.maximum(np.linalg.norm(found, axis=(1, 2), keepdims=True), 1e-9)
    parts = [found[:, down::2, across::2] for down in (0, 1) for across in (0, 1)]
    return [part.reshape(len(thumbs), -1) for part in parts]


def candidate_pairs(thumbs: np.ndarray) -> Iterator[np.ndarray]:
    """Yield pairs of rows whose low frequencies agree in some mirroring: int64 [P, 2]."""
    parts = _descriptors(thumbs)
    yield np.empty((0, 2), dtype=np.int64)
    for start in range(0, len(thumbs), BLOCK):
        for other in range(start, len(thumbs), 8 * BLOCK):
            ee, eo, oe, oo = (
                p[start : start + BLOCK] @ p[other : other + 8 * BLOCK].T for p in parts
            )
            likeness = np.maximum(ee + oe + np.abs(eo + oo), ee - oe + np.abs(eo - oo))
            yield _best_of_each(likeness, start, other)


def _best_of_each(likeness: np.ndarray, start: int, other: int) -> np.ndarray:
    """Return the best candidates of each row of `likeness`, each pair once: int64 [P, 2]."""
    a, b = np.nonzero(likeness > CANDIDATE)
    later = b + other > a + start
    a, b = a[later], b[later]
    order = np.lexsort((-likeness[a, b], a))
    a, b = a[order], b[order]
    place = np.arange(len(a)) - np.searchsorted(a, a)  # among the candidates of its row
    return np.stack([a + start, b + other], axis=1)[place < PAIRS_EACH]


def _are_same(thumbs: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Tell which pairs [P, 2] of rows show one picture: bool [P]."""
    chunks = [pairs[k : k + CHUNK] for k in range(0, len(pairs), CHUNK)]
    found = [agreement(thumbs[c[:, 0]], thumbs[c[:, 1]]) >= SAME for c in chunks]
    return np.concatenate(found) if found else np.zeros(0, dtype=bool)


def agreement(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Correlation of the finer structure of pairs [P, SIDE, SIDE], laid over each other: [P]."""
    one, two = one.astype(np.float32), two.astype(np.float32)
    mirrored = [two, two[:, :, ::-1], two[:, ::-1], two[:, ::-1, ::-1]]
    likeness = np.stack([_correlation(one, each) for each in mirrored])
    two = np.stack(mirrored)[likeness.argmax(axis=0), np.arange(len(two))]
    best = likeness.max(axis=0)
    for _ in range(2):  # one axis after the other, and again
        for axis in (1, 2):
            one, two, best = _laid_over(one, two, axis, best)
    return best


def _correlation(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    one, two = _fine(one), _fine(two)
    one = one - one.mean(axis=(1, 2), keepdims=True)
    two = two - two.mean(axis=(1, 2), keepdims=True)
    sizes = np.sqrt((one**2).sum(axis=(1, 2)) * (two**2).sum(axis=(1, 2)))
    return (one * two).sum(axis=(1, 2)) / np.maximum(sizes, 1e-9)


def _laid_over(
    one: np.ndarray, two: np.ndarray, axis: int, best: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crop the one or the other along an axis, where that lets a pair agree better than `best`."""
    new_one, new_two = one.copy(), two.copy()
    for crop in CROPS:
        for offset in (0.0, crop / 2, crop):
            stretch = _stretch(1 - crop, offset)
            cut_one, cut_two = (
                stretch @ each if axis == 1 else each @ stretch.T for each in (one, two)
            )
            for a, b in ((cut_one, two), (one, cut_two)):
                likeness = _correlation(a, b)
                better = likeness > best
                new_one[better], new_two[better] = a[better], b[better]
                best = np.where(better, likeness, best)
    return new_one, new_two, best


def _stretch(share: float, offset: float) -> np.ndarray:
    """Return the matrix that stretches a `share` of SIDE samples, from `offset` on, to SIDE."""
    k = np.arange(SIDE)
    place = np.clip(offset * SIDE + (k + 0.5) * share - 0.5, 0, SIDE - 1)
    left = np.minimum(place.astype(int), SIDE - 2)
    matrix = np.zeros((SIDE, SIDE), dtype=np.float32)
    matrix[k, left] = 1 - (place - left)
    matrix[k, left + 1] = place - left
    return matrix


def _connected(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Number of the component of each of `count` rows that the pairs `a`, `b` connect: [count]."""
    family = np.arange(count)
    while True:
        lower = family.copy()
        np.minimum.at(lower, a, family[b])
        np.minimum.at(lower, b, family[a])
        lower = lower[lower]
        if (lower == family).all():
            return family
        family = lower
