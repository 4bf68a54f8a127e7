"""A trial's answers to the check before a search, from train.py as it is run."""

import json

import pytest

from ballot.errors import TrialFailed, UserError
from ballot.training import probe


@pytest.mark.slow
def test_configurations_are_tried_and_no_run_is_left(script, tmp_path):
    wanted = [
        {"values": {"batch_size": 16, "optimizer": {"_name": "SGD", "momentum": 0.9}}, "steps": 1},
        {"values": {"batch_size": 256}, "steps": 1},
        {"values": {"criterion": "focal", "criterion_args.gamma": 1.5}, "steps": 0},
        {"values": {"criterion": "focall"}, "steps": 0},
        {"values": {"criterion": "label_smoothing", "criterion_args.smoothing": 3}, "steps": 0},
        {"values": {"scheduler": "cosine", "scheduler_args.nothing": 3}, "steps": 0},
        {"values": {"augmentation": {"_name": "CustomAugmentation", "erasee": 1}}, "steps": 0},
    ]
    (tmp_path / "wanted.json").write_text(json.dumps(wanted))
    done = script(
        "train.py",
        "--epochs",
        7,
        "--monitor",
        "val_loss",
        "--resume",
        "auto",
        "--probe",
        "wanted.json",
    )
    assert done.returncode == 0, done.stderr
    small, large, *rest = [json.loads(line) for line in done.stdout.splitlines()]
    assert small["batches"] == {"train": 72, "val": 18, "test": 23}
    assert large["batches"] == {"train": 5, "val": 2, "test": 2}
    for facts in (small, large):
        assert facts["epochs"] == 7 and (facts["monitor"], facts["mode"]) == ("val_loss", "min")
        assert 0 < facts["step"] < 5 and 0 < facts["predict"] < 5 and facts["peak"] > 1e7
        assert facts["own_start"] > 0 and facts["device"] in ("cpu", "cuda", "mps")
    errors = [facts.get("error") for facts in rest]
    assert errors[0] is None
    assert errors[1] == (
        "tuner: unknown criterion 'focall'; did you mean 'focal'?; "
        "one of your own is known by --plugins FILE"
    )
    assert "smoothing is 3" in errors[2] and "'nothing'" in errors[3]
    assert "did you mean 'erase'?" in errors[4]
    assert [path.name for path in tmp_path.iterdir()] == ["wanted.json"]


@pytest.mark.parametrize(
    "error, key, text",
    [
        (UserError("a: b; c"), "error", "a: b; c"),
        (TrialFailed("out of memory"), "failed", "out of memory"),
        (ZeroDivisionError("x\ny"), "error", "ZeroDivisionError: x"),
    ],
)
def test_what_a_trial_would_die_of_is_an_answer(capsys, error, key, text):
    with probe.answer(3) as facts:
        facts["before"] = 1
        raise error
    said = json.loads(capsys.readouterr().out)
    assert said == {"probe": 3, "before": 1, key: text, "warnings": []}


def test_warnings_are_handed_over(capsys):
    import logging

    with probe.answer(0):
        logging.getLogger("model").warning("from %s", "scratch")
    assert json.loads(capsys.readouterr().out)["warnings"] == ["from scratch"]


def test_the_age_of_a_process_grows():
    assert 0 < probe.process_age() <= probe.process_age() < 1e6
