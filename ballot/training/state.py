"""What learns: model, criterion, optimiser and schedule, and how to save and restore them."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ballot.errors import UserError
from ballot.training.group import Group
from ballot.training.profiler import Clock
from ballot.training.tensor_files import load_tensors, save_tensors
from ballot.values import Json

if TYPE_CHECKING:
    from torch.optim.swa_utils import AveragedModel

    from ballot.training.features import FrozenFeatures

Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


log = logging.getLogger(__name__)


def sample_of(model: torch.nn.Module) -> list[float]:
    """Return the first weight of every matrix and filter: alike for networks of one start alone.

    Norms and biases start as ones and zeros everywhere and tell nothing.
    """
    firsts = [p.detach().flatten()[0] for p in model.parameters() if p.ndim > 1]
    return [round(v, 7) for v in torch.stack(firsts).float().tolist()] if firsts else []


@dataclass(frozen=True)
class Goal:
    """The monitored score: what is reported, kept and searched for."""

    name: str  # such as "val_acc"
    mode: str  # "min" or "max"

    def better(self, score: float, best: float | None) -> bool:
        """Whether `score` beats the best so far."""
        return best is None or (score < best if self.mode == "min" else score > best)

    def gain(self, score: float) -> float:
        """Return the score as a number of which more is better."""
        return score if self.mode == "max" else -score

    def floor(self, num_classes: int) -> float:
        """Return a score that nothing which learnt has: what a failed trial is reported with."""
        return 0.0 if self.mode == "max" else 10 * math.log(max(num_classes, 2))


@dataclass
class TrainState:
    """All that changes while a model learns; `save` and `load` make it survive the process."""

    model: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any
    pretrained: bool = False  # whether the weights came from elsewhere
    amp: torch.dtype | None = None
    clip_grad: float = 0.0
    parts: int = 1  # pieces that a batch is taken in; doubled when memory runs out
    ema: AveragedModel | None = None
    features: FrozenFeatures | None = None  # in the place of images, where nothing else is trained
    group: Group = field(default_factory=Group)
    clock: Clock = field(default_factory=Clock)
    settled: bool = False  # whether `parts` is known to fit on every process
    epoch: int = 0  # epochs finished
    step: int = 0  # optimiser steps taken
    best_score: float | None = None
    best_epoch: int | None = None  # counted from 0
    best_scores: dict[str, float] = field(default_factory=dict)
    start: list[float] = field(default_factory=list)  # see `checkpoints.sample_of`
    settings: dict[str, Any] = field(default_factory=dict)  # of optimiser and schedule
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(enabled=self.amp is torch.float16)

    @property
    def scored(self) -> nn.Module:
        """The weights that are scored and kept: the averaged ones where there are any."""
        return self.model if self.ema is None else self.ema.get_submodule("module")

    def note_best(self, goal: Goal, scores: dict[str, float], *, keep_last: bool = False) -> bool:
        """Remember the epoch that has just ended if it is the best so far, or is to be kept."""
        if not keep_last and not goal.better(scores[goal.name], self.best_score):
            return False
        self.best_score, self.best_epoch = scores[goal.name], self.epoch - 1
        self.best_scores = scores
        return True

    def save(self, path: Path) -> None:
        """Write the state after an epoch: tensors, and JSON for the rest."""
        plain = {
            "epoch": self.epoch,
            "step": self.step,
            "parts": self.parts,
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "best_scores": self.best_scores,
            "start": self.start,
            "settings": self.settings,
        }
        ema = None if self.ema is None else self.ema.state_dict()
        whole = {
            "model": self.model,
            "criterion": self.criterion,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }
        states = {name: part.state_dict() for name, part in whole.items()}
        save_tensors(path, {**states, "ema": ema, "state": json.dumps(plain)})

    def load(self, path: Path, device: torch.device) -> None:
        """Go on where `save` was called; another model's checkpoint is a `UserError`.

        Other settings of the optimiser and the schedule than those that it was saved with count:
        another optimiser begins anew, another schedule at the epoch that has come.
        """
        saved = load_tensors(path, device)
        try:
            plain = json.loads(saved["state"])
            before, now = plain.pop("settings"), json.loads(json.dumps(self.settings))
            self.model.load_state_dict(saved["model"])
            if self.ema is not None:
                self.ema.load_state_dict(saved["ema"])
            criterion = self.criterion.state_dict()
            if saved["criterion"].keys() == criterion.keys():  # another one begins anew
                self.criterion.load_state_dict(saved["criterion"])
            if before.get("optimizer") == now.get("optimizer"):
                self._load_optimizer(saved["optimizer"], before != now)
            else:
                log.warning("optimizer %s begins anew, without a state", now["optimizer"])
            schedules = [(of.get("scheduler"), of.get("scheduler_args")) for of in (before, now)]
            if schedules[0] != schedules[1]:
                saved["schedule"]["curve"] = {}
            self.schedule.load_state_dict(saved["schedule"])
            self.scaler.load_state_dict(saved["scaler"])
            for key, value in plain.items():
                setattr(self, key, value)
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{path}: does not fit this configuration ({reason}); "
                "resume with the model and optimiser it was made with"
            ) from None

    def load_best(self, path: Path, device: torch.device) -> tuple[Json, Json]:
        """Take the weights of the best epoch; return all that is saved with them, and its facts."""
        saved = load_tensors(path, device)
        try:
            self.scored.load_state_dict(saved["model"])
            return saved, json.loads(saved["about"])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{path}: is not the best epoch of this run ({reason}); "
                "train under another --run_name"
            ) from None

    def _load_optimizer(self, saved: dict[str, Any], changed: bool) -> None:
        """Take up the optimiser's state; where its settings `changed`, those of now stay."""
        kept = {"initial_lr", "weight_decay", *self.settings.get("optimizer_args", {})}
        groups = [
            {key: value for key, value in group.items() if key in kept}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(saved)
        for group, now in zip(self.optimizer.param_groups, groups):
            group.update(now if changed else {})


def make_ema(model: nn.Module, decay: float) -> AveragedModel | None:
    """Average the weights exponentially (Polyak and Juditsky, 1992); a decay of 0 is off."""
    if not decay:
        return None
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    @torch.no_grad()
    def average(kept: Tensors, now: Tensors, steps: torch.Tensor | int) -> None:
        if not kept[0].is_floating_point():  # a place in a table has no mean
            for old, new in zip(kept, now):
                old.copy_(new)
            return
        # With the full decay from the first step on, a short run would keep its start.
        done = float(steps)
        get_ema_multi_avg_fn(min(decay, (1 + done) / (10 + done)))(kept, now, steps)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
