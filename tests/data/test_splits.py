"""Splits: stratified, whole groups, the same everywhere."""

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from ballot.data.splits import natural_groups, split_folds, split_single
from ballot.errors import UserError


def labels_of(*counts: int) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.33, 0.5])
def test_single_rows_meet_the_ratio_in_every_class(ratio):
    labels = labels_of(100, 40, 60)
    train, val = split_single(labels, np.arange(200), ratio, 1, by_group=False)
    assert sorted([*train, *val]) == list(range(200))
    assert len(val) == round(200 * ratio)
    for label, count in enumerate((100, 40, 60)):
        assert abs(np.count_nonzero(labels[val] == label) - count * ratio) < 1


def test_a_class_of_one_row_is_trained_on():
    labels = labels_of(20, 1)
    train, _ = split_single(labels, np.arange(21), 0.5, 0, by_group=False)
    assert 20 in train


@pytest.mark.parametrize("by_group", [False, True])
def test_the_seed_decides_alone(by_group):
    labels, groups = labels_of(30, 30), np.arange(60) // 3
    again = [split_single(labels, groups, 0.2, 7, by_group=by_group) for _ in range(2)]
    other = split_single(labels, groups, 0.2, 8, by_group=by_group)
    assert np.array_equal(again[0][1], again[1][1])
    assert not np.array_equal(again[0][1], other[1])


@pytest.mark.parametrize("ratio", [0.1, 0.15, 0.2, 0.3, 0.5])
def test_groups_stay_whole_and_near_the_ratio(ratio):
    labels = np.tile([0, 0, 0, 1, 2], 40)
    groups = np.arange(200) // 5
    for seed in range(5):
        train, val = split_single(labels, groups, ratio, seed, by_group=True)
        assert not set(groups[train]) & set(groups[val])
        assert abs(len(val) / 200 - ratio) < 0.03


def unevenness(folds, labels):
    """Largest difference between a fold's count of a class and the even share."""
    even = np.bincount(labels) / len(folds)
    return max(abs(np.bincount(labels[val], minlength=len(even)) - even).max() for _, val in folds)


def test_group_folds_are_as_even_as_scikit_learns():
    ours, theirs = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        groups = rng.integers(0, 60, 600)
        labels = (groups + rng.integers(0, 2, 600)) % 4
        ours.append(unevenness(split_folds(labels, groups, 5, seed, by_group=True), labels))
        splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        theirs.append(unevenness(list(splitter.split(labels, labels, groups)), labels))
    assert np.mean(ours) <= 1.3 * np.mean(theirs)


def test_groups_are_dealt_out_as_scikit_learn_does():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        parts, groups = int(rng.integers(2, 7)), rng.integers(0, 40, 400)
        labels = rng.integers(0, 6, 400) if seed % 2 else groups % 5
        pairs = split_folds(labels, groups, parts, seed, by_group=True)
        units, of_row = np.unique(groups, return_inverse=True)
        drawn = np.random.default_rng(seed).permutation(len(units))[of_row]
        theirs = StratifiedGroupKFold(parts).split(labels, labels, drawn)
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(pairs, theirs))


@pytest.mark.parametrize("by_group", [False, True])
def test_folds_hold_every_row_out_once(by_group):
    labels, groups = labels_of(31, 17, 12), np.arange(60) // 2
    pairs = split_folds(labels, groups, 4, 0, by_group=by_group)
    assert sorted(np.concatenate([val for _, val in pairs])) == list(range(60))
    assert all(not set(groups[train]) & set(groups[val]) for train, val in pairs)


def test_rows_without_groups_are_dealt_out_evenly():
    labels = labels_of(20, 20, 11)
    for _, val in split_folds(labels, np.arange(51), 5, 0, by_group=False):
        assert np.bincount(labels[val], minlength=3)[:2].tolist() == [4, 4]
        assert np.count_nonzero(labels[val] == 2) in (2, 3)


def test_copies_are_tied_to_their_original():
    groups = natural_groups(6, [None] * 6, [b"x", None, b"x", b"y", b"y", None])
    assert groups[0] == groups[2] != groups[3] == groups[4]
    assert len(set(groups)) == 4


def test_groups_that_share_a_copy_become_one():
    groups = natural_groups(4, ["ann", "ann", "bob", "cid"], [None, b"x", b"x", None])
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_too_few_groups_is_said():
    with pytest.raises(UserError, match="2 groups cannot be put into 3 parts"):
        split_folds(labels_of(4, 4), np.arange(8) // 4, 3, 0, by_group=True)
    with pytest.raises(UserError, match="all rows are of one group"):
        split_single(labels_of(4, 4), np.zeros(8, int), 0.2, 0, by_group=True)
