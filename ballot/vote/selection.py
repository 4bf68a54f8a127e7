"""The validation side of a vote: the rows members share, the choice made on them, its honest score.

A choice is fitted on one part of the rows and scored on another (cross-fitted), and so is the best
single member that it is compared with.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ballot.errors import UserError
from ballot.vote import combine, rules
from ballot.vote.ballots import Ballot, check_same_classes, read_ballot
from ballot.vote.comparison import FEWEST_ROWS, Honest, SharedRows, compare, independent_share
from ballot.vote.members import Member
from ballot.vote.options import VoteOptions
from ballot.vote.truth import Knowledge
from ballot.wording import few, short

MANY_ROWS = 5000  # from here on halves do, and five parts would only cost time


def read_shared_rows(
    members: Sequence[Member],
    first: Ballot,
    knowledge: Knowledge,
    notes: list[str],
    options: VoteOptions,
) -> tuple[SharedRows | None, dict[int, dict[str, float]]]:
    """Read the members' `val.csv` and keep the rows they have in common.

    Returns these rows (None where there are none) and each member's score on its own rows.
    """
    read = read_validations(members)
    missing = [m.name for i, m in enumerate(members) if i not in read]
    if missing and read:
        notes.append(f"no validation predictions (val.csv): {few(missing)}")
    if not read:
        return None, {}
    for ballot in read.values():
        check_same_classes(ballot, first)
    truth = agreed_labels(read.values())
    own = {
        i: score_all(b.probs, numbers(b.labels or (), b.classes), options) for i, b in read.items()
    }
    ids = common_rows(read.values(), notes)
    if not ids:
        return None, own
    groups = [knowledge.groups.get(i, f"\0{i}") for i in ids] if knowledge.groups else None
    targets = numbers([truth[i] for i in ids], first.classes)
    return SharedRows(list(read), ids, targets, groups, take_rows(read, ids)), own


def common_rows(ballots: Collection[Ballot], notes: list[str]) -> list[str]:
    """Return the ids of the rows that all have, sorted; note where some have others as well."""
    orders = {id(ballot.ids): ballot.ids for ballot in ballots}.values()  # most share one list
    known = set[str]().union(*orders)
    common = known.intersection(*orders)
    if len(common) < max(len(ids) for ids in orders):
        scored = ", scores are of these"
        if not common:
            scored = (
                ", each score is of a member's own rows; "
                "--group_folds joins the folds of one configuration"
            )
        notes.append(
            f"validation rows differ between members: {len(common):,} of {len(known):,} are common "
            f"to all{scored}"
        )
    return sorted(common)


def take_rows(read: dict[int, Ballot], ids: Sequence[str]) -> np.ndarray:
    """Return the rows `ids` of all ballots, `[M, N, C]`, and empty `read`.

    Each ballot is let go as soon as it is copied: two copies of all would not fit into memory.
    """
    values = np.empty((len(read), len(ids), len(next(iter(read.values())).classes)))
    order: list[str] | None = None
    rows: list[int] = []
    for place, number in enumerate(list(read)):
        ballot = read.pop(number)
        if ballot.ids is not order:
            index = {name: row for row, name in enumerate(ballot.ids)}
            order, rows = ballot.ids, [index[name] for name in ids]
        values[place] = ballot.probs[rows]
    return values


def agreed_labels(ballots: Iterable[Ballot]) -> dict[str, str]:
    """Return the label of each validation row; two runs that differ in one are refused."""
    truth: dict[str, str] = {}
    before = None
    for ballot in ballots:
        if before is not None and ballot.ids is before.ids and ballot.labels is before.labels:
            continue
        before = ballot
        for name, label in zip(ballot.ids, ballot.labels or (), strict=True):
            if truth.setdefault(name, label) != label:
                raise UserError(
                    f"{ballot.path}: calls {short(name)} {short(label)} and another run "
                    f"{short(truth[name])}; vote over runs of the same data"
                )
    return truth


def numbers(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Class numbers `[N]` of class names."""
    index = {name: number for number, name in enumerate(classes)}
    return np.array([index[label] for label in labels], dtype=np.int64)


