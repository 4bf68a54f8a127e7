"""The assessor as NNI calls it."""

import base64
import json
import sys
from pathlib import Path

import pytest
from nni.assessor import AssessResult

from ballot.engines.nni.assessor import Assessor

ROOT = Path(__file__).resolve().parents[3]


def test_reports_with_a_name_are_read():
    assessor = Assessor(start_step=1, min_trials=1)
    assert assessor.assess_trial("a", [{"default": 0.9, "loss": 1}]) is AssessResult.Good
    assert assessor.assess_trial("b", [{"default": 0.5, "loss": 0}]) is AssessResult.Bad
    assessor = Assessor("minimize", start_step=1, min_trials=1)
    assert assessor.assess_trial("a", [0.9]) is AssessResult.Good
    assert assessor.assess_trial("b", [0.5]) is AssessResult.Good


def test_a_resumed_search_goes_on_with_its_rungs(monkeypatch, tmp_path):
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path))
    before = Assessor(start_step=1)
    before.load_checkpoint()  # nothing is there: it begins
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
    assert Assessor()._asha.start_step == rung


def test_an_aim_that_is_none_is_refused():
    with pytest.raises(ValueError, match="optimize_mode is 'max'"):
        Assessor("max")
