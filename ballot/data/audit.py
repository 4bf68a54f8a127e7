"""What is wrong with a data set, said before training: leaks, contradictions, broken files."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ballot.data.images import FileSource
from ballot.data.near_duplicates import NONE
from ballot.data.tables import Problem, Table, first_few
from ballot.errors import UserError
from ballot.wording import plural


@dataclass(frozen=True)
class Copies:
    """Which rows show one picture: `digests` [N] of pixels, `families` [N] of near duplicates."""

    digests: Sequence[bytes]
    families: Sequence[int] | np.ndarray = ()  # nothing: none were looked for

    def family(self, row: int) -> int | None:
        """Return what a row has in common with its near duplicates, if it has any."""
        if not len(self.families) or self.families[row] == NONE:
            return None
        return int(self.families[row])

    def believed(self, rows: np.ndarray) -> tuple[Copies, Problem | None]:
        """Give up near duplicates that tie more than half of `rows` together, and say so.

        No split could keep them on one side: frames of one film, or pictures without a difference
        that a thumbnail could show.
        """
        found = np.array([family for row in rows if (family := self.family(row)) is not None])
        most = int(np.bincount(found).max()) if len(found) else 0
        if 2 * most <= len(rows):
            return self, None
        text = (
            f"{most} of {len(rows)} images are near duplicates of each other, too many to keep on "
            "one side of the split; name what belongs together with --group_column"
        )
        return replace(self, families=()), Problem(text)


def check_table(table: Table) -> None:
    """Refuse what no split could mend: no rows, one class, ids that are not unique."""
    known = table.rows_of("train", "val")
    if not len(known):
        raise UserError(f"{table.name}: there are no labelled images to train on")
    present = np.unique(table.labels[known])
    if len(present) < 2:
        raise UserError(
            f"{table.name}: every training image is of one class, {table.classes[present[0]]!r}; "
            "there is nothing to tell apart"
        )
    twice = _repeated(table.ids)
    if twice:
        raise UserError(
            f"{table.name}: {len(twice)} ids stand for more than one row: {first_few(twice)}; "
            "name each image once"
        )


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    twice: dict[str, None] = {}
    for name in names:
        if name in seen:
            twice[name] = None
        seen.add(name)
    return list(twice)


def audit(
    table: Table,
    copies: Copies,
    bad: Mapping[int, str],
    sides: Sequence[str],
    folds: int,
) -> list[Problem]:
    """List the problems of a data set whose rows stand on `sides` ("train", "val", "test", "")."""
    problems = [*table.problems, *_unreadable(table, bad)]
    if not table.audited:
        return problems
    by_content = _members(copies.digests)
    if table.groups is not None:
        problems += _apart(table, _members(table.groups), sides, "a group stands on both sides")
    if isinstance(table.source, FileSource):
        real = _real_paths(table.source)
        problems += _apart(table, _members(real), sides, "a file stands on both sides")
    problems += _apart(table, by_content, sides, "the same image stands on both sides")
    problems += _contradictions(table, by_content)
    problems += _near(table, copies, sides)
    problems += _rare(table, folds)
    return problems


def _real_paths(source: FileSource) -> list[str]:
    """Where each file really is; folders are followed once, because there are fewer of them."""
    real: list[str] = []
    folders: dict[str, str] = {}
    for path in source.paths:
        folder, name = os.path.split(os.path.join(source.root, path))  # noqa: PTH118
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        whole = f"{folders[folder]}/{name}"
        real.append(os.path.realpath(whole) if os.path.islink(whole) else whole)  # noqa: PTH114
    return real


def _members(keys: Sequence[Hashable | None]) -> dict[Hashable, list[int]]:
    """Rows by key, for keys of more than one row; rows without one are left out."""
    rows: dict[Hashable, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        if key not in (None, "", b""):
            rows[key].append(row)
    return {key: members for key, members in rows.items() if len(members) > 1}


def _apart(
    table: Table, members: Mapping[Hashable, list[int]], sides: Sequence[str], what: str
) -> list[Problem]:
    """Tell of members on several sides: an error, unless it cannot flatter a score of ours.

    Test rows without labels are somebody else's question, and a published benchmark's split is
    not ours to change: both are worth knowing, neither is worth stopping.
    """
    fatal: list[str] = []
    known: list[str] = []
    for key, rows in members.items():
        here = {sides[row]: row for row in rows if sides[row]}
        if len(here) < 2:
            continue
        scored = {s for s, row in here.items() if table.labels[row] >= 0}
        name = f"{key} " if isinstance(key, str) and key not in table.ids else ""
        text = name + "(" + ", ".join(f"{table.ids[r]} in {s}" for s, r in here.items()) + ")"
        (fatal if len(scored) > 1 and not table.published else known).append(text)
    problems = [Problem(f"{len(fatal)} times {what} of the split", tuple(fatal), fatal=True)]
    problems.append(Problem(f"{len(known)} times {what} of the split", tuple(known)))
    return [problem for problem in problems if problem.rows]


def _contradictions(table: Table, by_content: Mapping[Hashable, list[int]]) -> list[Problem]:
    copies, torn = [], []
    for rows in by_content.values():
        rows = [row for row in rows if table.labels[row] >= 0]
        labels = {table.classes[table.labels[row]] for row in rows}
        if len(labels) > 1:
            said = (f"{table.ids[row]} is {table.label(row)}" for row in rows)
            torn.append("(" + ", ".join(said) + ")")
        elif len(rows) > 1:
            copies.append(f"{table.ids[rows[0]]} = {table.ids[rows[1]]}")
    problems = []
    if torn:
        text = f"{len(torn)} identical images have labels that contradict each other"
        problems.append(Problem(text, tuple(torn)))
    if copies:
        text = f"{len(copies)} images are there more than once; copies stay on one side"
        problems.append(Problem(text, tuple(copies)))
    return problems


def _near(table: Table, copies: Copies, sides: Sequence[str]) -> list[Problem]:
    """Tell of near duplicates; never an error, because they are recognised and not proven.

    Those within one group are not news: the group stays on one side already. Nor are those among
    test images alone.
    """
    families = _members([copies.family(row) for row in range(len(table))]).values()
    parted, torn, kept = [], [], []
    for rows in families:
        if table.groups is not None and len({table.groups[row] or row for row in rows}) == 1:
            continue
        if {sides[row] for row in rows} <= {"test", ""}:
            continue
        here = {sides[row]: f"{table.ids[row]} in {sides[row]}" for row in rows if sides[row]}
        labels = {table.label(row): f"{table.ids[row]} is {table.label(row)}" for row in rows}
        labels.pop("", None)
        if len(here) > 1:
            parted.append(f"({first_few(here.values())})")
        if len(labels) > 1:
            torn.append(f"({first_few(labels.values())})")
        if len(here) < 2 and len(labels) < 2:
            kept.append(f"({first_few((table.ids[row] for row in rows), 2)})")
    texts = {
        "near duplicates on both sides of the split": parted,
        "near duplicates with labels that differ": torn,
        "near duplicates, which stay on one side": kept,
    }
    return [
        Problem(f"{text} ({plural(len(rows), 'group')})", tuple(rows))
        for text, rows in texts.items()
        if rows
    ]


def _unreadable(table: Table, bad: Mapping[int, str]) -> list[Problem]:
    """Training rows that cannot be decoded are left out; a test row's answer cannot be."""
    problems = []
    for test in (False, True):
        rows = [row for row in bad if (table.splits[row] == "test") == test]
        names = tuple(f"{table.source.name(row)} {bad[row]}" for row in rows)
        what = (
            "test images cannot be decoded; repair or remove them"
            if test
            else ("training images cannot be decoded and are left out")
        )
        if rows:
            problems.append(Problem(f"{len(rows)} {what}", names, fatal=test))
    return problems