def read_validations(members: Sequence[Member]) -> dict[int, Ballot]:
    """Read the members' validation rows by their numbers; what has none is left out.

    Ids and labels that are those of the member before are the same lists: of a thousand members
    they would take as much memory as the probabilities.
    """
    read: dict[int, Ballot] = {}
    before: Ballot | None = None
    for number, member in enumerate(members):
        ballot = read_validation(member)
        if ballot is None:
            continue
        if before is not None and (ballot.ids, ballot.labels) == (before.ids, before.labels):
            ballot = replace(ballot, ids=before.ids, labels=before.labels)
        read[number] = before = ballot
    return read


def read_validation(member: Member) -> Ballot | None:
    """Read a member's validation rows; those of several folds are put together.

    A row that several seeds have held out counts with their mean.
    """
    paths = [folder / "val.csv" for folder in member.folders]
    if len(paths) < len(member.files) or not all(path.is_file() for path in paths):
        return None
    ballots = [read_ballot(path, labelled=True) for path in paths]
    if len(ballots) == 1:
        return ballots[0]
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    labels = agreed_labels(ballots)
    for ballot in ballots:
        check_same_classes(ballot, ballots[0])
        for name, probs in zip(ballot.ids, ballot.probs, strict=True):
            sums[name] = sums[name] + probs if name in sums else probs
            counts[name] = counts.get(name, 0) + 1
    ids = sorted(sums)
    probs = np.array([sums[name] / counts[name] for name in ids])
    return replace(ballots[0], ids=ids, probs=probs, labels=[labels[name] for name in ids])


def score_all(probs: np.ndarray, targets: np.ndarray, options: VoteOptions) -> dict[str, float]:
    """Score by accuracy, by the metric asked for, and by calibration where that is asked for."""
    names = dict.fromkeys(("acc", options.metric))
    scores = {name: combine.score(name, probs, targets) for name in names}
    return {**scores, "ece": combine.ece(probs, targets)} if options.calibrate else scores


def make_recipe(
    members: Sequence[Member], shared: SharedRows | None, options: VoteOptions, notes: list[str]
) -> combine.Recipe:
    """Decide weights, temperatures and stacking for all members, from the validation rows."""
    if options.select in (None, "all") and not options.stack and not options.calibrate:
        return combine.Recipe(options.method, [m.weight for m in members])
    wishes = {"--stack": options.stack, "--select": options.select, "--calibrate": True}
    asked = next(name for name, wish in wishes.items() if wish)
    if options.select == "auto" and (shared is None or len(shared.ids) < FEWEST_ROWS):
        rows = f"only {len(shared.ids)} validation rows are" if shared else "no validation row is"
        notes.append(f"{rows} common to all members: all of them have the same weight")
        return combine.Recipe(options.method, [m.weight for m in members])
    if shared is None:
        raise UserError(
            f"{asked}: needs validation rows that all members predict; keep the run folders "
            "(outputs/<run>/val.csv) beside the CSVs, join folds with --group_folds"
        )
    if len(shared.ids) < FEWEST_ROWS:
        raise UserError(
            f"{asked}: only {len(shared.ids)} validation rows are common to all members; "
            f"it needs {FEWEST_ROWS}"
        )
    weights = [members[i].weight for i in shared.members]
    fitted = fit_recipe(options, weights, shared.values, shared.targets, independent_share(shared))
    if len(shared.members) == len(members):
        return fitted
    chooses = options.select not in (None, "all") or options.stack
    left = [m.name for i, m in enumerate(members) if i not in set(shared.members)]
    then = "and so left out" if chooses else "not calibrated"
    notes.append(f"without validation rows, {then}: {few(left)}")
    return spread(fitted, shared.members, [0.0 if chooses else m.weight for m in members])


