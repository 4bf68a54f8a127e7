"""One epoch of training, prediction, and the state that a checkpoint holds."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ballot.data.batches import Batch, piece
from ballot.errors import TrialFailed
from ballot.training.data_parallel import SharedNorm, add_gradients, as_it_was, shares, whole_logits
from ballot.training.group import Group
from ballot.training.process import is_out_of_memory, precision
from ballot.training.state import TrainState

log = logging.getLogger(__name__)


@dataclass
class Epoch:
    """What one training epoch gave: its loss, each step's loss and rate, the predictions."""

    loss: float
    step_losses: list[float]
    step_lrs: list[float]
    probs: np.ndarray  # [N, C] float32, as the rows were drawn
    targets: np.ndarray  # [N] int64
    images_per_second: float


@dataclass
class Predictions:
    """Probabilities of a subset's rows, in the order of the rows."""

    probs: np.ndarray  # [N, C] float32
    loss: float


def train_one_epoch(state: TrainState, batches: Iterable[Batch], bar: object = None) -> Epoch:
    """Take one step a batch; nothing waits for the device before the epoch ends.

    Among several processes the images are this one's, the targets those of the whole batch.
    Raises `TrialFailed` where one image does not fit into memory or the loss is not finite.
    """
    state.model.train()
    losses: list[torch.Tensor] = []
    lrs: list[float] = []
    logits: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    sizes: list[int] = []
    began = time.perf_counter()
    for images, targets in state.clock.each(batches):
        if state.group.size > 1 and not state.settled:
            _settle_parts(state, images, targets)
        groups = state.optimizer.param_groups
        lrs.append(max(group["lr"] for group in groups if "beside" not in group))
        loss, output = _step(state, images, targets)
        losses.append(loss)
        logits.append(output)
        labels.append(targets if targets.ndim == 1 else targets.argmax(dim=1))
        sizes.append(len(targets))
        if bar is not None:
            _show(bar, losses, output, labels[-1], len(targets))
    step_losses = torch.stack(losses).tolist()  # the one transfer of the epoch
    seconds = time.perf_counter() - began
    mean = float(np.average(step_losses, weights=sizes))
    if not math.isfinite(mean):
        raise TrialFailed(f"the loss stopped being finite in epoch {state.epoch + 1}")
    return Epoch(
        mean,
        step_losses,
        lrs,
        _softmax(logits),
        torch.cat(labels).cpu().numpy(),
        sum(sizes) / seconds,
    )


