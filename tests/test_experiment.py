"""What is read of a search from the disk, and the words of its trial command."""

import json
import sqlite3

import pytest

from harness import experiment


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
