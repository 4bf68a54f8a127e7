"""Successive halving against a naive account of it."""

import base64
import json
import math
import random
import sys
from pathlib import Path

import pytest
from nni.assessor import AssessResult

from ballot.tuning.asha import Assessor

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.parametrize("mode, sign", [("maximize", 1), ("minimize", -1)])
@pytest.mark.parametrize("first, factor, least", [(1, 3, 2), (2, 2, 3), (3, 4, 1), (1, 1.5, 5)])
def test_trials_are_stopped_where_a_naive_account_stops_them(mode, sign, first, factor, least):
    chance = random.Random(f"{mode}{first}{factor}")
    assessor = Assessor(mode, first, factor, least)
    reports, histories, stops = [], {f"t{k}": [] for k in range(40)}, {}
    while any(len(history) < 20 for history in histories.values()):
        trial = chance.choice([t for t, h in histories.items() if len(h) < 20])
        histories[trial].append(round(chance.random(), 2))  # ties too
        reports.append((trial, histories[trial][-1]))
        if trial not in stops and assessor.assess_trial(trial, histories[trial]) is (
            AssessResult.Bad
        ):
            stops[trial] = len(histories[trial])
    naive = naive_stops(reports, first, factor, least, sign)
    assert 10 < len(naive) < 40
    # NNI ends a trial late: what it still reports is not held against others at the next rung.
    kept = {trial: step for trial, step in stops.items() if trial in naive}
    assert kept == naive and stops == naive


def test_a_stopped_trial_is_stopped_once_and_a_resumed_one_reports_again():
    assessor = Assessor(start_step=1, min_trials=1)
    good, bad = AssessResult.Good, AssessResult.Bad
    assert assessor.assess_trial("a", [0.9]) is good
    assert assessor.assess_trial("b", [0.1]) is bad
    assert assessor.assess_trial("b", [0.1, 0.2]) is good  # it is being ended: no second kill
    assert assessor.assess_trial("a", [0.9, 0.9, 0.9]) is good
    for epochs in (1, 2, 3):  # its process died, and runs once more
        assert assessor.assess_trial("a", [0.9] * 3) is good, epochs
    assert assessor._rungs == {1: {"a": 0.9, "b": 0.1}, 3: {"a": 0.9}}


def test_reports_with_a_name_are_read():
    assessor = Assessor(start_step=1, min_trials=1)
    assessor.assess_trial("a", [{"default": 0.9, "loss": 1}])
    assert assessor.assess_trial("b", [{"default": 0.5, "loss": 0}]) is AssessResult.Bad


def test_a_resumed_search_goes_on_with_its_rungs(monkeypatch, tmp_path):
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path))
    before = Assessor(start_step=1)
    before.assess_trial("a", [0.9])
    before.trial_end("a", True)
    after = Assessor(start_step=1)
    after.load_checkpoint()
    assert after.assess_trial("b", [0.1]) is AssessResult.Bad
    (tmp_path / "assessor.json").write_text("[]")
    after.load_checkpoint()  # is damaged: it begins anew


@pytest.mark.parametrize(
    "options, rung",
    [
        ("", 6),
        ("--epochs 15", 3),
        ("--epochs 2", 1),
        ("--epochs 10 --folds 3", 6),
        ("--epochs 10 --folds 3 --fold 0", 2),
    ],
)
def test_the_first_rung_is_a_fifth_of_a_trials_reports(monkeypatch, options, rung):
    experiment = {"trialCommand": f"python3 train.py {options}", "trialCodeDirectory": str(ROOT)}
    coded = base64.b64encode(json.dumps(experiment).encode()).decode()
    monkeypatch.setattr(sys, "argv", ["nni", "--exp_params", coded])
    assert Assessor()._first == rung


@pytest.mark.parametrize(
    "arguments",
    [
        {"optimize_mode": "max"},
        {"start_step": 0},
        {"reduction_factor": 1},
        {"reduction_factor": "3"},
        {"reduction_factor": math.nan},
        {"min_trials": True},
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Assessor(**arguments)
