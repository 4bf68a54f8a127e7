"""The vote from files to answer: `run_vote` reads, chooses, combines, scores and writes.

Validation files are read first, because weights come from them; then every test file is read
once, one at a time, into one running sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ballot.errors import UserError, suggest
from ballot.names import check_names, resolved
from ballot.runs.folder import is_validation, run_of
from ballot.values import Json
from ballot.vote import combine, growth
from ballot.vote.ballots import (
    Ballot,
    check_same_classes,
    looks_like_formula,
    read_ballots,
    read_member,
    rows_like,
)
from ballot.vote.comparison import FEWEST_ROWS, SharedRows, compare
from ballot.vote.members import (
    Member,
    find_files,
    group_folds,
    name_members,
    refits_among,
    status_of,
)
from ballot.vote.options import Refit, VoteOptions, check_options
from ballot.vote.outcome import MemberReport, Validation, VoteReport, write_vote
from ballot.vote.selection import (
    Rehearsal,
    best_members,
    cross_fitted,
    make_recipe,
    read_shared_rows,
    rehearse,
    score_all,
)
from ballot.vote.truth import Submission, find_submission, read_splits, read_truth
from ballot.wording import few, natural, plural, short

REFIT_SAY = 0.5  # of runs on all rows together (docs/vote.md)
LARGEST_HINT = 10**8  # numbers in memory (0.8 GB) for what nobody asked for


def run_vote(
    paths: Sequence[str | Path], options: VoteOptions, refits: Sequence[Refit] = ()
) -> VoteReport:
    """Vote over the prediction CSVs `paths`, write the three files, and report.

    Of the `val.csv` of runs without test rows it is the choice alone, and one file. `refits` are
    runs on all rows, which have half of the say; where members are chosen, those among `paths` are
    found by their configurations. Nothing is written where anything is wrong (`UserError`).
    """
    check_options(options)
    members, statuses, first, notes = read_members(paths, options)
    if not refits and options.select not in (None, "all") and not options.group_folds:
        members, statuses, refits = without_refits(members, statuses)
    submission, remarks = find_submission(members, first.classes)
    notes += remarks
    knowledge = read_splits(members)
    shared, own = read_shared_rows(members, first, knowledge, notes, options)
    recipe = make_recipe(members, shared, options, notes)
    rehearsal = try_out(shared, recipe, options)
    by_size = sizes_of(members, recipe, shared, rehearsal, options)
    alone = options.select == "auto" and rehearsal is not None and rehearsal.honest.worse
    if alone:
        recipe = single_recipe(members, shared, options)
    judged = recipe
    if refits:
        members, statuses, recipe = with_refits(members, statuses, recipe, refits, notes)
    targets = known_targets(first, knowledge.truth, submission, options)
    test = TestFiles(members, first, targets, options)
    probs = combine.combine(recipe, test)
    rows = [
        MemberReport(m.name, [str(f) for f in m.files], w, s, test=scores)
        for m, w, s, scores in zip(members, shares(recipe), statuses, test.scores, strict=True)
    ]
    report = VoteReport(options, first.ids, first.classes, probs, rows, alone=alone, notes=notes)
    report.by_size = by_size
    report.test, report.test_rows = test.score(probs), int(test.known.sum())
    score_validation(report, shared, own, judged, rehearsal)
    notes += test.notes()
    write_vote(report, recipe, first.columns, submission)
    return report


def read_members(
    paths: Sequence[str | Path], options: VoteOptions
) -> tuple[list[Member], list[str | None], Ballot, list[str]]:
    """Return who votes, how each run ended, the first file, and what has to be noted.

    The order of the first file is that of the answer; without test rows it has none.
    """
    members, notes = gather(paths, options)
    tested = has_test_rows(members, options)
    check_out_dir(Path(options.out_dir), members)
    members, statuses = drop_broken(members, notes)
    first = read_member(members[0].files[0])
    if not tested:
        first = replace(first, ids=[], labels=None, probs=first.probs[:0])
        notes.append(without_test_rows(options))
    # Sums run in the order of names, so that the order of the files changes no bit.
    by_name = sorted(range(len(members)), key=lambda i: natural(members[i].name))
    return [members[i] for i in by_name], [statuses[i] for i in by_name], first, notes


def without_refits(
    members: list[Member], statuses: list[str | None]
) -> tuple[list[Member], list[str | None], list[Refit]]:
    """Take the runs on all rows that repeat a member out of those that validation rows judge."""
    refits = refits_among(members)
    files = {each.file for each in refits}
    kept = [(m, s) for m, s in zip(members, statuses, strict=True) if m.files[0] not in files]
    return [m for m, _ in kept], [s for _, s in kept], refits


def with_refits(
    members: list[Member],
    statuses: list[str | None],
    recipe: combine.Recipe,
    refits: Sequence[Refit],
    notes: list[str],
) -> tuple[list[Member], list[str | None], combine.Recipe]:
    """Give half of the say to runs on all rows, each in the measure of the run that it repeats.

    They have no validation rows of their own: what their configuration was worth in the search is
    all that is known of them.
    """
    total = sum(recipe.weights)
    own = {m.name: w / total for m, w in zip(members, recipe.weights, strict=True)}
    times = Counter(each.of for each in refits)
    known = [each for each in refits if own.get(each.of)]
    say = {each.file: own[each.of] / times[each.of] for each in known}
    if not known:
        notes.append("the runs on all rows repeat no member of the ensemble: they have weight 0")
        return members, statuses, recipe
    scale = REFIT_SAY / sum(say.values())
    weights = [(1 - REFIT_SAY) * weight / total for weight in recipe.weights]
    weights += [scale * say[each.file] for each in known]
    added = [Member(run_of(each.file).name, (each.file,)) for each in known]
    notes.append(
        f"{plural(len(known), 'run')} on all rows with {REFIT_SAY:.0%} of the weight; validation "
        "scores are those of the other members"
    )
    whole = [*statuses, *("done" for _ in known)]
    return [*members, *added], whole, replace(recipe, weights=weights)


def gather(paths: Sequence[str | Path], options: VoteOptions) -> tuple[list[Member], list[str]]:
    """Return the members in the order given, and what has to be said about it."""
    files, notes = find_files(paths)
    members = name_members(files, options.weights)
    if options.group_folds:
        members = group_folds(members)
        joined = [m.name for m in members if len(m.files) > 1]
        notes.append(
            f"joined: {plural(len(files), 'file')} into {plural(len(members), 'member')}"
            if joined
            else "--group_folds: no two files are folds or seeds of one configuration"
        )
    return members, notes


def has_test_rows(members: Sequence[Member], options: VoteOptions) -> bool:
    """Tell what the members predict: test rows, or validation rows alone."""
    file = members[0].files[0]  # all are of one kind
    if is_validation(file) and options.truth is not None:
        raise UserError(f"--truth: knows test rows, and {file} has none; leave it out")
    return not is_validation(file)


def without_test_rows(options: VoteOptions) -> str:
    """Say what a vote of validation rows is, and what its scores are worth."""
    chosen = " and members chosen" if options.select not in (None, "all") or options.stack else ""
    return (
        f"no test rows: scores are of the validation rows by which epochs were kept{chosen}; "
        f"python predict.py {options.out_dir} IMAGES --out FILE applies the vote"
    )


def check_out_dir(folder: Path, members: Sequence[Member]) -> None:
    """Refuse a folder whose files the vote would mix up with its members."""
    check_names("--out_dir", [str(folder)])
    place = resolved(folder, "name another --out_dir")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out_dir: {folder} is a file; name a folder")
    for file in (f for member in members for f in member.files):
        if file.resolve().parent == place:
            raise UserError(
                f"--out_dir: {folder} holds the member {file.name}; write the vote elsewhere, "
                "as in ensemble, or the next vote would count this one"
            )


def drop_broken(members: list[Member], notes: list[str]) -> tuple[list[Member], list[str | None]]:
    """Leave out runs that did not end well and have no whole CSV; name all that ended early."""
    kept: list[Member] = []
    statuses: list[str | None] = []
    early: dict[str, list[str]] = {}
    for member in members:
        status = status_of(member)
        if status in ("failed", "running", "stopped"):
            try:
                for file in member.files:
                    read_member(file)
            except UserError as error:
                notes.append(f"left out: {member.name}, whose run is {status}: {error}")
                continue
            early.setdefault(status, []).append(member.name)
        kept.append(member)
        statuses.append(status)
    for status, names in early.items():
        notes.append(f"{status}, with a whole CSV, and counted: {few(names)}")
    if not kept:
        raise UserError(f"ensemble: no member is left; {notes[-1]}")
    return kept, statuses


def shares(recipe: combine.Recipe) -> list[float]:
    """Each member's part of the vote; of a stack, its part of the absolute coefficients."""
    sizes = recipe.weights
    if recipe.stack is not None:
        sizes = [float(np.abs(coef).sum()) for coef in recipe.stack.coef]
    return [size / (sum(sizes) or 1.0) for size in sizes]


