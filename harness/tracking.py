"""Trackers of a run: TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


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
            self._writer.file_writer.add_summary(summary)

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


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Make each value a number, a text or a truth value, as the HParams page wants them."""
    plain: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, (bool, int, float, str)):
            plain[key] = value
        else:
            plain[key] = "none" if value is None else json.dumps(value, default=str)
    return plain
