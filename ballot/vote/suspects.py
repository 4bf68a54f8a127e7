"""Labels that are probably wrong: rows that networks that did not train on them call otherwise.

Confident learning (Northcutt et al., 2021): a class has a threshold, the mean probability that the
rows labelled with it have of it. A row is suspected of belonging to the class whose probability is
the largest of those above their thresholds, where that is not the class of its label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ballot.errors import UserError
from ballot.runs.files import read_json, write_rows
from ballot.runs.folder import VALIDATION
from ballot.vote.ballots import Ballot, read_ballot
from ballot.wording import few, natural, plural

FAIR = 0.9  # of the best run's accuracy; worse runs have no say


@dataclass(frozen=True)
class Suspect:
    """A row whose label is probably wrong, and the class that it more probably is of."""

    id: str
    label: str
    suggested: str
    confidence: float  # mean probability of the suggested class
    self_confidence: float  # and of the label

    @property
    def margin(self) -> float:
        """From -1, certainly wrong, on: the normalised margin of the label."""
        return self.self_confidence - self.confidence


@dataclass(frozen=True)
class Judgements:
    """Rows judged by networks that did not train on them: the mean of `runs` runs."""

    ids: list[str]
    labels: list[str]
    classes: list[str]
    probs: np.ndarray  # float64 [N, C]
    runs: int
    notes: list[str]


def find_suspects(judged: Judgements) -> list[Suspect]:
    """Return the suspected rows, the most probably wrong first."""
    number = {name: place for place, name in enumerate(judged.classes)}
    labels = np.array([number[label] for label in judged.labels], dtype=np.int64)
    suggested = suspected_classes(labels, judged.probs)
    found = [
        Suspect(
            judged.ids[row],
            judged.labels[row],
            judged.classes[suggested[row]],
            float(judged.probs[row, suggested[row]]),
            float(judged.probs[row, labels[row]]),
        )
        for row in np.flatnonzero(suggested != labels)
    ]
    return sorted(found, key=lambda each: (each.margin, natural(each.id)))


def suspected_classes(labels: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Return the class [N] that each row is confidently of; its label where there is none.

    `labels` int64 [N], `probs` [N, C].
    """
    rows, size = np.arange(len(labels)), probs.shape[1]
    counts = np.bincount(labels, minlength=size)
    sums = np.bincount(labels, weights=probs[rows, labels], minlength=size)
    # A class without rows has no threshold, and is suggested for none.
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    confident = np.where(probs >= thresholds, probs, -1.0)
    best = confident.argmax(axis=1)
    return np.where(confident[rows, best] < 0, labels, best)


def judge(runs: Sequence[Path], labels: Mapping[str, str] | None = None) -> Judgements:
    """Read the validation rows (`val.csv`) of run folders, and take the mean of their answers.

    `labels` tells the labels of the rows that count, by id; without it those of the runs do, the
    first run's before others. Left out are runs of other classes, bad ones, and those that began
    with the weights of another run, which may have been trained on these rows. Raises `UserError`
    where no run is left.
    """
    notes: list[str] = []
    ballots = _read_fair(runs, set(labels.values()) if labels is not None else None, notes)
    truth: dict[str, str] = dict(labels or {})
    for ballot in reversed(ballots) if labels is None else ():
        truth.update(zip(ballot.ids, ballot.labels or (), strict=True))
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    used = 0
    for ballot in ballots:
        known = [(name, row) for row, name in enumerate(ballot.ids) if name in truth]
        used += bool(known)
        for name, row in known:
            sums[name] = sums.get(name, 0.0) + ballot.probs[row]
            counts[name] = counts.get(name, 0) + 1
    if not sums:
        raise UserError(
            "check_labels: none of the runs has validation rows (val.csv) of these data; train "
            "with --folds 5, or run a search, and name its folder of runs"
        )
    ids = sorted(sums, key=natural)
    probs = np.array([sums[name] / counts[name] for name in ids])
    return Judgements(ids, [truth[i] for i in ids], ballots[0].classes, probs, used, notes)


def _read_fair(runs: Sequence[Path], named: set[str] | None, notes: list[str]) -> list[Ballot]:
    """Read the runs whose word counts; the others are noted."""
    ballots: list[Ballot] = []
    started, other = [], []
    for run in runs:
        path = run / VALIDATION
        if not path.is_file():
            continue
        values = read_json(run / "config.json").get("values")
        if isinstance(values, dict) and values.get("init_from"):
            started.append(run.name)
            continue
        try:
            ballot = read_ballot(path, labelled=True)
        except UserError as error:  # one that is being written, or damaged
            notes.append(f"1 run left out: {error}")
            continue
        wanted = set(ballots[0].classes) if ballots else set(ballot.classes)
        if set(ballot.classes) != wanted or not (named or set()) <= wanted:
            other.append(run.name)
            continue
        ballots.append(replace(ballot, path=path))
    scores = [_accuracy(ballot) for ballot in ballots]
    bad = [b.path.parent.name for b, s in zip(ballots, scores) if s < FAIR * max(scores)]
    for names, why in (
        (started, "began with weights of another run, which may know these rows"),
        (other, "have other classes"),
        (bad, f"have less than {FAIR:.0%} of the best run's accuracy"),
    ):
        if names:
            notes.append(f"{plural(len(names), 'run')} left out ({few(names)}): {why}")
    return [b for b, s in zip(ballots, scores) if s >= FAIR * max(scores)]


def _accuracy(ballot: Ballot) -> float:
    answers = ballot.probs.argmax(axis=1)
    return float(np.mean([ballot.classes[k] == t for k, t in zip(answers, ballot.labels or ())]))


def write_suspects(path: Path, suspects: Sequence[Suspect]) -> None:
    """Write a row for each suspect; `train.py --exclude` takes the file as it is."""
    columns = ("id", "label", "suggested", "confidence", "self_confidence")
    rows = [{key: getattr(each, key) for key in columns} for each in suspects]
    for row in rows:
        row["confidence"], row["self_confidence"] = (
            round(row[key], 4) for key in ("confidence", "self_confidence")
        )
    write_rows(path, rows)


def table_lines(suspects: Sequence[Suspect], most: int = 20) -> list[str]:
    """Return a table of the first suspects for a person."""
    shown = [(s.id, s.label, s.suggested, f"{s.confidence:.3f}") for s in suspects[:most]]
    rows = [("id", "label", "suggested", "confidence"), *shown]
    wide = [max(len(row[k]) for row in rows) for k in range(3)]
    lines = ["  ".join([*(f"{c:{w}}" for c, w in zip(row, wide)), row[3]]) for row in rows]
    rest = len(suspects) - most
    return lines + ([f"and {rest} more"] if rest > 0 else [])
