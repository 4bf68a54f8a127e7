"""What a report says in numbers: cost, importance, validation, the vote, the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ballot.data.attributes import Attribute, renumbered
from ballot.errors import UserError
from ballot.report.trials import Found, Trial, evenly, finite, is_numeric, read_table_of
from ballot.runs.files import json_or_empty
from ballot.runs.folder import VALIDATION, is_validation
from ballot.vote.ballots import read_ballot, read_member, rows_like
from ballot.wording import compact, natural

FEWEST_TRIALS = 10  # below, a forest finds order in noise
MOST_LEARNED = 1000  # trials that a forest learns from: more tell it nothing new
SHUFFLES = 5
MOST_AGREEING = 24  # members whose agreement can be read in a square


def cost(found: Found) -> dict[str, Any]:
    """Count what the search spent, what stopping early saved, and what failed trials took."""
    trials = found.trials
    ended = [t for t in trials if t.status in ("done", "stopped")]
    failed = [t for t in trials if t.status == "failed"]
    starts = [t.started for t in trials if t.started is not None]
    ends = [t.ended for t in trials if t.ended is not None]
    return {
        "trials": len(trials),
        "by_status": dict(Counter(t.status for t in trials).most_common()),
        "epochs": sum(t.epochs for t in trials),
        "epochs_saved": sum(t.planned - t.epochs for t in ended if t.status == "stopped"),
        "epochs_failed": sum(t.epochs for t in failed),
        "seconds": sum(t.seconds or 0.0 for t in trials),
        "seconds_failed": sum(t.seconds or 0.0 for t in failed),
        "wall": max(ends) - min(starts) if starts and ends else None,
        "machines": sorted({str(m) for t in trials if (m := t.result.get("machine"))}),
    }


def progress(found: Found) -> list[dict[str, Any]]:
    """Return a row a scored trial, in the order of their ends, with the best score so far."""
    first = min((t.started for t in found.trials if t.started is not None), default=0.0)
    scored = sorted(found.scored, key=lambda t: (t.ended is None, t.ended or 0.0, t.number))
    better = max if found.maximize else min
    best: Any = None
    rows = []
    for count, trial in enumerate(scored, start=1):
        best = trial.score if best is None else better(best, trial.score)
        minutes = None if trial.ended is None else round((trial.ended - first) / 60, 3)
        rows.append(
            {
                "trial": count,
                "minutes": minutes,
                "score": trial.score,
                "best": best,
                "run": trial.label,
            }
        )
    return rows


def importance(found: Found) -> tuple[list[dict[str, Any]], str]:
    """Return how much each hyperparameter matters to a forest's idea of the score, and a sentence.

    Permutation importance (Breiman, 2001): by how much the forest's R² falls when one column is
    shuffled. Without enough trials there are no rows, and the sentence says why.
    """
    trials, names = evenly(found.scored, MOST_LEARNED), found.params
    if not names:
        return [], "No hyperparameter differs between the trials."
    if len(trials) < FEWEST_TRIALS:
        return [], (
            f"With {len(trials)} scored trials nothing can be said of importance; "
            f"it takes {FEWEST_TRIALS}."
        )
    from sklearn.ensemble import RandomForestRegressor

    table = np.column_stack([_column([t.values.get(name) for t in trials]) for name in names])
    scores = np.array([t.score for t in trials])
    if np.ptp(scores) == 0:
        return [], "All trials have the same score; no hyperparameter made a difference."
    forest = RandomForestRegressor(100, min_samples_leaf=2, oob_score=True, random_state=0)
    forest.fit(table, scores)
    lost = lost_by_shuffling(forest.predict, table, scores)
    rows: list[dict[str, Any]] = [
        {"name": name, "importance": float(max(falls.mean(), 0.0)), "error": float(falls.std())}
        for name, falls in zip(names, lost)
    ]
    rows.sort(key=lambda row: -row["importance"])
    explained = float(forest.oob_score_)
    if explained <= 0.05:
        trust = "That is not enough to trust the order below."
    else:
        trust = "Small differences below are noise." if explained < 0.5 else ""
    return rows, (
        f"A forest of 100 trees over {len(trials)} trials explains "
        f"{max(explained, 0):.0%} of the score's variance on "
        f"trials that a tree has not seen. {trust}"
    )


def lost_by_shuffling(
    predict: Callable[[np.ndarray], np.ndarray], table: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """Return by how much R² falls when a column of `table` [N, D] is shuffled: [D, SHUFFLES]."""
    rng, variance = np.random.default_rng(0), np.var(scores)
    whole = np.mean((predict(table) - scores) ** 2)
    lost = np.empty((table.shape[1], SHUFFLES))
    for column in range(table.shape[1]):
        shuffled = np.tile(table, (SHUFFLES, 1))  # at once: each call asks a hundred trees
        shuffled[:, column] = np.concatenate(
            [rng.permutation(table[:, column]) for _ in range(SHUFFLES)]
        )
        apart = (predict(shuffled).reshape(SHUFFLES, -1) - scores) ** 2
        lost[column] = (apart.mean(axis=1) - whole) / variance
    return lost


def _column(values: Sequence[Any]) -> np.ndarray:
    """Make numbers of a hyperparameter; one that a trial did not have lies below all others."""
    if is_numeric(values):
        there = [float(v) for v in values if v is not None]
        low = min(there) - (max(there) - min(there) or 1.0)
        return np.array([low if v is None else float(v) for v in values])
    names = [compact(v) for v in values]
    codes = {name: code for code, name in enumerate(sorted(set(names), key=natural))}
    return np.array([float(codes[name]) for name in names])


@dataclass(frozen=True)
class Judged:
    """An answer on validation rows: ids, true and predicted classes `[N]`, probabilities.

    Of the vote `trial` is the voter with the most weight, whose checkpoint is kept if any one is.
    """

    trial: Trial
    ids: list[str]
    classes: list[str]
    targets: np.ndarray  # int64 [N]
    probs: np.ndarray  # float64 [N, C]
    voters: int = 0  # that answer together; 0 where it is the trial alone
    held_out: bool = False  # of the choice of members and weights

    @property
    def answers(self) -> np.ndarray:
        return self.probs.argmax(axis=1)


def judged(found: Found, told: dict[str, Any] | None, vote_dir: Path) -> tuple[Judged | None, str]:
    """Read what the vote answers on validation rows, else the best run.

    That is the next best run where its `val.csv` is missing or damaged.
    """
    if told is not None and (run := _judged_vote(found, told, vote_dir)) is not None:
        return run, ""
    for trial in found.scored:
        if (run := _read_judged(trial, trial.folder / VALIDATION)) is not None:
            return run, ""
    return None, "No run has left validation predictions (val.csv) that can be read."


def _judged_vote(found: Found, told: dict[str, Any], vote_dir: Path) -> Judged | None:
    trials = {trial.name: trial for trial in found.trials}
    voters = [row for row in told["members"] if row["weight"] > 0]
    known = [trials[row["name"]] for row in voters if row["name"] in trials]
    kept = [trial for trial in known if has_checkpoint(trial)]
    if not known or (run := _read_judged((kept or known)[0], vote_dir / VALIDATION)) is None:
        return None
    held_out = bool(told["scores"].get("val_held_out"))
    return replace(run, voters=0 if told["alone"] else len(voters), held_out=held_out)


def has_checkpoint(trial: Trial) -> bool:
    """Tell whether the weights of a trial are kept here."""
    return any(trial.folder.rglob("best.pt"))


def _read_judged(trial: Trial, path: Path) -> Judged | None:
    if not path.exists():
        return None
    try:
        ballot = read_ballot(path, labelled=True)
    except (UserError, OSError):
        return None
    place = {name: number for number, name in enumerate(ballot.classes)}
    targets = np.array([place[label] for label in ballot.labels or []], dtype=np.int64)
    return Judged(trial, list(ballot.ids), ballot.classes, targets, ballot.probs)


def confusion(run: Judged) -> np.ndarray:
    """Count rows by true and predicted class: int64 `[C, C]`."""
    size = len(run.classes)
    flat = run.targets * size + run.answers
    return np.bincount(flat, minlength=size * size).reshape(size, size)


def class_scores(run: Judged) -> list[dict[str, Any]]:
    """Return precision, recall and F1 of each class."""
    counts = confusion(run)
    right, true, said = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = right / said, right / true
        f1 = 2 * right / (true + said)
    return [
        {"name": name, "rows": int(n), "precision": finite(p), "recall": finite(r), "f1": finite(f)}
        for name, n, p, r, f in zip(run.classes, true, precision, recall, f1)
    ]


def attribute_scores(run: Judged) -> list[dict[str, Any]]:
    """Return the accuracy of each attribute of which the classes are made, where they are."""
    result = run.trial.result
    own = result.get("classes") or []
    if sorted(own) != sorted(run.classes):
        return []
    order, found = [run.classes.index(name) for name in own], []
    for said in result.get("attributes") or []:
        each = Attribute(said["name"], tuple(said["classes"]), tuple(said["of_class"]))
        (one,) = renumbered([each], order)
        right = one.probs(run.probs).argmax(axis=1) == one.labels(run.targets)
        found.append({"name": one.name, "classes": len(one.classes), "accuracy": right.mean()})
    return found


def confident_errors(run: Judged, count: int = 12) -> list[dict[str, Any]]:
    """Return the wrong rows that the run was surest of, the surest first."""
    answers = run.answers
    wrong = np.flatnonzero(answers != run.targets)
    surest = wrong[np.argsort(-run.probs[wrong, answers[wrong]], kind="stable")][:count]
    return [
        {
            "id": run.ids[row],
            "label": run.classes[run.targets[row]],
            "answer": run.classes[answers[row]],
            "prob": float(run.probs[row, answers[row]]),
        }
        for row in surest
    ]


def reliability(run: Judged, bins: int = 10) -> tuple[list[dict[str, Any]], float]:
    """Return accuracy by confidence, and the expected calibration error (Guo et al., 2017)."""
    sure = run.probs.max(axis=1)
    right = run.answers == run.targets
    bin_of = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    rows, error = [], 0.0
    for k in range(bins):
        inside = bin_of == k
        count = int(inside.sum())
        if not count:
            continue
        confidence, accuracy = float(sure[inside].mean()), float(right[inside].mean())
        error += abs(confidence - accuracy) * count / len(sure)
        rows.append({"confidence": confidence, "accuracy": accuracy, "rows": count})
    return rows, error


def vote(found: Found, folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Read `ensemble.json` where it is a vote of these trials."""
    record = json_or_empty(folder / "ensemble.json")
    members = record.get("members")
    if not isinstance(members, list) or not members:
        return None, f"There is no vote in {folder} yet; python ensemble.py makes one."
    labels = {t.name: t.label for t in found.trials}
    if not any(m.get("name") in labels for m in members):
        return None, f"The vote in {folder} is of other runs."
    scores = record.get("scores") or {}
    rows: list[dict[str, Any]] = [
        {
            "name": str(m.get("name")),
            "label": labels.get(m.get("name"), str(m.get("name"))),
            "weight": finite(m.get("weight")) or 0.0,
            "val": m.get("val") or {},
            "test": m.get("test") or {},
            "files": [folder / f for f in m.get("files") or []],
        }
        for m in members
    ]
    rows.sort(key=lambda row: (-row["weight"], natural(row["label"])))
    columns = sorted({f"{stage} {k}" for r in rows for stage in ("val", "test") for k in r[stage]})
    return {
        "record": record,
        "labels": labels,
        "members": rows,
        "columns": [tuple(c.split(" ", 1)) for c in reversed(columns)],
        "tested": not any(is_validation(file) for row in rows for file in row["files"]),
        "method": record.get("method"),
        "options": record.get("options") or {},
        "scores": scores,
        "held_out": scores.get("held_out") or None,
        "alone": scores.get("answer") == "best_single",
        "by_size": [step for step in scores.get("by_size") or [] if isinstance(step, dict)],
        "notes": [str(note) for note in record.get("notes") or []],
    }, ""


