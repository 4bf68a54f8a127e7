"""Predict new images: decoded once for all members, shown as each was trained, put together.

Nothing is kept of an image but its probabilities, so that a folder may hold any number of them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ballot.data.augment import Recipe
from ballot.data.batches import normalise
from ballot.data.images import Geometry, UnreadableImage, decode_file
from ballot.errors import UserError
from ballot.prediction import tta
from ballot.prediction.checkpoints import Checkpoint, Electorate, fill, read_checkpoint
from ballot.training import loop
from ballot.training.blocks import arrange, ordered
from ballot.vote import combine
from ballot.wording import few

AHEAD = 2  # batches being decoded while one is predicted

# The two things that only catalogues know: how test images are shown, and the network itself.
Show = Callable[[Checkpoint], Recipe]
Build = Callable[[Checkpoint], torch.nn.Module]
Read = Callable[[int], torch.Tensor]  # decodes an image to uint8 [3, H, W], by its number


@dataclass(frozen=True)
class Network:
    """One checkpoint ready to predict; `order` puts its classes into the vote's order."""

    checkpoint: Checkpoint
    model: torch.nn.Module
    recipe: Recipe
    order: list[int]


@dataclass(frozen=True)
class Predictor:
    """A vote whose networks are loaded; a single run is a vote of one."""

    electorate: Electorate
    networks: list[list[list[Network]]]  # of each voter the runs, of each run the folds

    @property
    def flat(self) -> list[Network]:
        """All networks."""
        return [n for voter in self.networks for run in voter for n in run]

    @property
    def geometries(self) -> list[Geometry]:
        """The different ways in which images are brought to size: each is decoded for once."""
        return list(dict.fromkeys(n.recipe.geometry for n in self.flat))


@dataclass
class Answers:
    """What was predicted; `probs` is [N, C] float32 in the order of the vote's `columns`."""

    rows: list[int] = field(default_factory=list)  # of the images asked for
    probs: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    unreadable: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0


def load_predictor(
    electorate: Electorate, build: Build, show: Show, device: torch.device
) -> Predictor:
    """Build every network and load its weights; classes that do not line up are a `UserError`."""
    classes = electorate.classes

    def load(path: Path) -> Network:
        saved = read_checkpoint(path)
        if sorted(saved.classes) != sorted(classes):
            odd = sorted(set(saved.classes) ^ set(classes))
            raise UserError(f"{path}: its classes are not the vote's; they differ in {few(odd)}")
        model = fill(build(saved), saved).eval().to(device)
        model = arrange(model, saved.config.channels_last)
        place = {name: number for number, name in enumerate(saved.classes)}
        return Network(saved, model, show(saved), [place[name] for name in classes])

    networks = [[[load(p) for p in run] for run in voter.runs] for voter in electorate.voters]
    return Predictor(electorate, networks)


def predict(
    predictor: Predictor,
    paths: Sequence[Path],
    *,
    device: torch.device,
    batch_size: int = 64,
    workers: int = 2,
    amp: torch.dtype | None = None,
    views: Sequence[str] | None = None,
) -> Answers:
    """Predict every image that can be read, and name the others with the reason.

    Without `views` each network looks at an image as its run did.
    """

    def read(row: int) -> torch.Tensor:
        return decode_file(paths[row])

    shapes = predictor.geometries
    batches = decoded(read, len(paths), shapes, batch_size, workers)
    return predict_batches(predictor, batches, device, amp, views, paths)


Decoded = tuple[list[int], dict[Geometry, torch.Tensor], dict[int, str]]  # see `decoded`


def predict_batches(
    predictor: Predictor,
    batches: Iterable[Decoded],
    device: torch.device,
    amp: torch.dtype | None = None,
    views: Sequence[str] | None = None,
    paths: Sequence[Path] = (),
) -> Answers:
    """Predict what `decoded` yields; `paths` are for messages."""
    began, answers, found = time.perf_counter(), Answers(), []
    for number, (rows, images, bad) in enumerate(batches):
        answers.unreadable |= bad
        if rows:
            answers.rows += rows
            on_device = {shape: batch.to(device) for shape, batch in images.items()}
            files = [paths[row] for row in rows] if paths else []
            found.append(answer(predictor, on_device, number, amp, views, files))
    if found:
        columns = predictor.electorate.columns
        place = {name: number for number, name in enumerate(predictor.electorate.classes)}
        probs = np.concatenate(found)[:, [place[name] for name in columns]]
        answers.probs = probs.astype(np.float32)
    answers.seconds = time.perf_counter() - began
    return answers


