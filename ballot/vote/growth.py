"""How the answer changes with the number of members: the votes of the first one, two, ... of them.

Members are taken in the order of their weights, equal ones in the order of their own scores, and
keep their weights.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ballot.vote import combine
from ballot.vote.comparison import SharedRows, independent_share
from ballot.vote.options import VoteOptions
from ballot.vote.selection import fit_recipe, score_all

MOST = 30  # members up to which votes are scored


def order_of(
    weights: list[float], values: np.ndarray, targets: np.ndarray, metric: str
) -> list[int]:
    """Return the places of the members that have a say, the one with the most first."""
    best = combine.ranking(metric, [combine.score(metric, member, targets) for member in values])
    return sorted((i for i in best if weights[i] > 0), key=lambda i: -weights[i])


def scores_by_size(
    options: VoteOptions, weights: list[float], shared: SharedRows, parts: np.ndarray
) -> list[dict[str, float]]:
    """Score the votes of the first members, on rows held out of weights and order: one a size.

    The order is that of each part's own fit; a stack has none, and nothing is returned.
    """
    if options.stack:
        return []
    share, sizes = independent_share(shared), min(MOST, len(weights))
    voted = np.zeros((sizes, *shared.values.shape[1:]))
    for number in np.unique(parts):
        held = parts == number
        values, targets = shared.values[:, ~held], shared.targets[~held]
        recipe = fit_recipe(options, list(weights), values, targets, share)
        order = order_of(recipe.weights, values, targets, options.metric)
        sizes = min(sizes, len(order))
        for size in range(1, sizes + 1):
            some, kept = part_of(recipe, order[:size]), shared.values[order[:size]]
            voted[size - 1, held] = combine.combine(some, kept[:, held])
    return [score_all(probs, shared.targets, options) for probs in voted[:sizes]]


def part_of(recipe: combine.Recipe, places: list[int]) -> combine.Recipe:
    """Return the recipe of some members alone."""
    temperatures = recipe.temperatures
    return replace(
        recipe,
        weights=[recipe.weights[i] for i in places],
        temperatures=None if temperatures is None else [temperatures[i] for i in places],
    )
