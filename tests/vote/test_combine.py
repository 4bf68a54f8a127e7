"""The arithmetic of the vote against scikit-learn, scipy and naive code."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn import metrics
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier

from ballot.errors import UserError
from ballot.vote import combine


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    noisy = images + np.random.default_rng(0).normal(size=images.shape) * 5
    models = [
        ("nb", GaussianNB(var_smoothing=0.01)),
        ("knn", KNeighborsClassifier(7)),
        ("forest", RandomForestClassifier(20, random_state=0)),
        ("tree", DecisionTreeClassifier(max_depth=8, random_state=0)),
    ]
    voter = VotingClassifier(models, voting="soft").fit(noisy[:900], labels[:900])
    values = np.stack([m.predict_proba(noisy[900:]) for m in voter.estimators_])
    return voter, noisy[900:], labels[900:], values


def random_members(members=8, rows=300, classes=4, *, seed=0, hard=False):
    random = np.random.default_rng(seed)
    targets = random.integers(0, classes, rows)
    logits = random.normal(size=(members, rows, classes)) * 2
    logits[:, np.arange(rows), targets] += random.uniform(0, 2, size=(members, 1))
    values = np.stack([combine.softmax(member) for member in logits])
    if hard:
        values = np.stack([combine.transform(member, "hard") for member in values])
    return values, targets


def equal_votes(method, values, weights=None):
    return combine.combine(combine.Recipe(method, weights or [1.0] * len(values)), values)


@pytest.mark.parametrize("weights", [None, [2.0, 1.0, 1.0, 0.5]])
def test_mean_is_what_scikit_learn_votes(digits, weights):
    voter, images, _, values = digits
    voter.set_params(weights=weights)
    np.testing.assert_allclose(
        equal_votes("mean", values, weights), voter.predict_proba(images), rtol=0, atol=1e-15
    )


@pytest.mark.parametrize("weights", [None, [2.0, 1.0, 1.0, 1.0]])
def test_hard_is_what_scikit_learn_votes_ties_included(digits, weights):
    voter, images, _, values = digits
    voter.set_params(weights=weights, voting="hard")
    expected = voter.predict(images)
    voter.set_params(voting="soft")
    assert (equal_votes("hard", values, weights).argmax(axis=1) == expected).all()


def test_geometric_is_the_normalised_geometric_mean():
    values, _ = random_members()
    product = np.prod(values ** (1 / len(values)), axis=0)
    expected = product / product.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(equal_votes("geometric", values), expected, atol=1e-12)


def test_one_members_zero_is_no_veto_in_the_geometric_mean():
    values = np.array([[[0.0, 1.0]], [[0.999999999, 1e-9]], [[0.999999999, 1e-9]]])
    assert equal_votes("geometric", values).argmax() == 0


def test_rank_counts_the_classes_below_and_shares_ties():
    probs = np.array([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]])
    expected = np.array([[2, 1, 0], [1.5, 1.5, 0]]) / 3
    np.testing.assert_allclose(combine.transform(probs, "rank"), expected)


@pytest.mark.parametrize("method", combine.METHODS)
def test_every_method_gives_rows_that_sum_to_one(method):
    values, _ = random_members()
    np.testing.assert_allclose(equal_votes(method, values).sum(axis=1), 1, atol=1e-12)


def test_scores_are_those_of_scikit_learn():
    values, targets = random_members(members=1, classes=5)
    probs, predicted = values[0], values[0].argmax(axis=1)
    targets[targets == 4] = 0  # a class that is predicted and never true
    assert combine.score("acc", probs, targets) == metrics.accuracy_score(targets, predicted)
    assert combine.score("f1_macro", probs, targets) == pytest.approx(
        metrics.f1_score(targets, predicted, average="macro"), abs=1e-12
    )
    assert combine.score("nll", probs, targets) == pytest.approx(
        metrics.log_loss(targets, probs, labels=range(5)), abs=1e-12
    )


def naive_ece(probs, targets, bins=15):
    confidence, hit = probs.max(axis=1), probs.argmax(axis=1) == targets
    total = 0.0
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return total


def test_calibration_error_is_that_of_the_bins():
    values, targets = random_members(members=1)
    assert combine.ece(values[0], targets) == pytest.approx(
        naive_ece(values[0], targets), abs=1e-12
    )


@pytest.mark.parametrize("true_temperature", [0.3, 1.0, 4.0])
def test_temperature_is_the_least_negative_log_likelihood(true_temperature):
    values, targets = random_members(members=1, rows=2000)
    probs = combine.softmax(np.log(values[0]) * true_temperature)

    def loss(log_temperature):
        return metrics.log_loss(
            targets, combine.softmax(combine.log(probs) / np.exp(log_temperature)), labels=range(4)
        )

    best = minimize_scalar(
        loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-9}
    ).x
    assert combine.fit_temperature(probs, targets) == pytest.approx(np.exp(best), rel=1e-4)


@pytest.mark.parametrize("right", [True, False])
def test_temperature_stays_in_its_limits_where_likelihood_has_no_optimum(right):
    probs = np.tile([0.6, 0.4], (30, 1))
    expected = 0.05 if right else 20.0
    assert combine.fit_temperature(probs, np.full(30, 1 - right)) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.05, 0.7, 3.0, 20.0])
def test_temperature_changes_no_answer_not_even_of_equal_or_neighbouring_numbers(temperature):
    values, _ = random_members(members=1, rows=2000, classes=10)
    near = np.array([[0.3, 0.3, 0.4 - 1e-17, 0.0], [0.5, np.nextafter(0.5, 1), 0, 0], [0.25] * 4])
    for probs in (values[0], near):
        changed = combine.apply_temperature(probs, temperature)
        assert (changed.argmax(axis=1) == probs.argmax(axis=1)).all()
        np.testing.assert_allclose(changed.sum(axis=1), 1, atol=1e-12)


NAIVE_SCORES = {
    "acc": lambda probs, targets: (probs.argmax(axis=1) == targets).mean(),
    "f1_macro": lambda probs, targets: metrics.f1_score(
        targets, probs.argmax(axis=1), average="macro"
    ),
    "nll": lambda probs, targets: -metrics.log_loss(targets, probs, labels=range(probs.shape[1])),
}


def naive_greedy(values, targets, metric, steps):
    """Average anew for each candidate, and take the first of the best (Caruana et al., 2004)."""

    def good(chosen):
        # Scores that are the same number of hits may differ in the last digit of a mean.
        return round(NAIVE_SCORES[metric](np.mean(values[chosen], axis=0), targets), 11)

    order = sorted(range(len(values)), key=lambda i: -good([i]))
    starts = [order[: size + 1] for size in range(len(order))]
    kept = chosen = max(starts, key=good)  # max takes the first of equals
    for _ in range(steps):
        chosen = max(([*chosen, i] for i in order), key=good)
        kept = chosen if good(chosen) > good(kept) else kept
    return np.bincount(kept, minlength=len(values)).tolist()


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard, full of ties"])
@pytest.mark.parametrize("metric", combine.METRICS)
@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_chooses_what_the_naive_way_chooses(metric, hard, seed):
    values, targets = random_members(members=7, rows=120, seed=seed, hard=hard)
    assert combine.greedy(values, targets, metric, steps=12) == naive_greedy(
        values, targets, metric, 12
    )


def test_greedy_is_never_worse_than_the_best_member_on_its_own_rows(digits):
    _, _, labels, values = digits
    weights = combine.greedy(values, labels)
    best = max(combine.score("acc", member, labels) for member in values)
    assert combine.score("acc", equal_votes("mean", values, weights), labels) >= best


def test_bags_are_the_same_for_one_seed_and_differ_for_another():
    values, targets = random_members()
    once, again, other = (combine.greedy(values, targets, bags=5, seed=s) for s in (3, 3, 4))
    assert once == again != other
    assert sum(once) == pytest.approx(5)


@pytest.mark.parametrize("classes", [2, 4])
def test_stack_is_scikit_learns_regression_on_all_probabilities(classes):
    values, targets = random_members(members=3, classes=classes)
    features = np.concatenate(list(values), axis=1)
    expected = LogisticRegression(max_iter=1000).fit(features, targets).predict_proba(features)
    recipe = combine.Recipe("mean", [1.0] * 3, stack=combine.fit_stack(values, targets))
    np.testing.assert_allclose(combine.combine(recipe, values), expected, atol=1e-12)


def test_stack_gives_no_chance_to_a_class_without_validation_rows():
    values, targets = random_members(members=3)
    targets[targets == 2] = 1
    recipe = combine.Recipe("mean", [1.0] * 3, stack=combine.fit_stack(values, targets))
    probs = combine.combine(recipe, values)
    assert probs.shape == values[0].shape
    assert (probs[:, 2] == 0).all()


def test_stack_on_one_class_is_an_error():
    values, targets = random_members()
    with pytest.raises(UserError, match="all of one class"):
        combine.fit_stack(values, np.zeros_like(targets))


def test_parts_do_not_depend_on_the_order_of_rows_and_hold_each_class_evenly():
    ids = [f"i{n}" for n in range(100)]
    targets = np.arange(100) % 4
    part = combine.split_parts(ids, targets, None, 5, seed=1)
    order = np.random.default_rng(0).permutation(100)
    shuffled = combine.split_parts([ids[i] for i in order], targets[order], None, 5, seed=1)
    assert (part[order] == shuffled).all()
    assert {int(((part == p) & (targets == c)).sum()) for p in range(5) for c in range(4)} == {5}


def test_parts_do_not_tear_groups_apart():
    groups = [f"person{n // 3}" for n in range(60)]
    part = combine.split_parts([f"i{n}" for n in range(60)], np.zeros(60, int), groups, 5, seed=0)
    assert all(len({int(p) for p, g in zip(part, groups) if g == name}) == 1 for name in groups)
    assert np.bincount(part).tolist() == [12] * 5


def test_cross_fitting_never_scores_a_row_that_was_fitted_on():
    values, targets = random_members()
    part = np.arange(len(targets)) % 5
    seen = []

    def fit(some, some_targets):
        seen.append(len(some_targets))
        # A recipe that cheats: it takes the member that is right most often on what it sees.
        best = int(np.argmax([combine.score("acc", member, some_targets) for member in some]))
        return combine.Recipe("mean", [float(i == best) for i in range(len(some))])

    probs = combine.cross_fit(fit, values, targets, part)
    assert seen == [240] * 5
    for number in range(5):
        held = part == number
        alone = [combine.score("acc", member[~held], targets[~held]) for member in values]
        assert (probs[held] == values[int(np.argmax(alone))][held]).all()