def decoded(
    read: Read, count: int, geometries: Sequence[Geometry], batch_size: int, workers: int
) -> Iterator[Decoded]:
    """Yield, batch by batch, rows, their uint8 [B, 3, S, S] in each geometry, and what failed.

    An image is read and decoded once, in a thread, whatever the number of geometries.
    """

    def work(row: int) -> list[np.ndarray] | str:
        try:
            image = read(row)
        except UnreadableImage as error:
            return str(error)
        return [np.ascontiguousarray(shape.fit(image).numpy()) for shape in geometries]

    parts = iter([range(k, min(k + batch_size, count)) for k in range(0, count, batch_size)])
    waiting: deque[tuple[range, list[Future[list[np.ndarray] | str]]]] = deque()
    pool = ThreadPoolExecutor(max(1, workers))

    def submit() -> None:
        if (part := next(parts, None)) is not None:
            waiting.append((part, [pool.submit(work, row) for row in part]))

    try:
        for _ in range(AHEAD):
            submit()
        while waiting:
            part, futures = waiting.popleft()
            done = {row: future.result() for row, future in zip(part, futures)}
            submit()
            bad = {row: images for row, images in done.items() if isinstance(images, str)}
            good = {row: images for row, images in done.items() if not isinstance(images, str)}
            stacked = [torch.from_numpy(np.stack(images)) for images in zip(*good.values())]
            yield list(good), dict(zip(geometries, stacked)), bad
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def answer(
    predictor: Predictor,
    images: dict[Geometry, torch.Tensor],
    number: int = 0,
    amp: torch.dtype | None = None,
    views: Sequence[str] | None = None,
    files: Sequence[Path] = (),
) -> np.ndarray:
    """Return the vote's float64 [B, C] on a batch, given in each geometry, in its classes' order.

    Rounded where a run's CSV would be: after the mean over the views of a network, and over the
    folds of a run. Answers that are not finite are a `UserError`, which names the first of `files`
    that has one.
    """

    def of_voter(runs: list[list[Network]]) -> np.ndarray:
        total: Any = 0.0
        for run in runs:
            folds = [_probs(n, images[n.recipe.geometry], number, amp, views) for n in run]
            for network, probs in zip(run, folds, strict=True):
                _check_finite(network, probs, files)
            total = total + tta.mean_of(folds).astype(np.float64)
        return np.asarray(total / len(runs))

    return combine.combine(predictor.electorate.recipe, map(of_voter, predictor.networks))


def _check_finite(network: Network, probs: np.ndarray, files: Sequence[Path]) -> None:
    """Refuse answers that are no numbers, of which a vote by ranks would make some."""
    bad = np.flatnonzero(~np.isfinite(probs).all(axis=1))
    if len(bad):
        where = f" on {files[bad[0]]}" if len(files) else ""
        raise UserError(
            f"{network.checkpoint.path}: its answers{where} are not finite numbers; "
            "try --amp off, or leave this network out"
        )


def _probs(
    network: Network,
    images: torch.Tensor,
    number: int,
    amp: torch.dtype | None,
    names: Sequence[str] | None,
) -> np.ndarray:
    """Probabilities [B, C] float32 of one network: the mean over the views of each image."""
    found = []
    for view in tta.views(images, network.checkpoint.tta if names is None else names):
        x = as_seen(network.checkpoint, network.recipe, network.model, view, number)
        labels = torch.zeros(len(x), dtype=torch.int64)
        found.append(loop.predict(network.model, [(x, labels)], amp).probs)
    return tta.mean_of(found)[:, network.order]


def as_seen(
    saved: Checkpoint, recipe: Recipe, model: torch.nn.Module, images: torch.Tensor, number: int = 0
) -> torch.Tensor:
    """Return decoded images uint8 [B, 3, S, S] as a network takes them: float32, normalised."""
    rng = np.random.default_rng([0, 0, 1, number])  # as `Subset.batches` draws for test rows
    x = images.clone() if recipe.steps else images  # steps may write in place
    for step in recipe.steps:
        x = step(x, rng)
    if not recipe.normalised:
        out = torch.empty(x.shape) if x.device.type == "cpu" else None
        x = normalise(x, saved.mean, saved.std, out)
    return ordered(model, x)
