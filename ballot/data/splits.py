"""Which rows are trained on and which are held out: stratified, by group, the same everywhere."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from fractions import Fraction

import numpy as np

from ballot.errors import UserError

# A share such as 0.3 of the groups is put together from this many parts at most.
FINEST = 20


def natural_groups(count: int, *memberships: Sequence[Hashable | None]) -> np.ndarray:
    """Join rows that share a member of any of `memberships`; return one number a row [N].

    Rows whose member is None stand alone there. A person's rows and the rows of one image that was
    copied under two names end up in one group, so that no split can part them.
    """
    parent = list(range(count))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for members in memberships:
        first: dict[Hashable, int] = {}
        for row, member in enumerate(members):
            if member is None:
                continue
            a, b = root(first.setdefault(member, row)), root(row)
            parent[max(a, b)] = min(a, b)
    return np.array([root(row) for row in range(count)], dtype=np.int64)


def split_single(
    labels: np.ndarray, groups: np.ndarray, amount: float, seed: int, *, by_group: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows [N] into training and validation rows, stratified by label.

    The `amount` held out is a share below 1, and a number of rows from 1 on.
    Rows of one group stay on one side. `by_group` says that groups are large and to be balanced
    too; else only copies of an image are tied together and labels are met exactly.
    """
    if amount >= len(labels):
        raise UserError(
            f"val_rows: {amount:g} of {len(labels)} rows cannot be held out; choose fewer"
        )
    if by_group:
        finest = min(FINEST, len(np.unique(groups)))
        if finest < 2:
            raise UserError("split: all rows are of one group; none could be held out")
        exact = Fraction(amount if amount < 1 else amount / len(labels))
        share = exact.limit_denominator(finest)
        share = min(max(share, Fraction(1, finest)), 1 - Fraction(1, finest))
        held_out = _group_parts(labels, groups, share.denominator, seed) < share.numerator
    elif amount >= 1:
        held_out = _pick_rows(labels, groups, int(amount), seed)
    else:
        units, of_row = np.unique(groups, return_inverse=True)
        held_out = _pick_stratified(labels[units], amount, seed)[of_row]
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def split_folds(
    labels: np.ndarray, groups: np.ndarray, folds: int, seed: int, *, by_group: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split rows [N] into `folds` pairs of training and validation rows; each is held out once."""
    if by_group:
        parts = _group_parts(labels, groups, folds, seed)
    else:
        units, of_row = np.unique(groups, return_inverse=True)
        parts = _unit_parts(labels[units], folds, seed)[of_row]
    return [(np.flatnonzero(parts != k), np.flatnonzero(parts == k)) for k in range(folds)]


def _group_parts(labels: np.ndarray, groups: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """Number of the part of each row [N], with whole groups in a part (StratifiedGroupKFold)."""

    units, of_row = np.unique(groups, return_inverse=True)
    count = len(units)
    if count < parts:
        raise UserError(
            f"split: {count} groups cannot be put into {parts} parts; lower folds, or choose "
            "another group_column"
        )
    # Groups are drawn an order: of equal ones the first is dealt first.
    of_row = np.random.default_rng(seed).permutation(count)[of_row]
    # A class with fewer rows than parts only means that some parts lack it: the audit tells.
    classes = np.unique(labels, return_inverse=True)[1] if np.bincount(labels).max() >= parts else 0
    width = int(np.max(classes)) + 1
    counts = np.bincount(of_row * width + classes, minlength=count * width).reshape(count, width)
    return _deal(counts.astype(np.float64), parts)[of_row]


def _deal(counts: np.ndarray, parts: int) -> np.ndarray:
    """Number of the part of each group [G], of which `counts` [G, C] says the rows of each class.

    As scikit-learn's `StratifiedGroupKFold` decides, in a ninth of its time: the most uneven groups
    first, each to the part with which the parts' shares of the classes differ least, and of equal
    parts to the one with fewer rows.
    """
    totals, own = counts.sum(0), np.eye(parts)[:, :, None]
    held, rows = np.zeros((parts, counts.shape[1])), [0.0] * parts
    out = np.empty(len(counts), dtype=np.int64)
    for group in np.argsort(-np.std(counts, axis=1), kind="stable"):
        shares = (held + own * counts[group]) / totals  # [parts: where to, parts, C]
        apart = shares - (shares.sum(1) / parts)[:, None]
        spread = np.sqrt((apart * apart).sum(1) / parts).mean(1).tolist()
        best, least, fewest = 0, np.inf, np.inf
        for part, value in enumerate(spread):
            close = abs(value - least) <= 1e-8 + 1e-5 * abs(least) and least < np.inf
            if value < least or (close and rows[part] < fewest):
                best, least, fewest = part, value, rows[part]
        held[best] += counts[group]
        rows[best] += counts[group].sum()
        out[group] = best
    return out


def _unit_parts(labels: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """Number of the part of each row [N], each class dealt out evenly in a drawn order."""
    if len(labels) < parts:
        raise UserError(f"split: {len(labels)} rows cannot be put into {parts} parts; lower folds")
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    # Dealing the classes one after another like cards keeps both classes and sizes even.
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    out = np.empty(len(labels), dtype=np.int64)
    out[order] = np.arange(len(labels)) % parts
    return out


def _pick_rows(labels: np.ndarray, groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Mark `count` of the rows [N], each class its share of them; few rows leave a class out.

    Rows that have a copy are taken only where the others do not suffice: a copy would come along.
    """
    units, of_row, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    usable = np.flatnonzero(sizes == 1)
    if len(usable) < count:
        usable = np.arange(len(units))
    rng = np.random.default_rng(seed)
    of_class = labels[units[usable]]
    classes, counts = np.unique(of_class, return_counts=True)
    wanted = counts * min(count / len(usable), 1.0)
    take = np.floor(wanted).astype(np.int64)
    order = np.lexsort((rng.random(len(classes)), take - wanted))
    take[order[: min(count, len(usable)) - take.sum()]] += 1
    marked = np.zeros(len(units), dtype=bool)
    for label, number in zip(classes, take):
        marked[usable[rng.permutation(np.flatnonzero(of_class == label))[:number]]] = True
    return marked[of_row]


def _pick_stratified(labels: np.ndarray, ratio: float, seed: int) -> np.ndarray:
    """Mark `ratio` of the rows [N], each class its share; a class of one row is left unmarked."""
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    wanted = counts * ratio
    take = np.floor(wanted).astype(np.int64)
    missing = min(round(len(labels) * ratio) - take.sum(), len(classes))
    if missing > 0:  # the largest remainders first, drawn among equals
        order = np.lexsort((rng.random(len(classes)), take - wanted))
        take[order[:missing]] += 1
    take = np.where(counts >= 2, np.clip(take, 1, counts - 1), 0)
    marked = np.zeros(len(labels), dtype=bool)
    for label, n in zip(classes, take):
        rows = np.flatnonzero(labels == label)
        marked[rng.permutation(rows)[:n]] = True
    return marked