def try_out(
    shared: SharedRows | None, recipe: combine.Recipe, options: VoteOptions
) -> Rehearsal | None:
    """Score the vote on rows held out of the choice, where its voters share enough of them."""
    if shared is None or len(shared.ids) < FEWEST_ROWS:
        return None
    voters = {i for i, weight in enumerate(recipe.weights) if weight}
    if not voters <= set(shared.members):
        return None
    return rehearse(options, [recipe.weights[i] for i in shared.members], shared)


def sizes_of(
    members: Sequence[Member],
    recipe: combine.Recipe,
    shared: SharedRows | None,
    rehearsal: Rehearsal | None,
    options: VoteOptions,
) -> list[Json]:
    """Return how good the votes of the first members are, each with the member that it adds."""
    if shared is None or rehearsal is None or shared.values.size > LARGEST_HINT:
        return []
    weights = [recipe.weights[i] for i in shared.members]
    scores = growth.scores_by_size(options, weights, shared, rehearsal.parts)
    order = growth.order_of(weights, shared.values, shared.targets, options.metric)
    return [
        {"name": members[shared.members[place]].name, "weight": weights[place], "val": score}
        for place, score in zip(order, scores)
    ]


def single_recipe(
    members: Sequence[Member], shared: SharedRows | None, options: VoteOptions
) -> combine.Recipe:
    """Let the best member by validation answer alone."""
    assert shared is not None, "nothing was tried out"
    best = shared.members[best_members(options.metric, shared.values, shared.targets)[0]]
    return combine.Recipe("mean", [float(i == best) for i in range(len(members))])


