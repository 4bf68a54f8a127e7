"""Whether a vote is better than its best member, on validation rows that chose neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ballot.vote import combine
from ballot.vote.options import VoteOptions

FEWEST_ROWS = 20  # a choice among members on fewer validation rows is a lottery


@dataclass(frozen=True)
class SharedRows:
    """Validation rows that all of `members` (numbers) have: `values` `[M, N, C]`."""

    members: list[int]
    ids: list[str]
    targets: np.ndarray
    groups: list[str] | None
    values: np.ndarray


@dataclass(frozen=True)
class Honest:
    """Scores by `metric` on validation rows that took no part in any choice (cross-fitted).

    `gain` is `vote - best_single` in the direction in which more is better; `error` is the
    standard error of that difference over rows, or over groups where rows have such (None for a
    metric that is no mean of rows).
    `nll_gain` is what the log loss gains, `worse` the verdict (`is_worse`).
    """

    metric: str
    rows: int
    parts: int
    best_single: float
    vote: float
    gain: float
    error: float | None
    nll_gain: float = 0.0
    worse: bool = False


def compare(
    options: VoteOptions,
    shared: SharedRows,
    parts: np.ndarray,
    single: np.ndarray,
    voted: np.ndarray,
) -> Honest:
    """Compare the best single member and a vote on rows that neither had been chosen on."""
    metric, targets = options.metric, shared.targets
    before, after = (combine.score(metric, probs, targets) for probs in (single, voted))
    each = (voted.argmax(axis=1) == targets) * 1.0 - (single.argmax(axis=1) == targets)
    error = standard_error(each, shared.groups)
    gain = before - after if metric in combine.LOWER_IS_BETTER else after - before
    nll_gain = combine.score("nll", single, targets) - combine.score("nll", voted, targets)
    worse = is_worse(gain, nll_gain, error)
    return Honest(
        metric,
        len(targets),
        int(parts.max()) + 1,
        before,
        after,
        gain,
        error if metric == "acc" else None,
        nll_gain,
        worse,
    )


def standard_error(values: np.ndarray, groups: Sequence[str] | None) -> float:
    """Return the standard error of the mean of `values` `[N]`.

    Rows of a group (a person's images) are right or wrong together and count as one draw.
    """
    names = range(len(values)) if groups is None else groups
    place = {name: number for number, name in enumerate(dict.fromkeys(names))}
    sums = np.bincount([place[name] for name in names], weights=values - values.mean())
    return float(np.sqrt((sums**2).sum() * len(sums) / max(1, len(sums) - 1)) / len(values))


def independent_share(shared: SharedRows) -> float:
    """Return as how many independent rows each row counts: 1 without groups, else less.

    It is the design effect of a cluster sample (Kish, 1965), of how often the members are right.
    """
    if shared.groups is None:
        return 1.0
    right = np.mean([member.argmax(axis=1) == shared.targets for member in shared.values], axis=0)
    by_row, by_group = standard_error(right, None), standard_error(right, shared.groups)
    if by_group <= by_row:
        return 1.0
    return max((by_row / by_group) ** 2, len(set(shared.groups)) / len(right))


def is_worse(gain: float, nll_gain: float, error: float) -> bool:
    """Tell whether a vote is worse than the best single member.

    A loss within two standard errors (of accuracy) is no loss yet: there the log loss decides,
    which sees more of each row.
    """
    return gain < 0 and (gain < -2 * error or nll_gain < 0)