def spread(recipe: combine.Recipe, places: list[int], weights: list[float]) -> combine.Recipe:
    """Put a recipe for some members into their places among all, whose default is `weights`."""
    temperatures = None if recipe.temperatures is None else [1.0] * len(weights)
    stack = recipe.stack
    if stack is not None:
        coef = np.zeros((len(weights), *stack.coef.shape[1:]))
        coef[places] = stack.coef
        stack = replace(stack, coef=coef)
    for own, place in enumerate(places):
        weights[place] = recipe.weights[own]
        if temperatures is not None and recipe.temperatures is not None:
            temperatures[place] = recipe.temperatures[own]
    return combine.Recipe(recipe.method, weights, temperatures, stack)


def fit_recipe(
    options: VoteOptions,
    weights: list[float],
    values: np.ndarray,
    targets: np.ndarray,
    share: float = 1.0,
) -> combine.Recipe:
    """Fit temperatures and choose weights on these validation rows alone.

    `share` of them count as independent (`independent_share`).
    """
    temperatures = None
    if options.calibrate:
        temperatures = [combine.fit_temperature(member, targets) for member in values]
        values = np.stack(
            [combine.apply_temperature(m, t) for m, t in zip(values, temperatures, strict=True)]
        )
    if options.stack:
        stack = combine.fit_stack(values, targets)
        return combine.Recipe(options.method, [1.0] * len(values), temperatures, stack)
    if options.select == "greedy":
        if options.method != "mean":
            values = np.stack([combine.transform(member, options.method) for member in values])
        weights = combine.greedy(
            values, targets, options.metric, bags=options.bag, seed=options.seed
        )
    elif options.select == "auto":
        weights = rules.weigh(values, targets, options.metric, share)
    elif options.select and options.select.startswith("best:"):
        kept = best_members(options.metric, values, targets)[: int(options.select[5:])]
        weights = [float(i in kept) for i in range(len(values))]
    return combine.Recipe(options.method, weights, temperatures)


def best_members(metric: str, values: np.ndarray, targets: np.ndarray) -> list[int]:
    """Order members from the best to the worst on these rows."""
    return combine.ranking(metric, [combine.score(metric, member, targets) for member in values])


def parts_of(shared: SharedRows, options: VoteOptions) -> np.ndarray:
    """Deal the rows into five parts, many rows into halves; groups are not torn apart."""
    parts = 5 if len(shared.ids) < MANY_ROWS else 2
    groups = shared.groups if shared.groups and len(set(shared.groups)) >= 2 * parts else None
    return combine.split_parts(shared.ids, shared.targets, groups, parts, options.seed)


def cross_fitted(
    options: VoteOptions, weights: list[float], shared: SharedRows, parts: np.ndarray
) -> np.ndarray:
    """Predict every row by what was fitted on the other parts; without a fit, directly."""

    share = independent_share(shared)

    def fit(values: np.ndarray, targets: np.ndarray) -> combine.Recipe:
        return fit_recipe(options, weights, values, targets, share)

    if options.select in (None, "all") and not options.stack and not options.calibrate:
        return combine.combine(fit(shared.values, shared.targets), shared.values)
    return combine.cross_fit(fit, shared.values, shared.targets, parts)


@dataclass(frozen=True)
class Rehearsal:
    """The vote, and the best single member, on rows held out of every choice: `[N, C]` each."""

    parts: np.ndarray
    single: np.ndarray
    voted: np.ndarray
    honest: Honest


def rehearse(options: VoteOptions, weights: list[float], shared: SharedRows) -> Rehearsal:
    """Predict all validation rows by a vote, and by a single member, that had not seen them."""
    parts = parts_of(shared, options)
    voted = cross_fitted(options, weights, shared, parts)
    best = replace(options, select="best:1", stack=None, calibrate=False, method="mean")
    single = cross_fitted(best, weights, shared, parts)
    return Rehearsal(parts, single, voted, compare(options, shared, parts, single, voted))