def score_validation(
    report: VoteReport,
    shared: SharedRows | None,
    own: dict[int, dict[str, float]],
    recipe: combine.Recipe,
    rehearsal: Rehearsal | None,
) -> None:
    """Score members, the best of them and the vote on validation rows, and judge the gain."""
    options, rows = report.options, report.members
    for number, row in enumerate(rows):
        row.val = own.get(number, {})
        if recipe.temperatures is not None:
            row.temperature = recipe.temperatures[number]
    if shared is not None:
        report.val_rows = len(shared.ids)
        for place, number in enumerate(shared.members):
            rows[number].val = score_all(shared.values[place], shared.targets, options)
    if judged := [i for i, row in enumerate(rows) if row.val]:
        order = combine.ranking(options.metric, [rows[i].val[options.metric] for i in judged])
        report.best_single = rows[judged[order[0]]]
    voters = {i for i, weight in enumerate(recipe.weights) if weight}
    if shared is None or not voters <= set(shared.members):
        return
    if rehearsal is None:
        weights = [recipe.weights[i] for i in shared.members]
        probs = combine.combine(replace(recipe, weights=weights), shared.values)
        report.val = score_all(probs, shared.targets, options)
        report.validation = Validation(
            shared.ids, shared.targets, shared.groups, probs, held_out=False
        )
        return
    probs = rehearsal.single if report.alone else rehearsal.voted
    report.validation = Validation(shared.ids, shared.targets, shared.groups, probs, held_out=True)
    judge(report, shared, recipe, rehearsal)


