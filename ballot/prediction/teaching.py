"""What a vote tells another network: its answers as soft labels, and what it costs to ask it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ballot.data.images import decode_file
from ballot.data.tables import Table
from ballot.errors import UserError
from ballot.prediction.inputs import Images
from ballot.prediction.predictor import Predictor, answer, decoded, predict_batches

HARD_SHARE = 0.3  # of the target of a labelled image: its label; the rest is the vote's answer
ROUNDS = 3  # of predicting a batch, for the images a second, and as many as fit into
TIMED_S = 1.0  # together
BATCH = 64


@dataclass(frozen=True)
class Lesson:
    """Images that a vote has answered for: names, and probabilities [N, C] of its `columns`.

    `asked` is how many images it was asked about.
    """

    ids: list[str]
    probs: np.ndarray
    asked: int


def teach(
    predictor: Predictor,
    table: Table,
    images: Images | None,
    *,
    labelled: bool,
    least: float,
    device: torch.device,
    amp: torch.dtype | None,
    batch_size: int,
    workers: int,
) -> Lesson:
    """Answer the test images of a data set and other images, and `labelled` images too.

    Unlabelled images whose largest probability is below `least` are left out. Targets of labelled
    images are their labels by `HARD_SHARE`. Whatever cannot be decoded is left out.
    """
    columns = predictor.electorate.columns
    if sorted(columns) != sorted(table.classes):
        raise UserError(f"{table.name}: its classes are not those of the vote")
    known = table.rows_of("train", "val") if labelled else np.empty(0, np.int64)
    rows = np.concatenate([known, table.rows_of("test")])
    paths = [path.absolute() for path in images.paths] if images else []

    def read(number: int) -> torch.Tensor:
        own = number < len(rows)
        return table.source.read(rows[number]) if own else decode_file(paths[number - len(rows)])

    count = len(rows) + len(paths)
    batches = decoded(read, count, predictor.geometries, batch_size, workers)
    answers = predict_batches(predictor, batches, device, amp)
    names = [*(table.ids[row] for row in rows), *map(str, paths)]
    place = [columns.index(name) for name in table.classes]
    hard = np.eye(len(columns), dtype=np.float32)[[place[table.labels[row]] for row in known]]
    of_rows = np.array(answers.rows, dtype=np.int64)
    probs = answers.probs.reshape(-1, len(columns))
    own = of_rows < len(known)
    probs[own] = HARD_SHARE * hard[of_rows[own]] + (1 - HARD_SHARE) * probs[own]
    sure = own | (probs.max(axis=1) >= least)
    return Lesson([names[row] for row in of_rows[sure]], probs[sure], count)


@dataclass(frozen=True)
class Cost:
    """How large a vote is, and how many images a second its networks answer for."""

    networks: int
    parameters: int
    images_per_second: float


def measure(
    predictors: Sequence[Predictor], device: torch.device, amp: torch.dtype | None
) -> list[Cost]:
    """Time the networks of each on random images in memory, in batches of 64, in turns.

    Views and the counting are in it, decoding is not.
    """
    shapes = dict.fromkeys(shape for each in predictors for shape in each.geometries)
    drawn = np.random.default_rng(0)
    images = {}
    for shape in shapes:
        pixels = drawn.integers(0, 256, (BATCH, 3, shape.size, shape.size), dtype=np.uint8)
        images[shape] = torch.from_numpy(pixels).to(device)
    for each in predictors:
        answer(each, images, amp=amp)  # what the first call alone takes
    times: list[list[float]] = [[] for _ in predictors]
    while min(map(len, times)) < ROUNDS or sum(map(sum, times)) < TIMED_S:
        for each, own in zip(predictors, times):
            began = time.perf_counter()
            answer(each, images, amp=amp)
            own.append(time.perf_counter() - began)
    return [
        Cost(
            networks=len(each.flat),
            parameters=sum(p.numel() for n in each.flat for p in n.model.parameters()),
            images_per_second=BATCH / float(np.median(own)),
        )
        for each, own in zip(predictors, times)
    ]
