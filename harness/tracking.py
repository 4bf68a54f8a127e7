"""Trackers of a run: TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MOST_CLASSES = 30  # whose curves and cells a person looks at
CELL, BLUE = 26, (0, 114, 178)  # pixels of a cell, and its colour where all rows are


class TensorBoard:
    """One event file a run: scalars by step and by epoch, and the hyperparameters beside them."""

    def __init__(
        self, folder: Path, start_step: int, values: Mapping[str, Any], monitor: str
    ) -> None:
        # Imported here: a run that does not track need not load it.
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # What an interrupted epoch had written after `start_step` is purged from the page.
        self._writer = SummaryWriter(str(folder), purge_step=start_step or None)
        # SummaryWriter.add_hparams would open a second run; these go into the same event file.
        for summary in hparams(_plain(values), {monitor: 0.0}):
            self._writer._get_file_writer().add_summary(summary)

    def log_steps(self, first_step: int, losses: Sequence[float], lrs: Sequence[float]) -> None:
        """Write the loss and the learning rate of each step of an epoch."""
        for step, (loss, lr) in enumerate(zip(losses, lrs), start=first_step):
            self._writer.add_scalar("step/train_loss", loss, step)
            self._writer.add_scalar("step/lr", lr, step)

    def log_epoch(self, step: int, scores: Mapping[str, float]) -> None:
        """Write an epoch's scores at the step that it ended with."""
        for name, value in scores.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def log_best(
    folder: Path, step: int, probs: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> None:
    """Write what the best weights answer on validation: a confusion matrix, curves by class.

    `probs` is `[N, C]`, `labels` the true classes `[N]`. The file lies beside the scalars' own, so
    that TensorBoard shows one run; many classes are left to the report.
    """
    if len(classes) > MOST_CLASSES:
        return
    from torch.utils.tensorboard import SummaryWriter

    labels = np.asarray(labels)
    with SummaryWriter(str(folder), filename_suffix=".best") as writer:
        picture = confusion_picture(probs, labels, classes)
        writer.add_image("val/confusion", picture, step, dataformats="HWC")
        for number, name in enumerate(classes):
            writer.add_pr_curve(f"val_pr/{name}", labels == number, probs[:, number], step)


def confusion_picture(probs: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Draw a confusion matrix, a true class a row: uint8 `[H, W, 3]`."""
    from PIL import Image, ImageDraw, ImageFont

    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (labels, probs.argmax(axis=1)), 1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # [C, C]
    shade = 255 - share[..., None] * (255 - np.array(BLUE))  # [C, C, 3]
    cells = Image.fromarray(np.kron(shade, np.ones((CELL, CELL, 1))).round().astype(np.uint8))
    font = ImageFont.load_default(12)
    left = 10 + round(max(font.getlength(name) for name in classes))
    picture = Image.new("RGB", (left + cells.width, cells.height), "white")
    picture.paste(cells, (left, 0))
    pen = ImageDraw.Draw(picture)
    for row, name in enumerate(classes):
        middle = row * CELL + CELL // 2
        pen.text((left - 5, middle), name, "black", font, anchor="rm")
        for column in np.flatnonzero(counts[row]):
            colour = "white" if share[row, column] > 0.7 else "black"
            at = (left + column * CELL + CELL // 2, middle)
            pen.text(at, str(counts[row, column]), colour, font, anchor="mm")
    return np.asarray(picture)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Make each value a number, a text or a truth value, as the HParams page wants them."""
    plain: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, (bool, int, float, str)):
            plain[key] = value
        else:
            plain[key] = "none" if value is None else json.dumps(value, default=str)
    return plain