def _step(
    state: TrainState, images: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make one optimiser step on a batch; out of memory halves the pieces it is taken in."""
    while True:
        try:
            state.optimizer.zero_grad(set_to_none=True)
            loss, logits = _forward_backward(state, images, targets)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or state.group.size > 1:
                raise
            if state.parts >= len(images):
                raise TrialFailed("out of memory with a single image") from None
        # Outside the handler: the traceback would hold the tensors that have to go.
        state.optimizer.zero_grad(set_to_none=True)
        _halve(state)
    with state.clock.part("step"):
        if state.clip_grad:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), state.clip_grad)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.schedule.step_batch()
        if state.ema is not None:
            state.ema.update_parameters(state.model)
    state.step += 1
    return loss, logits


def _halve(state: TrainState) -> None:
    _empty_cache()
    state.parts *= 2
    log.warning("out of memory: batches are now taken in %d parts", state.parts)


def _forward_backward(
    state: TrainState, images: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add up the gradient of the batch's mean loss over its parts."""
    if state.group.size > 1:
        return _share_backward(state, images, targets)
    parts = min(state.parts, len(images))
    total = torch.zeros((), device=images.device)
    outputs = []
    for x, y in zip(images.tensor_split(parts), targets.tensor_split(parts)):
        with state.clock.part("forward"), precision(x, state.amp):
            logits = state.model(x)
            loss = state.criterion(logits, y) * (len(x) / len(images))
        with state.clock.part("backward"):
            state.scaler.scale(loss).backward()
        total += loss.detach()
        outputs.append(logits.detach())
    return total, torch.cat(outputs)


def _share_backward(
    state: TrainState, images: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do the same for this process's share of the batch, and add up over the processes.

    A batch of fewer rows than processes is taken by each as a whole.
    """
    group, count = state.group, len(targets)
    shared = count >= group.size
    counts = shares(count, group.size) if shared else [count] * group.size
    parts = min(state.parts, min(counts))
    total, logits = torch.zeros((), device=images.device), []
    # Rows of the whole batch that the parts of each process stand for, process by process.
    rows = torch.arange(count, device=images.device).split(counts) if shared else ()
    for number, x in enumerate(images.tensor_split(parts)):
        with state.clock.part("forward"), precision(x, state.amp):
            with SharedNorm(group) if shared else contextlib.nullcontext():
                output = state.model(x)
            if shared:
                pieces = [own.tensor_split(parts)[number] for own in rows]
                output = whole_logits(output, [len(own) for own in pieces], group)
                y = targets[torch.cat(pieces)]
            else:
                y = targets.tensor_split(parts)[number]
            loss = state.criterion(output, y) * (len(y) / count)
        with state.clock.part("backward"):
            state.scaler.scale(loss).backward()
        total += loss.detach()
        logits.append((torch.cat(pieces) if shared else None, output.detach()))
    with state.clock.part("backward"):
        add_gradients(state.model, group, 1.0 if shared else 1 / group.size)
    if not shared:
        return total, torch.cat([output for _, output in logits])
    order = torch.cat([own for own, _ in logits if own is not None]).argsort()
    return total, torch.cat([output for _, output in logits])[order]


def _settle_parts(state: TrainState, images: torch.Tensor, targets: torch.Tensor) -> None:
    """Find out before the first step what fits into memory, on the fullest device of all.

    A process that ran out of it within a step would leave the others waiting for its answers.
    """
    own = targets[piece(len(targets), state.group.rank, state.group.size)]
    alone = TrainState(
        state.model,
        state.criterion,
        state.optimizer,
        state.schedule,
        amp=state.amp,
        parts=state.parts,
    )
    with state.group.together():
        while True:
            try:
                with as_it_was(state.model), SharedNorm(Group()):  # which takes single rows too
                    _forward_backward(alone, images, own)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if alone.parts >= len(images):
                    raise TrialFailed("out of memory with a single image") from None
            _halve(alone)
    most = state.group.rows(torch.tensor([alone.parts]), [1] * state.group.size)
    state.parts, state.settled = int(most.max()), True


def _show(
    bar: Any, losses: list[torch.Tensor], logits: torch.Tensor, labels: torch.Tensor, n: int
) -> None:
    # Reading a loss waits for the device: only as often as the bar is drawn.
    if bar.n == 0 or time.time() - bar.last_print_t >= bar.mininterval:
        accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
        bar.set_postfix_str(f"loss {losses[-1].item():.3f}, acc {accuracy:.3f}", refresh=False)
    bar.update(n)


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    amp: torch.dtype | None = None,
    criterion: nn.Module | None = None,
    group: Group | None = None,
) -> Predictions:
    """Predict every row once; the loss is the criterion of all rows at once, not a mean of means.

    Rows without a label (target -1) get probabilities and take no part in the loss. In a `group`
    the images are this process's part of each batch; all of them get all predictions.
    """
    group = group or Group()
    model.eval()
    logits: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    with group.together():
        for images, labels in batches:
            logits.append(_forward(model, images, amp))
            targets.append(labels)
    if group.size > 1:
        logits = [rows_of_all(logits, [len(labels) for labels in targets], group)]
    loss = math.nan
    if criterion is not None:
        known = torch.cat(targets) >= 0
        loss = criterion(torch.cat(logits)[known].float(), torch.cat(targets)[known]).item()
    return Predictions(_softmax(logits), loss)


def _forward(model: nn.Module, images: torch.Tensor, amp: torch.dtype | None) -> torch.Tensor:
    parts = 1
    while True:
        try:
            with precision(images, amp):
                return torch.cat([model(x) for x in images.tensor_split(parts)])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if parts >= len(images):
                raise TrialFailed("out of memory with a single image") from None
        _empty_cache()
        parts *= 2


def rows_of_all(logits: list[torch.Tensor], batches: list[int], group: Group) -> torch.Tensor:
    """Put together what the processes have predicted of batches of these sizes, in one transfer."""
    starts = np.cumsum([0, *batches[:-1]])
    own = [
        np.concatenate(
            [np.arange(n)[piece(n, rank, group.size)] + start for n, start in zip(batches, starts)]
        )
        for rank in range(group.size)
    ]
    everyone = group.rows(torch.cat(logits), [len(rows) for rows in own])
    whole = everyone.new_empty(sum(batches), everyone.shape[1])
    whole[torch.from_numpy(np.concatenate(own)).to(whole.device)] = everyone
    return whole


def _softmax(logits: list[torch.Tensor]) -> np.ndarray:
    # In double precision, on the CPU, so that the rows of the float32 result sum to one.
    return torch.cat(logits).float().cpu().double().softmax(dim=1).float().numpy()


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
