"""Successive halving against a naive account of it."""

import math
import random

import pytest

from ballot.tuning.asha import ASHA


def naive_stops(reports, first, factor, least, sign):
    """Where each trial is stopped, from reports `(trial, score)` in the order they come."""
    seen, reached, stopped = {}, {}, {}
    for trial, score in reports:
        if trial in stopped:
            continue
        seen.setdefault(trial, []).append(sign * score)
        step = len(seen[trial])
        if step not in [round(first * factor**k) for k in range(20)]:
            continue
        there = reached.setdefault(step, [])
        there.append(max(seen[trial]))
        better = sum(other > max(seen[trial]) for other in there)
        if len(there) >= least and better >= math.ceil(len(there) / factor):
            stopped[trial] = step
    return stopped


@pytest.mark.parametrize("mode, sign", [("max", 1), ("min", -1)])
@pytest.mark.parametrize("first, factor, least", [(1, 3, 2), (2, 2, 3), (3, 4, 1), (1, 1.5, 5)])
def test_trials_are_stopped_where_a_naive_account_stops_them(mode, sign, first, factor, least):
    chance = random.Random(f"{mode}{first}{factor}")
    asha = ASHA(mode=mode, start_step=first, reduction_factor=factor, min_trials=least)
    reports, histories, stops = [], {f"t{k}": [] for k in range(40)}, {}
    while any(len(history) < 20 for history in histories.values()):
        trial = chance.choice([t for t, h in histories.items() if len(h) < 20])
        histories[trial].append(round(chance.random(), 2))  # ties too
        reports.append((trial, histories[trial][-1]))
        if trial not in stops and not asha.report(trial, histories[trial]):
            stops[trial] = len(histories[trial])
    naive = naive_stops(reports, first, factor, least, sign)
    assert 10 < len(naive) < 40
    # A trial may end late: what it still reports is not held against others at the next rung.
    kept = {trial: step for trial, step in stops.items() if trial in naive}
    assert kept == naive and stops == naive


def test_a_stopped_trial_is_stopped_once_and_a_resumed_one_reports_again():
    asha = ASHA(start_step=1, min_trials=1)
    assert asha.report("a", [0.9])
    assert not asha.report("b", [0.1])
    assert asha.report("b", [0.1, 0.2])  # it is being ended: no second kill
    assert asha.report("a", [0.9, 0.9, 0.9])
    for epochs in (1, 2, 3):  # its process died, and runs once more
        assert asha.report("a", [0.9] * 3), epochs
    assert asha._rungs == {1: {"a": 0.9, "b": 0.1}, 3: {"a": 0.9}}


def test_a_resumed_search_goes_on_with_its_rungs():
    before = ASHA(start_step=1)
    before.report("a", [0.9])
    after = ASHA(start_step=1)
    after.restore(before.state())
    for damaged in ("[]", "{", '{"1": 2}'):
        with pytest.raises(ValueError):
            after.restore(damaged)
    assert not after.report("b", [0.1])


@pytest.mark.parametrize("epochs, rung", [(None, 6), (15, 3), (2, 1), (30, 6), (10, 2)])
def test_the_first_rung_is_a_fifth_of_a_trials_reports(epochs, rung):
    assert ASHA(epochs=epochs).start_step == rung
    assert ASHA(epochs=epochs, start_step=4).start_step == 4


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "maximize"},
        {"start_step": 0},
        {"reduction_factor": 1},
        {"reduction_factor": "3"},
        {"reduction_factor": math.nan},
        {"min_trials": True},
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ASHA(**arguments)
