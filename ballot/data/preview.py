"""What a person sees of a data set before training: a page of facts, a sheet of samples."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ballot.data.image_cache import cache_folder, list_caches, remove_stale
from ballot.data.images import ArraySource, FileSource
from ballot.data.prepare import Examined, cut_away

if TYPE_CHECKING:
    from PIL import Image

    from ballot.config.schema import Config


SIZES_FROM = 2000  # files whose headers are read for the sizes
COLUMNS, MOST_ROWS = 9, 18  # of the contact sheet


def describe(found: Examined, config: Config) -> str:
    """Say what a data set is, a fact a line."""
    table = found.table
    known = table.rows_of("train", "val")
    test = found.test
    labelled = "labelled" if len(test) and (table.labels[test] >= 0).all() else "unlabelled"
    lines = [
        f"data      {config.data_dir or table.name}",
        f"layout    {table.layout}",
        f"images    {len(known)} to train and validate on, {len(test)} to test on"
        + (f" ({labelled})" if len(test) else ""),
        f"sizes     {_sizes(found)}; shown as {found.size}x{found.size}",
        f"split     {_split(found, config)}",
        f"classes   {len(table.classes)}",
    ]
    counts = np.bincount(table.labels[known], minlength=len(table.classes))
    wide = max(len(name) for name in table.classes)
    for name, count in zip(table.classes, counts):
        bar = "#" * round(30 * count / counts.max())
        lines.append(f"  {name:{wide}}  {count:6d}  {count / len(known):6.1%}  {bar}")
    note = cut_away(found)
    lines += [f"note      {note}"] if note else []
    lines.append("problems  " + ("none" if not found.problems else ""))
    for problem in found.problems:
        severe = problem.fatal or config.strict
        lines.append(f"  {'error' if severe else 'warning'}: {problem}")
    return "\n".join(lines)


def _sizes(found: Examined) -> str:
    source = found.table.source
    if isinstance(source, ArraySource):
        return f"{source.array.shape[2]}x{source.array.shape[1]}, in memory"
    if not isinstance(source, FileSource):
        return "as torchvision gives them"
    from PIL import Image

    rows = np.linspace(0, len(source) - 1, min(SIZES_FROM, len(source))).astype(int)
    sizes: Counter[str] = Counter()
    for row in rows:
        try:
            with Image.open(source.root / source.paths[row]) as image:
                sizes["{}x{} {}".format(*image.size, image.format)] += 1
        except (OSError, ValueError, Image.DecompressionBombError):
            sizes["not readable"] += 1
    listed = [f"{size} ({count})" for size, count in sizes.most_common(3)]
    others = len(sizes) - len(listed)
    return ", ".join(listed) + (f" and {others} more" if others > 0 else "")


def _split(found: Examined, config: Config) -> str:
    pairs, groups = found.pairs, found.table.groups
    by = (
        "the data's own"
        if "val" in found.table.splits and config.folds == 1
        else (
            f"by group, stratified by label, seed {config.seed}"
            if groups is not None
            else f"by row, stratified by label, seed {config.seed}"
        )
    )
    text = " / ".join(f"{len(train)} + {len(val)}" for train, val in pairs) + f" ({by})"
    if groups is not None:
        known = found.table.rows_of("train", "val")
        text += f"; {len({groups[row] for row in known})} groups"
    return text


def draw_sheet(found: Examined, path: Path, config: Config) -> str:
    """Draw samples as PNG, a class a row: as validation sees one, then as training draws it.

    Where training changes nothing, other images of the class are shown instead. Returns what is
    done to training images.
    """
    from PIL import Image, ImageDraw, ImageFont

    changes = bool(found.recipes["train"].steps or found.mixer)
    labels, columns = _samples(found, config.seed, changes)
    names = [found.table.classes[label] for label in labels]
    side, font = min(max(found.size, 96), 160), ImageFont.load_default(14)
    left, top, step = 20 + round(max(map(font.getlength, names))), 28, side + 4
    sheet = Image.new("RGB", (left + COLUMNS * step, top + len(labels) * step), "white")
    pen = ImageDraw.Draw(sheet)
    what = "pipeline" if "train" in config.pipeline else config.augmentation
    shown = f"{what} at {found.size}x{found.size}"
    title = f"training: {shown}" + ("" if changes else ", which changes nothing; more images")
    pen.text((left, 6), "validation", "black", font)
    pen.text((left + step, 6), title, "black", font)
    for line, name in enumerate(names):
        y = top + line * step
        pen.text((8, y + side // 2 - 8), name, "black", font)
        for place, images in enumerate(columns):
            picture = Image.fromarray(images[line].permute(1, 2, 0).numpy())
            picture = picture.resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(picture, (left + place * step, y))
    _save(sheet, path)
    return shown


def draw_rows(found: Examined, rows: list[int], captions: list[str], path: Path) -> int:
    """Draw the first of `rows` as validation sees them, each above its caption; PNG.

    Returns how many were drawn.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows = rows[: COLUMNS * MOST_ROWS]
    side, font = min(max(found.size, 96), 160), ImageFont.load_default(11)
    wide, high = side + 4, side + 20
    lines = -(-len(rows) // COLUMNS)
    sheet = Image.new("RGB", (min(len(rows), COLUMNS) * wide, lines * high), "white")
    pen = ImageDraw.Draw(sheet)
    for place, row in enumerate(rows):
        x, y = place % COLUMNS * wide, place // COLUMNS * high
        image = _shown(found, [row], "val", 0)[0]
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        sheet.paste(picture.resize((side, side), Image.Resampling.BICUBIC), (x, y))
        pen.text((x + 2, y + side + 3), captions[place][: side // 6], "black", font)
    _save(sheet, path)
    return len(rows)


def _save(sheet: Image.Image, path: Path) -> None:
    """Write a PNG that appears under its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    sheet.save(partial, format="PNG")
    os.replace(partial, path)  # noqa: PTH105


def _samples(found: Examined, seed: int, changes: bool) -> tuple[list[int], list[torch.Tensor]]:
    """Classes of the sheet's rows and, for each column, images uint8 [rows, 3, S, S]."""
    rng = np.random.default_rng(seed)
    train = found.pairs[0][0]
    of_row = found.table.labels[train]
    present = np.unique(of_row)
    spread = np.linspace(0, len(present) - 1, min(MOST_ROWS, len(present))).astype(int)
    labels = present[spread].tolist()
    picked = [rng.permutation(train[of_row == label]) for label in labels]
    columns = []
    for k in range(COLUMNS):
        other = 0 if changes else k
        rows = [int(rows[other % len(rows)]) for rows in picked]
        columns.append(_shown(found, rows, "train" if k else "val", seed + k))
    return labels, columns


def _shown(found: Examined, rows: list[int], stage: str, seed: int) -> torch.Tensor:
    """Images uint8 [N, 3, S, S] after the steps of a stage, before the normalisation."""
    recipe = found.recipes[stage]
    images = next(iter(found.stores[stage].stream([np.array(rows)])))
    rng = np.random.default_rng(seed)
    for step in recipe.steps:
        images = step(images, rng)
    if stage == "train" and found.mixer is not None:
        labels = torch.from_numpy(found.table.labels[rows])
        images, _ = found.mixer(images, labels, rng)
    if recipe.normalised:  # by numbers of the pipeline's own: spread what there is
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        images = (images - low) / (high - low).clamp(min=1e-6) * 255
    return images.float().round().clamp(0, 255).to(torch.uint8)


def clean_cache(option: str) -> str:
    """List the caches of decoded images, remove the stale ones, and say what was done."""
    folder = cache_folder(option)
    if folder is None:
        return "cache: is off; there is nothing to clean"
    found = list_caches(folder)
    removed = {cached.path for cached in remove_stale(folder)}
    lines = [f"cache     {folder}"]
    for cached in found:
        fate = f"removed: {cached.stale}" if cached.path in removed else "kept"
        what = f"{cached.count} images of {cached.label}" if cached.label else cached.path.name
        lines.append(f"  {cached.size / 2**20:8.1f} MiB  {what}: {fate}")
    lines.append(f"{len(removed)} removed, {len(found) - len(removed)} kept")
    return "\n".join(lines)
