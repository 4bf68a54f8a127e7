"""The weights of a vote by what the members answered on validation rows: few rows, equal weights.

Of few rows a choice is luck, and members that are about as good do best with about the same say;
of many rows the data may speak. So weights start near to equal among the good, and each validation
row moves them a little. bench/answers.py compares this with other rules; the numbers below lie
in the middle of a wide range that does about as well.
"""

from __future__ import annotations

import numpy as np

from ballot.vote import combine

STRONGEST = 20.0  # a member that scores 0.05 less starts with a weight e times smaller, at most;
OF_AN_ERROR = 0.5  # of few rows, one standard error less is a weight smaller by exp(0.5)
PRIOR_ROWS = 30.0  # what the start counts, in validation rows
ROUNDS = 200
SETTLED = 1e-5  # in weights; further rounds would not be seen
LEAST = 1e-3  # of the largest weight: below it a member costs a prediction and changes nothing


def start_weights(scores: np.ndarray, losses: np.ndarray, rows: float) -> np.ndarray:
    """Weigh members `[M]` by their scores (in 0..1, the larger the better) and their log losses.

    The fewer validation rows the scores are of, the less they count.
    """
    best = scores.max()
    error = np.sqrt(max(best * (1 - best), 0.25 / rows) / rows)
    pull = min(STRONGEST, OF_AN_ERROR / error)
    weights = np.exp(pull * (scores - best) - (losses - losses.min()))
    return np.asarray(weights / weights.sum())


def mixture_weights(true: np.ndarray, start: np.ndarray, rows: float = PRIOR_ROWS) -> np.ndarray:
    """Find the weights `[M]` of the mixture that makes the true classes likeliest.

    `true` `[M, N]` is what each member gives the true class of each row. `start` counts like
    `rows` further rows that speak for it (a Dirichlet prior); solved by expectation-maximisation.
    """
    true = np.maximum(true, combine.TINY)
    weights = start
    for _ in range(ROUNDS):
        shares = weights * (true @ (1 / (weights @ true)))  # of all rows, each member's
        before, weights = weights, (shares + rows * start) / (true.shape[1] + rows)
        if np.abs(weights - before).max() < SETTLED:
            break
    return weights


def weigh(values: np.ndarray, targets: np.ndarray, metric: str, share: float = 1.0) -> list[float]:
    """Return the weight of each member of `values` `[M, N, C]`, as `--select auto` gives them.

    `share` of the rows count as independent: a person's images are right or wrong together.
    """
    by = "f1_macro" if metric == "f1_macro" else "acc"  # both in 0..1, beside the log loss
    scores, losses = (
        np.array([combine.score(name, member, targets) for member in values])
        for name in (by, "nll")
    )
    start = start_weights(scores, np.minimum(losses, -np.log(combine.TINY)), share * len(targets))
    true = values[:, np.arange(len(targets)), targets]
    weights = mixture_weights(true, start, PRIOR_ROWS / share)
    weights[weights < LEAST * weights.max()] = 0.0
    return [float(weight) for weight in weights / weights.sum()]
