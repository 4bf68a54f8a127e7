"""What a vote ends with: its report, and the three files that it writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ballot.names import resolved
from ballot.runs.files import write_json
from ballot.runs.folder import VALIDATION
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


@dataclass(frozen=True)
class Validation:
    """What the answer is on validation rows: `probs` `[N, C]` of `ids`, of the classes `targets`.

    `held_out` says that no row took part in the choice by which it is predicted.
    """

    ids: list[str]
    targets: np.ndarray
    groups: list[str] | None
    probs: np.ndarray
    held_out: bool


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
    validation: Validation | None = None
    by_size: list[Json] = field(default_factory=list)  # the votes of the first members
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def held(self) -> Validation | None:
        """The answer on rows held out of the choice; None where no shared rows judge it."""
        return self.validation if self.validation and self.validation.held_out else None


def unlink_from_search(folder: Path) -> None:
    """Let a link that search.py left give way to a folder, so that its search keeps its own vote.

    What leads elsewhere, to a larger disk for example, stays; what leads nowhere goes too.
    """
    search = resolved(folder, "name another --out_dir").parent
    if folder.is_symlink() and (not folder.exists() or (search / "search_space.json").exists()):
        folder.unlink()


def write_vote(
    report: VoteReport, recipe: combine.Recipe, columns: Sequence[str], submission: Submission
) -> None:
    """Write `soft.csv` and `submission.csv`, `val.csv`, and, last, `ensemble.json`.

    Without answers on test rows, or on validation rows, the record stands without their files.
    """
    folder = Path(report.options.out_dir)
    soft, answers, val = (folder / name for name in ("soft.csv", "submission.csv", VALIDATION))
    record, files, stale = folder / "ensemble.json", list[Path](), list[Path]()
    if report.ids:
        write_test_rows(report, columns, submission, soft, answers)
        files += [soft, answers]
    else:
        stale += [soft, answers]
    if report.validation is not None:
        rows = report.validation
        labels = [report.classes[number] for number in rows.targets.tolist()]
        write_ballot(val, rows.ids, report.classes, rows.probs, labels)
        files.append(val)
    else:
        stale.append(val)
    stale = [path for path in stale if record.exists() and path.exists()]
    if stale:
        report.notes.append(f"removed: {few(map(str, stale))} of an earlier vote")
    write_json(record, describe(report, recipe, columns, submission))
    for path in stale:
        path.unlink()
    report.files = [*files, record]


def write_test_rows(
    report: VoteReport, columns: Sequence[str], submission: Submission, soft: Path, answers: Path
) -> None:
    """Write the probabilities of the test rows, and what is submitted."""
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
            "val_held_out": report.validation and report.validation.held_out,
            "by_size": report.by_size,
        },
        "notes": report.notes,
    }


def relative(path: Path, folder: Path) -> str:
    """Return `path` as seen from `folder`, so that both can be moved together."""
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive of Windows
        return path.resolve().as_posix()
