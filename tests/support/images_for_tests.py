"""Small image files and folders of them, made by the tests that need them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def photo(seed: int, width: int = 48, height: int = 64) -> Image.Image:
    """Make a soft picture with grain, different for every seed."""
    rng = np.random.default_rng(seed)
    soft = rng.integers(0, 256, (4, 3, 3), dtype=np.uint8)
    array = np.asarray(Image.fromarray(soft).resize((width, height), Image.Resampling.BICUBIC))
    noisy = np.clip(array + rng.normal(0, 5, array.shape), 0, 255)
    return Image.fromarray(noisy.astype(np.uint8))


def save(path: Path, seed: int, **size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(seed, **size).save(path, **({"quality": 90} if path.suffix.lower() != ".png" else {}))
    return path


def class_folders(
    root: Path, classes: dict[str, int], start: int = 0, suffix: str = ".jpg", **size: int
) -> Path:
    """Fill `root` with a folder a class; seeds go on from `start`, so that no two are alike."""
    seed = start
    for name, count in classes.items():
        for k in range(count):
            save(root / name / f"{name}-{k}{suffix}", seed, **size)
            seed += 1
    return root


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def mask_competition(root: Path, people: int = 12, tests: int = 3) -> Path:
    """Make the mask competition's folder with mixed extensions and junk beside the images."""
    suffixes = (".jpg", ".JPG", ".jpeg", ".png")
    listed, seed = [], 0
    for k in range(people):
        person = f"{k:06d}" + ("-1" if k == 1 else "")
        name = f"{person}_{('male', 'female')[k % 2]}_Asian_{(20, 30, 59, 60)[k % 4]}"
        listed.append({"id": person, "gender": "", "race": "Asian", "age": "20", "path": name})
        for n, stem in enumerate((*(f"mask{m}" for m in range(1, 6)), "incorrect_mask", "normal")):
            file = root / "train" / "images" / name / f"{stem}{suffixes[n % 4]}"
            save(file, seed, width=16, height=20)
            seed += 1
        (root / "train" / "images" / name / "._mask1.jpg").write_bytes(b"junk")
    table(root / "train" / "train.csv", listed)
    rows = []
    for k in reversed(range(tests)):  # the order of info.csv is not the order of the names
        save(root / "eval" / "images" / f"{k:03d}.jpg", 10_000 + k, width=16, height=20)
        rows.append({"ImageID": f"{k:03d}.jpg", "ans": "0"})
    if rows:
        table(root / "eval" / "info.csv", rows)
    return root
