"""What is said of a search before NNI is asked, and what is read after it."""

import json
import sqlite3

import pytest

from harness import experiment
from harness.errors import UserError

GOOD = {
    "lr": {"_type": "loguniform", "_value": [0.0001, 0.1]},
    "batch_size": {"_type": "choice", "_value": [16, 32]},
    "optimizer_args.momentum": {"_type": "uniform", "_value": [0, 0.9]},
    "optimizer": {
        "_type": "choice",
        "_value": [
            "AdamW",
            {"_name": "SGD", "momentum": {"_type": "uniform", "_value": [0.5, 0.9]},
             "lr": {"_type": "uniform", "_value": [0.01, 0.1]}},
        ],
    },
}  # fmt: skip


def test_a_good_search_space_passes():
    experiment.check_search_space(GOOD, "space.json")


@pytest.mark.parametrize(
    "key, spec, message",
    [
        ("learning_rate", GOOD["lr"], "unknown option 'learning_rate'; did you mean 'lr'"),
        ("lr", [0.1, 0.2], 'lr needs {"_type"'),
        ("lr", {"_type": "logunifrm", "_value": [1, 2]}, "did you mean 'loguniform'"),
        ("lr", {"_type": "uniform", "_value": [0.1]}, "takes 2 values"),
        ("lr", {"_type": "uniform", "_value": [0.2, 0.1]}, "put the lower first"),
        ("lr", {"_type": "loguniform", "_value": [0, 0.1]}, "must start above 0"),
        ("lr", {"_type": "uniform", "_value": ["a", "b"]}, "takes numbers"),
        ("lr", {"_type": "uniform", "_value": [-1, 0.1]}, "must be greater than 0"),
        ("batch_size", {"_type": "choice", "_value": [16, "many"]}, "takes a whole number"),
        ("batch_size", {"_type": "choice", "_value": []}, "one or more values"),
        ("epochs", {"_type": "choice", "_value": [0]}, "at least 1"),
        ("optimizer", {"_type": "choice", "_value": [{"_name": "SGD", "lr": {"_type": "uniform",
         "_value": [-2, -1]}}]}, "must be greater than 0"),
        ("lr.x", GOOD["lr"], "has no parts"),
    ],
)  # fmt: skip
def test_a_bad_search_space_is_named_by_file_and_key(key, spec, message):
    with pytest.raises(UserError) as caught:
        experiment.check_search_space({key: spec}, "space.json")
    assert str(caught.value).startswith("space.json: ") and message in str(caught.value)


@pytest.mark.parametrize("command", ["a; b", "a && b", "a | b", "a & b"])
def test_a_compound_command_is_refused(command):
    with pytest.raises(UserError, match="several commands"):
        experiment.check_trial_command(command, "c.yml")


def test_a_local_trial_runs_in_the_interpreter_of_the_search():
    import sys

    assert experiment.with_own_interpreter("python3 train.py").split()[0] == sys.executable
    assert experiment.with_own_interpreter("/opt/python train.py") == "/opt/python train.py"


@pytest.mark.parametrize(
    "command, value",
    [
        ("train.py --out_dir a", "a"),
        ("t --out-dir=b", "b"),
        ("t --out_dir 'c d'", "c d"),
        ("t", "x"),
    ],
)
def test_an_option_of_the_trial_command_is_found(command, value):
    assert experiment.option_of(command, "--out_dir", "x") == value


def test_a_port_that_is_taken_is_passed_over():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert experiment.free_port(port) > port


def test_the_database_is_read_as_nni_writes_it(tmp_path):
    (tmp_path / "db").mkdir()
    with sqlite3.connect(tmp_path / "db" / "nni.sqlite") as db:
        db.execute("CREATE TABLE TrialJobEvent (timestamp, trialJobId, event, data, logPath, "
                   "sequenceId, message, environmentId)")  # fmt: skip
        db.execute("CREATE TABLE MetricData (timestamp, trialJobId, parameterId, type, sequence, "
                   "data)")  # fmt: skip
        for stamp, trial, event, seq in [(1000, "a", "WAITING", 0), (1500, "b", "WAITING", 1),
                                         (2000, "a", "RUNNING", 0), (9000, "a", "SUCCEEDED", 0),
                                         (3000, "b", "RUNNING", 1)]:  # fmt: skip
            db.execute("INSERT INTO TrialJobEvent VALUES (?,?,?,NULL,NULL,?,NULL,NULL)",
                       (stamp, trial, event, seq))  # fmt: skip
        for stamp, trial, kind, value in [(2500, "a", "PERIODICAL", 0.5), (2600, "a", "FINAL", 0.7),
                                          (3500, "b", "PERIODICAL", {"default": 0.6})]:  # fmt: skip
            db.execute("INSERT INTO MetricData VALUES (?,?,'0',?,0,?)",
                       (stamp, trial, kind, json.dumps(json.dumps(value))))  # fmt: skip
    a, b = experiment.read_trials(tmp_path)
    assert (a.id, a.status, a.started, a.ended, a.final) == ("a", "SUCCEEDED", 2.0, 9.0, 0.7)
    assert a.has_ended and not b.has_ended and b.scores == [0.6]
    assert experiment.read_trials(tmp_path / "nowhere") == []
