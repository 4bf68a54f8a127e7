"""The weights of a vote by what the members answered on validation rows: few rows, equal weights.

Of few rows a choice is luck, and members that are about as good do best with about the same say;
of many rows the data may speak. So weights start near to equal among the good, and each validation
row moves them a little.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ballot.vote import combine

PULL = 20.0  # a member that scores 0.05 less starts with a weight that is e times smaller
PRIOR_ROWS = 50.0  # what the start counts, in validation rows
ROUNDS = 200
SETTLED = 1e-6  # in weights; further rounds would not be seen
LEAST = 1e-3  # of the largest weight: below it a member costs a prediction and changes nothing


def start_weights(scores: Sequence[float]) -> np.ndarray:
    """Weigh members `[M]` by their scores, in 0..1 and better where larger."""
    weights = np.exp(PULL * (np.array(scores) - max(scores)))
    return np.asarray(weights / weights.sum())


def mixture_weights(true: np.ndarray, start: np.ndarray, rows: float = PRIOR_ROWS) -> np.ndarray:
    """Find the weights `[M]` of the mixture that makes the true classes likeliest.

    `true` `[M, N]` is what each member gives the true class of each row. `start` counts like
    `rows` further rows that speak for it (a Dirichlet prior); solved by expectation-maximisation.
    """
    true = np.maximum(true, combine.TINY)
    weights = start
    for _ in range(ROUNDS):
        shares = weights[:, None] * true
        shares /= shares.sum(axis=0)
        before, weights = weights, (shares.sum(axis=1) + rows * start) / (true.shape[1] + rows)
        if np.abs(weights - before).max() < SETTLED:
            break
    return weights


def weigh(values: np.ndarray, targets: np.ndarray, metric: str) -> list[float]:
    """Return the weight of each member of `values` `[M, N, C]`, as `--select auto` gives them."""
    by = "f1_macro" if metric == "f1_macro" else "acc"  # both in 0..1; log loss has its say below
    start = start_weights([combine.score(by, member, targets) for member in values])
    weights = mixture_weights(values[:, np.arange(len(targets)), targets], start)
    weights[weights < LEAST * weights.max()] = 0.0
    return [float(weight) for weight in weights / weights.sum()]