def agreement(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Return for each pair of members the share of rows of their files that they answer alike."""
    voters = [row for row in rows if row["weight"] > 0 and len(row["files"]) == 1][:MOST_AGREEING]
    answers: list[tuple[str, np.ndarray]] = []
    first = None
    for row in voters:
        try:
            ballot = read_member(row["files"][0])
            first = first or ballot
            order = [ballot.classes.index(name) for name in first.classes]
            probs = ballot.probs[:, order]
            rows_at = rows_like(ballot, first.ids, first.path)
            probs = probs if rows_at is None else probs[rows_at]
        except (UserError, OSError, ValueError):
            continue
        answers.append((row["label"], probs.argmax(axis=1)))
    if len(answers) < 2:
        return [], "Agreement takes the predictions of two members or more."
    return [
        {"a": a, "b": b, "share": float(np.mean(one == other))}
        for a, one in answers
        for b, other in answers
    ], ""


def data_counts(found: Found) -> list[dict[str, Any]]:
    """Count the rows of each class and split, as the best run's `split.csv` tells."""
    for trial in [*found.scored, *found.trials]:
        rows = read_table_of(trial.folder / "split.csv")
        if not rows or not {"label", "split"} <= set(rows[0]):
            continue
        counts = Counter((row["label"] or "(unknown)", row["split"]) for row in rows)
        return [
            {"label": label, "split": split, "rows": count}
            for (label, split), count in sorted(
                counts.items(), key=lambda item: natural(item[0][0])
            )
        ]
    return []


def differences(one: Trial, two: Trial) -> tuple[list[tuple[str, str, str]], list[tuple]]:
    """Return what differs between two runs: rows of settings, and rows of results."""
    keys = list(dict.fromkeys([*one.values, *two.values]))
    settings = [
        (key, _said(one.values, key), _said(two.values, key))
        for key in keys
        if one.values.get(key) != two.values.get(key)
    ]
    results = []
    facts = [_facts(one), _facts(two)]
    for key in dict.fromkeys([*facts[0], *facts[1]]):
        a, b = facts[0].get(key), facts[1].get(key)
        if a != b:
            change = ""
            if isinstance(a, (int, float)) and isinstance(b, (int, float)):
                change = f"{b - a:+.4g}"
            results.append((key, compact(a, 6), compact(b, 6), change))
    return settings, results


def _said(values: dict[str, Any], key: str) -> str:
    if key not in values:
        return "-"
    return "none" if values[key] is None else compact(values[key], 6)


def _facts(trial: Trial) -> dict[str, Any]:
    result = trial.result
    facts: dict[str, Any] = {
        "status": trial.status,
        "reason": trial.reason or None,
        "score": trial.score,
        "epochs": trial.epochs,
        "seconds": trial.seconds,
    }
    facts |= {
        key: result.get(key)
        for key in (
            "best_epoch",
            "parameters",
            "pretrained",
            "data",
            "data_fingerprint",
            "machine",
            "device",
        )
    }
    facts |= result.get("scores") or {}
    facts |= {f"test_{key}": value for key, value in (result.get("test") or {}).items()}
    versions = result.get("versions") or {}
    return facts | {f"version of {key}": value for key, value in versions.items()}
