"""Copies that are found again, and other pictures that are taken for copies.

    python bench/near_duplicates.py FOLDER [FOLDER ...]

Each FOLDER has labelled images in a layout that `--data_dir` reads. A copy of every sixth image is
changed in each of the ways, and looked for among all images. What is found among the images as they
are is listed, for people to look at; images of one group (one person) are not.
"""

from __future__ import annotations

import io
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ballot.config.command_line import Parser
from ballot.config.schema import Config
from ballot.data.images import FileSource, decode_file
from ballot.data.near_duplicates import (
    NONE,
    SAME,
    agreement,
    candidate_pairs,
    find_families,
    thumbnail,
)
from ballot.scripts import script_main
from dataset import find_table

EVERY = 6
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def cropped(share: float) -> Change:
    """Cut a share off both axes, a random part of it off each side."""

    def change(image: Image.Image, random: np.random.Generator) -> Image.Image:
        wide, high = (round(n * (1 - share)) for n in image.size)
        left = int(random.integers(image.width - wide + 1))
        top = int(random.integers(image.height - high + 1))
        return image.crop((left, top, left + wide, top + high))

    return change


def mirrored(image: Image.Image, _random: np.random.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def smaller(image: Image.Image, by: int) -> Image.Image:
    return image.resize((max(32, image.width // by), max(32, image.height // by)))


def three_at_once(image: Image.Image, random: np.random.Generator) -> Image.Image:
    return cropped(0.03)(smaller(mirrored(image, random), 2), random)


WAYS: dict[str, tuple[Change, int]] = {  # and the quality of the JPEG
    "re-encoded, quality 30": (lambda image, _: image, 30),
    "reduced to a sixth": (lambda image, _: smaller(image, 6), 90),
    "resized to a square": (lambda image, _: image.resize((224, 224)), 90),
    "mirrored": (mirrored, 90),
    "upside down": (lambda image, _: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), 90),
    "15 % brighter": (lambda image, _: ImageEnhance.Brightness(image).enhance(1.15), 90),
    "cropped by 3 %": (cropped(0.03), 90),
    "mirrored, halved, cropped by 3 %": (three_at_once, 90),
    "cropped by 5 %": (cropped(0.05), 90),
    "cropped by 8 %": (cropped(0.08), 90),
    "cropped by 10 %": (cropped(0.10), 90),
}


def thumbnail_of(image: Image.Image, quality: int) -> np.ndarray:
    """Encode an image as a JPEG, and make the thumbnail of what is decoded."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    pixels = np.array(Image.open(file).convert("RGB"))
    return thumbnail(torch.from_numpy(pixels).permute(2, 0, 1))


def families(thumbs: Sequence[np.ndarray]) -> np.ndarray:
    """Return the number that near duplicates have in common."""
    return find_families(np.stack(thumbs), [b"%d" % row for row in range(len(thumbs))])


def found_of(change: Change, quality: int, files: list[Path], thumbs: list[np.ndarray]) -> int:
    """Count the copies of every sixth image that are found to be its copies."""
    random, rows = np.random.default_rng(0), range(0, len(files), EVERY)
    copies = []
    for row in rows:
        with Image.open(files[row]) as image:
            copies.append(thumbnail_of(change(image.convert("RGB"), random), quality))
    numbers = families([*thumbs, *copies])
    pairs = zip(numbers[list(rows)], numbers[len(files) :])
    return sum(int(one == two != NONE) for one, two in pairs)


def read(folder: str) -> tuple[list[Path], list[str]]:
    """Return the image files, and the group of each: its own name where the data have no groups.

    An image of unknown group, such as a test image of the mask layout, has none ("").
    """
    table = find_table(Config(data_dir=folder))
    assert isinstance(table.source, FileSource)
    files = [table.source.root / path for path in table.source.paths]
    if table.groups is None:
        return files, [str(file) for file in files]
    known = [split != "test" for split in table.splits]
    return files, [group if is_known else "" for group, is_known in zip(table.groups, known)]


def closest_others(thumbs: list[np.ndarray], files: list[Path], groups: Sequence[str]) -> str:
    """Name the most similar pair of several groups that is not taken for copies."""
    kept = np.stack(thumbs)
    best, words = 0.0, "none"
    for pairs in candidate_pairs(kept):
        for (a, b), value in zip(pairs, agreement(kept[pairs[:, 0]], kept[pairs[:, 1]])):
            others = "" not in (groups[a], groups[b]) and groups[a] != groups[b]
            if others and best < value < SAME:
                best, words = value, f"{files[a].name} and {files[b].name} ({value:.2f})"
    return words


def taken_for_copies(
    files: list[Path], groups: Sequence[str], thumbs: list[np.ndarray]
) -> list[str]:
    """Name the images that are found to be copies as they are, and in several groups."""
    members: dict[int, list[int]] = defaultdict(list)
    for row, number in enumerate(families(thumbs)):
        if number != NONE:
            members[int(number)].append(row)
    several = [rows for rows in members.values() if len({groups[row] for row in rows} - {""}) > 1]
    return [" = ".join(files[row].name for row in rows) for rows in several]


@script_main
def main(argv: list[str] | None = None) -> int:
    """Print a table of all folders together, and what is found among their images."""
    parser = Parser(prog="near_duplicates.py", description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    found, of = dict.fromkeys(WAYS, 0), 0
    for folder in asked.folders:
        files, groups = read(folder)
        thumbs = [thumbnail(decode_file(file)) for file in files]
        of += len(range(0, len(files), EVERY))
        for name, (change, quality) in WAYS.items():
            found[name] += found_of(change, quality, files, thumbs)
        pairs = taken_for_copies(files, groups, thumbs)
        print(f"{folder}: {len(files)} images; taken for copies: {'; '.join(pairs) or 'none'}")
        print(f"  the most similar others: {closest_others(thumbs, files, groups)}")
    print(f"| copies | found of {of} | share |\n| --- | --- | --- |")
    for name, count in found.items():
        print(f"| {name} | {count} | {count / of:.1%} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