def judge(
    report: VoteReport, shared: SharedRows, recipe: combine.Recipe, rehearsal: Rehearsal
) -> None:
    """Score the vote, and what greedy would give, where they took no part in the choice."""
    options, parts = report.options, rehearsal.parts
    report.val = score_all(rehearsal.voted, shared.targets, options)
    if options.calibrate:
        report.val["ece_after"] = report.val.pop("ece")
        for place, number in enumerate(shared.members):
            member = replace(shared, values=shared.values[place : place + 1])
            alone = replace(options, select=None, stack=None, weights=None)
            probs = cross_fitted(alone, [1.0], member, parts)
            report.members[number].val["ece_after"] = combine.ece(probs, shared.targets)
    if len(shared.members) < 2:
        return
    report.honest = rehearsal.honest
    decided = options.select or options.stack or options.weights is not None
    if decided or options.method == "geometric":
        return
    if shared.values.size > LARGEST_HINT:
        report.notes.append("--select greedy: not tried unasked on so many validation predictions")
        return
    wish, weights = replace(options, select="greedy"), [recipe.weights[i] for i in shared.members]
    voted = cross_fitted(wish, weights, shared, parts)
    report.greedy = compare(options, shared, parts, rehearsal.single, voted)


def known_targets(
    first: Ballot, truth: dict[str, str], submission: Submission, options: VoteOptions
) -> np.ndarray:
    """Return the true class number of each test row `[N]`, -1 where nobody knows it."""
    source = "split.csv"
    if options.truth is not None:
        source = options.truth
        truth = read_truth(Path(options.truth), first.classes, submission.words)
        if truth.keys().isdisjoint(first.ids):
            raise UserError(f"{source}: has none of the {len(first.ids)} ids of {first.path}")
    number = {name: place for place, name in enumerate(first.classes)}
    targets = np.full(len(first.ids), -1, dtype=np.int64)
    if not truth:
        return targets
    for row, name in enumerate(first.ids):
        label = truth.get(name)
        if label is None:
            continue
        if label not in number:
            raise UserError(
                f"{source}: id {short(name)} has the label {short(label)}, which is "
                f"no class of {first.path}{suggest(label, first.classes)}"
            )
        targets[row] = number[label]
    return targets


class TestFiles:
    """The members' test files, read one after the other in one order of rows and classes.

    Iterating yields each member's probabilities `[N, C]`, and keeps only their scores.
    """

    __test__ = False  # pytest need not look

    def __init__(
        self, members: Sequence[Member], first: Ballot, targets: np.ndarray, options: VoteOptions
    ) -> None:
        self.members, self.targets, self.options = members, targets, options
        self.known = targets >= 0
        self.first: Ballot = first
        self.scores: list[dict[str, float]] = []
        self.rounded: dict[str, float] = {}

    def __iter__(self) -> Iterator[np.ndarray]:
        if not self.first.ids:
            for _ in self.members:
                self.scores.append({})
                yield self.first.probs
            return
        # The first file has been read already: it is kept for its turn, and then let go.
        held = [self.first]
        self.first = replace(self.first, probs=self.first.probs[:0])
        rest = [f for member in self.members for f in member.files if f != self.first.path]
        ballots = read_ballots(rest, self.first.ids)
        for member in self.members:
            own = (held.pop() if f == self.first.path else next(ballots) for f in member.files)
            probs = self._align(next(own))
            for other in own:
                probs = probs + self._align(other)
            if len(member.files) > 1:
                probs = probs / len(member.files)
            self.scores.append(self.score(probs))
            yield probs
            del probs  # before the next file is waited for

    def _align(self, ballot: Ballot) -> np.ndarray:
        if ballot.rounded:
            self.rounded[str(ballot.path)] = ballot.rounded
        check_same_classes(ballot, self.first)
        rows = rows_like(ballot, self.first.ids, self.first.path)
        return ballot.probs if rows is None else ballot.probs[rows]

    def score(self, probs: np.ndarray) -> dict[str, float]:
        """Score the rows whose class is known; none are no score."""
        if not self.known.any():
            return {}
        if self.known.all():
            return score_all(probs, self.targets, self.options)
        return score_all(probs[self.known], self.targets[self.known], self.options)

    def notes(self) -> list[str]:
        """Say what was mended, and what a reader of the files has to know."""
        notes = []
        if self.rounded:
            notes.append(
                f"rounded numbers: rows of {few(self.rounded)} sum to 1 only within "
                f"{max(self.rounded.values()):.2g} and were divided by their sum"
            )
        formulas = [name for name in self.first.ids if looks_like_formula(name)]
        if formulas:
            notes.append(
                f"{len(formulas)} ids would run as a formula in a spreadsheet ({few(formulas, 1)});"
                " they are written as they are, because a submission needs them so"
            )
        return notes
