"""Batches of normalised images, their targets, and what a training script asks of its data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ballot.data.attributes import Attribute
from ballot.data.augment import Mixer, Step
from ballot.data.images import Buffers, Store, one_thread, sent
from ballot.data.tables import SoftRows, Submission, Table

Batch = tuple[torch.Tensor, torch.Tensor]  # images [N, C, H, W], targets [N] or [N, C]


@dataclass(frozen=True)
class Look:
    """How stored images become what a model sees: steps on whole batches, then the normalisation.

    `normalised` says that the steps end with a normalisation of their own.
    """

    store: Store
    mean: tuple[float, ...]
    std: tuple[float, ...]
    steps: tuple[Step, ...] = ()
    mixer: Mixer | None = None
    normalised: bool = False


class Subset:
    """Rows of a data set on one side of a split.

    With `soft` labels there are further rows, `added` of them at the end, and the `targets` of all
    rows are probabilities [N, C]; `labels` of the added ones are the likeliest classes.
    """

    def __init__(
        self,
        table: Table,
        rows: np.ndarray,
        *,
        train: Look,
        plain: Look,
        weighted: bool = False,
        soft: SoftRows | None = None,
    ) -> None:
        self.rows = rows
        self.ids = [table.ids[r] for r in rows]
        self.labels = table.labels[rows]
        self.groups = None if table.groups is None else [table.groups[r] for r in rows]
        self.classes = table.classes
        self._train, self._plain = train, plain
        self._weighted = weighted
        self._floats = Buffers(np.float32)
        self.targets: np.ndarray | None = None
        self.added = 0
        if soft is not None:
            self._soften(soft)

    def _soften(self, soft: SoftRows) -> None:
        """Let rows have the targets of `soft`, and add its rows."""
        targets = np.eye(len(self.classes), dtype=np.float32)[self.labels]
        for place, row in enumerate(self.rows.tolist()):
            if row in soft.targets:
                targets[place] = soft.targets[row]
        self.targets = np.concatenate([targets, soft.probs])
        self.added = len(soft.rows)
        self.rows = np.concatenate([self.rows, soft.rows])
        self.ids = [*self.ids, *soft.ids]
        self.labels = np.concatenate([self.labels, soft.probs.argmax(axis=1)])
        if self.groups is not None:
            self.groups = [*self.groups, *[""] * self.added]

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        epoch: int | None = None,
        train: bool = False,
        seed: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images float32 [B, 3, H, W], normalised, and targets int64 [B], both on `device`.

        Of rows with soft labels the targets are float32 [B, C].

        With `train` rows are drawn and augmented by chance that derives from `(seed, epoch)` alone,
        and mixing makes the targets soft [B, C]; a last batch of one image joins the one before,
        because batch normalisation needs two. Without it every row comes once, in order.

        `part` (k, n) gives the images of the k-th of n processes alone, beside the targets of the
        whole batch; they are those that one process has, drawn and augmented alike.
        """
        device = torch.device(device)
        batches = self.places(batch_size, epoch=epoch, train=train, seed=seed)
        look = self._train if train else self._plain
        # Chance is drawn for a batch, and mixing needs all of it: the part is taken out after it.
        early = not (look.steps or look.mixer)
        pieces = [piece(len(batch), *part) for batch in batches]
        read = [batch[own] if early else batch for batch, own in zip(batches, pieces)]
        stream = look.store.stream([self.rows[rows] for rows in read])
        truth = self.labels if self.targets is None else self.targets
        for number, (batch, own, images) in enumerate(zip(batches, pieces, stream)):
            targets = sent(torch.from_numpy(truth[batch]), device)
            images = sent(images, device)
            rng = np.random.default_rng([seed, epoch or 0, 1, number])
            for step in look.steps:
                images = step(images, rng)
            if look.mixer is not None:
                images, targets = look.mixer(images, targets, rng)
            yield self._normalise(images if early else images[own], look), targets

    def places(
        self, batch_size: int, *, epoch: int | None = None, train: bool = False, seed: int = 0
    ) -> list[np.ndarray]:
        """Return the places in this subset of the images of each batch; see `batches`."""
        order = self._drawn_order(seed, epoch or 0) if train else np.arange(len(self))
        return cut(order, batch_size, join_last=train)

    @property
    def augmented(self) -> bool:
        """Whether a model is shown other images in training than in validation."""
        train, plain = self._train, self._plain
        return bool(train.steps != plain.steps or train.mixer or train.store is not plain.store)

    def _drawn_order(self, seed: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([seed, epoch, 0])
        if not self._weighted:
            return rng.permutation(len(self))
        counts = np.bincount(self.labels, minlength=len(self.classes))
        share = 1.0 / counts[self.labels]
        return rng.choice(len(self), size=len(self), p=share / share.sum())

    def _normalise(self, images: torch.Tensor, look: Look) -> torch.Tensor:
        """Normalise images that no step has normalised, into a buffer that was made once."""
        if look.normalised:
            return images
        on_cpu = images.device.type == "cpu"
        out = self._floats.take(tuple(images.shape)) if on_cpu else None
        return normalise(images, look.mean, look.std, out)


def normalise(
    images: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Bring 0..255 to (x / 255 - mean) / std, image by image into `out` where it is given."""
    middle = sent(torch.tensor(mean).view(-1, 1, 1) * 255, images.device)
    scale = sent(1 / (torch.tensor(std).view(-1, 1, 1) * 255), images.device)
    if out is None:
        return images.float().sub_(middle).mul_(scale)
    with one_thread():
        for image, source in zip(out, images):  # one at a time stays within a core's cache
            image.copy_(source).sub_(middle).mul_(scale)
    return out


def piece(count: int, part: int, parts: int) -> slice:
    """Return the `part`-th of `parts` pieces of `count` rows; of fewer rows each takes all."""
    if count < parts:
        return slice(0, count)
    return slice(count * part // parts, count * (part + 1) // parts)


def cut(order: np.ndarray, batch_size: int, *, join_last: bool) -> list[np.ndarray]:
    """Cut `order` into batches; with `join_last` a single left-over row joins the last batch."""
    starts = list(range(0, len(order), batch_size))
    if join_last and batch_size > 1 and len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    return [order[a:b] for a, b in zip(starts, [*starts[1:], len(order)])]


@dataclass(frozen=True)
class Fold:
    """One pair of training and validation rows."""

    index: int
    train: Subset
    val: Subset


@dataclass(frozen=True)
class Data:
    """Everything a trial asks of its data; see `dataset.load_data`."""

    name: str
    classes: list[str]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    folds: list[Fold]
    test: Subset | None
    submission: Submission
    fingerprint: str
    weighting: str = "none"
    pixels: str = ""  # a hash of all images as decoded
    crop: int = 0  # see `Table.crop`
    attributes: tuple[Attribute, ...] = ()  # see `Table.attributes`
    excluded: Sequence[str] = ()  # ids of rows that were left out by hand

    def class_weights(
        self, fold: Fold, of_class: Sequence[int] | None = None
    ) -> torch.Tensor | None:
        """Weights [C] of the classes in the fold's training rows, mean 1 a row, or None.

        `balanced` is N / (C * count) as in scikit-learn; a class without rows gets 0. With
        `of_class` the classes are those that it names for each joint class.
        """
        if self.weighting == "none":
            return None
        numbers = np.arange(len(self.classes)) if of_class is None else np.array(of_class)
        counts = np.bincount(numbers[fold.train.labels], minlength=int(numbers.max()) + 1)
        present = np.count_nonzero(counts)
        weights = len(fold.train) / (present * np.maximum(counts, 1))
        return torch.tensor(np.where(counts > 0, weights, 0.0), dtype=torch.float32)

    def split_rows(self) -> list[dict[str, str]]:
        """Rows of `split.csv`: id, label, split ("train", "val", "test" or "fold<k>") and group.

        Rows that soft labels have added are on no side of the split.
        """
        rows: list[dict[str, str]] = []
        if len(self.folds) > 1:
            sides = [(fold.val, f"fold{fold.index}") for fold in self.folds]
        else:
            sides = [(self.folds[0].train, "train"), (self.folds[0].val, "val")]
        if self.test is not None:
            sides.append((self.test, "test"))
        listed: set[str] = set()
        for subset, side in sides:
            count = len(subset) - subset.added
            groups = subset.groups or [""] * count
            for name, label, group in zip(subset.ids[:count], subset.labels, groups):
                if side == "val" and name in listed:  # of a run on all rows
                    continue
                listed.add(name)
                known = self.classes[label] if label >= 0 else ""
                rows.append({"id": name, "label": known, "split": side, "group": group})
        return rows
