"""The validation rows that members share: read once, held once."""

import tracemalloc

import numpy as np
import pytest

from ballot.vote.ballots import read_ballot, write_ballot
from ballot.vote.comparison import SharedRows, independent_share, is_worse, standard_error
from ballot.vote.members import name_members
from ballot.vote.options import VoteOptions
from ballot.vote.selection import read_shared_rows, read_validations
from ballot.vote.truth import Knowledge

CLASSES = ["a", "b", "c", "d", "e"]


def make_members(folder, count, rows, shuffled=()):
    rng, ids = np.random.default_rng(0), [f"image{row:06d}.jpg" for row in range(rows)]
    probs = rng.dirichlet(np.ones(5), (count, rows)).astype(np.float32)
    for number, values in enumerate(probs):
        order = rng.permutation(rows) if number in shuffled else np.arange(rows)
        labels = [CLASSES[row % 5] for row in order]
        write_ballot(folder / f"run{number:03d}.csv", ids[:2], CLASSES, values[:2])
        write_ballot(
            folder / f"run{number:03d}" / "val.csv",
            [ids[row] for row in order],
            CLASSES,
            values[order],
            labels,
        )
    members = name_members(sorted(folder.glob("*.csv")), None)
    return members, read_ballot(members[0].files[0]), ids, probs


@pytest.mark.parametrize("shuffled", [(), (1,), (0, 1, 2, 3)])
def test_each_row_of_the_poll_is_the_members_own_whatever_their_order(tmp_path, shuffled):
    members, first, ids, probs = make_members(tmp_path, 4, 30, shuffled)
    shared, own = read_shared_rows(members, first, Knowledge({}, {}), [], VoteOptions())
    assert shared.members == [0, 1, 2, 3] and shared.ids == ids
    assert shared.targets.tolist() == [row % 5 for row in range(30)]
    assert shared.values == pytest.approx(probs, abs=1e-6)
    for number, scores in own.items():
        right = probs[number].argmax(axis=1) == shared.targets
        assert scores["acc"] == pytest.approx(right.mean())


def test_members_of_the_same_rows_hold_their_ids_and_labels_once(tmp_path):
    members, *_ = make_members(tmp_path, 4, 30, shuffled=(3,))
    a, b, c, d = read_validations(members).values()
    assert a.ids is b.ids is c.ids and a.labels is b.labels is c.labels
    assert d.ids is not a.ids and sorted(d.ids) == a.ids


def test_a_poll_of_many_members_takes_little_more_than_its_numbers(tmp_path):
    members, first, *_ = make_members(tmp_path, 60, 1000)
    make = members, first, Knowledge({}, {}), [], VoteOptions()
    read_shared_rows(*make)  # imports, once
    tracemalloc.start()
    shared, _ = read_shared_rows(*make)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.4 * shared.values.nbytes  # what was read, and the same in one array


@pytest.mark.parametrize(
    "gain, nll_gain, worse",
    [
        (0.01, -0.1, False),
        (0.0, -0.1, False),
        (-0.01, 0.1, False),
        (-0.01, -0.1, True),
        (-0.05, 0.1, True),
        (-0.03, 0.1, False),
    ],
)
def test_a_vote_is_worse_beyond_two_errors_or_by_log_loss_within_it(gain, nll_gain, worse):
    assert is_worse(gain, nll_gain, error=0.02) == worse


def test_rows_of_a_group_count_as_one_draw():
    values = np.array([1.0, 0.0, -1.0, 0.0, 1.0, 1.0])
    alone = values.std(ddof=1) / np.sqrt(6)
    assert standard_error(values, None) == pytest.approx(alone)
    assert standard_error(values, list("abcdef")) == pytest.approx(alone)
    twice = standard_error(np.repeat(values, 2), [k for k in "abcdef" for _ in range(2)])
    assert twice == pytest.approx(alone)


def test_images_that_are_right_together_count_as_one_row():
    right = np.repeat([1, 0, 1, 1, 0, 1], 5)
    values = np.stack([np.stack([right, 1 - right], axis=1)] * 2)
    groups = [str(k // 5) for k in range(30)]
    assert independent_share(SharedRows([0, 1], [], np.zeros(30, int), None, values)) == 1
    assert independent_share(SharedRows([0, 1], [], np.zeros(30, int), groups, values)) == 1 / 5
    mixed = np.tile(groups[:5] + groups[5:10], 3).tolist()  # of each person some are right
    assert independent_share(SharedRows([0, 1], [], np.zeros(30, int), mixed, values)) > 1 / 5