def _rare(table: Table, folds: int) -> list[Problem]:
    known = table.rows_of("train", "val")
    counts = np.bincount(table.labels[known], minlength=len(table.classes))
    need = max(2, folds)
    rare = [f"{name} ({n})" for name, n in zip(table.classes, counts) if n < need]
    problems = []
    if rare:
        text = f"fewer than {need} rows of a class, too few to split"
        problems.append(Problem(text, tuple(rare)))
    if table.groups is not None:
        groups = np.array([table.groups[row] or table.ids[row] for row in known])
        pairs = set(zip(table.labels[known].tolist(), groups.tolist()))
        spread = np.bincount([label for label, _ in pairs], minlength=len(table.classes))
        sizes = zip(table.classes, spread, counts)
        few = [f"{name} ({n})" for name, n, rows in sizes if n < need <= rows]
        if few:
            text = f"fewer than {need} groups of a class, too few to split"
            problems.append(Problem(text, tuple(few)))
    return problems


def refuse(name: str, problems: Sequence[Problem], *, strict: bool) -> list[Problem]:
    """Raise a `UserError` for fatal problems (with `strict` for any); return the others."""
    fatal = [p for p in problems if p.fatal or strict]
    if fatal:
        why = "" if any(p.fatal for p in fatal) else " (an error because of strict)"
        raise UserError(f"{name}: " + "; ".join(map(str, fatal)) + why)
    return list(problems)


def keep_whole(table: Table, rows: np.ndarray, copies: Copies) -> list[Sequence[Hashable | None]]:
    """What no split may part among `rows`: groups, copies of an image, and near duplicates."""
    groups: list[Sequence[Hashable | None]] = []
    if table.groups is not None:
        groups.append([table.groups[row] or None for row in rows])
    if not table.audited:
        return groups
    digests = [copies.digests[row] or None for row in rows]
    return [*groups, digests, [copies.family(row) for row in rows]]
