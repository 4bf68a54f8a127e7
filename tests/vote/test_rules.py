"""Weights of a vote: near to equal of few rows, what the data say of many."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from ballot.vote.rules import PRIOR_ROWS, mixture_weights, start_weights, weigh


def answers(rows: int, sharpness: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Members `[M, N, 4]` whose logits hold the truth the clearer, the sharper they are."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 4, rows)
    logits = rng.normal(size=(len(sharpness), rows, 4))
    logits[:, np.arange(rows), targets] += np.array(sharpness)[:, None]
    exps = np.exp(logits)
    return exps / exps.sum(axis=2, keepdims=True), targets


def test_weights_are_the_likeliest_under_their_prior():
    values, targets = answers(60, [1.0, 1.5, 0.5])
    true, start = values[:, np.arange(60), targets], np.array([0.2, 0.5, 0.3])

    def loss(logits):
        weights = np.exp(logits) / np.exp(logits).sum()
        likelihood = np.log(weights @ true).sum()
        return -likelihood - PRIOR_ROWS * start @ np.log(weights)

    found = minimize(loss, np.zeros(3), tol=1e-10).x
    expected = np.exp(found) / np.exp(found).sum()
    np.testing.assert_allclose(mixture_weights(true, start), expected, atol=1e-4)


def test_few_rows_leave_good_members_alike_and_many_rows_let_the_better_one_speak():
    sharpness = [2.6, 2.2, 2.2]
    few = np.mean([weigh(*answers(30, sharpness, seed), "acc") for seed in range(20)], axis=0)
    many = weigh(*answers(20_000, sharpness), "acc")
    assert few.max() < 0.5
    assert many[0] > 0.6


def test_a_member_at_chance_has_no_say():
    values, targets = answers(100, [3.0, 3.0, 0.0])
    assert weigh(values, targets, "acc")[2] == 0


@pytest.mark.parametrize("metric", ["acc", "f1_macro", "nll"])
def test_equal_members_have_equal_weights(metric):
    values, targets = answers(50, [1.0])
    np.testing.assert_allclose(weigh(np.repeat(values, 3, axis=0), targets, metric), [1 / 3] * 3)


def test_a_lower_score_counts_less_the_fewer_rows_it_is_of():
    scores, losses = np.array([0.80, 0.75]), np.zeros(2)
    error = np.sqrt(0.8 * 0.2 / 64)
    one, two = start_weights(scores, losses, rows=64)
    assert one / two == pytest.approx(np.exp(0.5 * 0.05 / error))
    one, two = start_weights(scores, losses, rows=10_000)
    assert one / two == pytest.approx(np.e)


def test_of_equal_scores_the_lower_log_loss_has_more_say():
    one, two = start_weights(np.array([0.8, 0.8]), np.array([0.5, 1.0]), rows=100)
    assert one / two == pytest.approx(np.exp(0.5))
