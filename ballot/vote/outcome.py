"""What a vote ends with: its report, and the three files that it writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ballot.runs.files import write_json
from ballot.values import Json
from ballot.vote import combine
from ballot.vote.ballots import write_answers, write_ballot
from ballot.vote.comparison import Honest
from ballot.vote.options import VoteOptions
from ballot.vote.truth import Submission
from ballot.wording import few


@dataclass
class MemberReport:
    """One line of the table; scores by name, empty where they are not known."""

    name: str
    files: list[str]
    weight: float | None
    status: str | None = None
    temperature: float | None = None
    val: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)


@dataclass
class VoteReport:
    """All that a vote found; `probs` is `[N, C]` in the order of `ids` and `classes`.

    There are none of these where members vote on validation rows alone. `alone` says that the best
    single member answers, because the vote did worse on rows held out of the choice.
    """

    options: VoteOptions
    ids: list[str]
    classes: list[str]
    probs: np.ndarray
    members: list[MemberReport]
    best_single: MemberReport | None = None
    val: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    val_rows: int = 0
    test_rows: int = 0
    honest: Honest | None = None
    greedy: Honest | None = None
    alone: bool = False
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def write_vote(
    report: VoteReport, recipe: combine.Recipe, columns: Sequence[str], submission: Submission
) -> None:
    """Write `soft.csv`, `submission.csv` and, last, `ensemble.json`: that alone without answers."""
    folder = Path(report.options.out_dir)
    soft, answers, record = (folder / n for n in ("soft.csv", "submission.csv", "ensemble.json"))
    if not report.ids:
        stale = [path for path in (soft, answers) if record.exists() and path.exists()]
        if stale:
            report.notes.append(f"removed: {few(map(str, stale))} of an earlier vote")
        write_json(record, describe(report, recipe, columns, submission))
        for path in stale:
            path.unlink()
        report.files = [record]
        return
    place = {name: number for number, name in enumerate(report.classes)}
    order = [place[name] for name in columns]
    same = order == list(range(len(order)))
    write_ballot(soft, report.ids, columns, report.probs if same else report.probs[:, order])
    words = [submission.words[name] for name in report.classes]
    chosen = [words[number] for number in report.probs.argmax(axis=1).tolist()]
    rows = list(zip(report.ids, chosen, strict=True))
    if submission.order is not None and submission.order != report.ids:
        by_id = dict(rows)
        if len(submission.order) == len(rows) and by_id.keys() == set(submission.order):
            rows = [(name, by_id[name]) for name in submission.order]
    write_answers(answers, submission.columns, rows)
    write_json(record, describe(report, recipe, columns, submission))
    report.files = [soft, answers, record]


def describe(
    report: VoteReport, recipe: combine.Recipe, columns: Sequence[str], submission: Submission
) -> Json:
    """Return all of a vote that is needed to repeat or to apply it; paths are from its folder."""
    options = report.options
    members = []
    for number, row in enumerate(report.members):
        files = [relative(Path(file), Path(options.out_dir)) for file in row.files]
        members.append({**asdict(row), "files": files, "raw_weight": recipe.weights[number]})
    stack = None
    if recipe.stack is not None:
        stack = {
            "coef": recipe.stack.coef.tolist(),
            "intercept": recipe.stack.intercept.tolist(),
            "seen": recipe.stack.seen,
        }
    return {
        "method": recipe.method,
        "classes": list(report.classes),
        "columns": list(columns),
        "members": members,
        "stack": stack,
        "submission": {"columns": submission.columns, "answers": submission.words},
        "options": {**asdict(options), "weights": options.weights and list(options.weights)},
        "scores": {
            "best_single": report.best_single and report.best_single.name,
            "answer": "best_single" if report.alone else "vote",
            "val": report.val,
            "test": report.test,
            "val_rows": report.val_rows,
            "test_rows": report.test_rows,
            "held_out": report.honest and asdict(report.honest),
            "greedy_held_out": report.greedy and asdict(report.greedy),
        },
        "notes": report.notes,
    }


def relative(path: Path, folder: Path) -> str:
    """Return `path` as seen from `folder`, so that both can be moved together."""
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive of Windows
        return path.resolve().as_posix()
