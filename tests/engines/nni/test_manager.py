"""What is read of a search from the disk, and the words of its trial command."""

import json
import shlex
import sqlite3
from pathlib import Path

import pytest

from ballot.config import trial_command
from ballot.engines.interface import WRITE_S
from ballot.engines.nni import manager
from ballot.engines.nni.database import Records, read_trials


def test_a_local_trial_runs_in_the_interpreter_of_the_search():
    import sys

    assert trial_command.with_own_interpreter("python3 train.py").split()[0] == sys.executable
    assert trial_command.with_own_interpreter("/opt/python train.py") == "/opt/python train.py"


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
    assert trial_command.option_of(command, "--out_dir", "x") == value


def test_a_port_that_is_taken_is_passed_over():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert manager.free_port(port) > port


def database(folder, events, metrics):
    """Write NNI's tables: events (ms, trial, event, number, data), metrics (trial, id, type, x).

    An event may have the trial's address as a sixth value.
    """
    (folder / "db").mkdir(parents=True)
    with sqlite3.connect(folder / "db" / "nni.sqlite") as db:
        db.execute(
            "CREATE TABLE TrialJobEvent (timestamp, trialJobId, event, data, logPath, "
            "sequenceId, message, environmentId)"
        )
        db.execute(
            "CREATE TABLE MetricData (timestamp, trialJobId, parameterId, type, sequence, data)"
        )
        for stamp, trial, event, number, data, *place in events:
            db.execute(
                "INSERT INTO TrialJobEvent VALUES (?,?,?,?,?,?,NULL,NULL)",
                (stamp, trial, event, data and json.dumps(data), *(place or [None]), number),
            )
        for stamp, (trial, parameter, kind, value, *sequence) in enumerate(metrics):
            db.execute(
                "INSERT INTO MetricData VALUES (?,?,?,?,?,?)",
                (stamp, trial, parameter, kind, *(sequence or [0]), json.dumps(json.dumps(value))),
            )


def given(number, **values):
    return {"parameter_id": number, "parameters": values}


def test_the_database_is_read_as_nni_writes_it(tmp_path):
    database(
        tmp_path,
        [
            (1000, "a", "WAITING", 0, given(0, x=1)),
            (1500, "b", "WAITING", 1, given(1, x=2)),
            (2000, "a", "RUNNING", 0, None),
            (9000, "a", "SUCCEEDED", 0, None),
            (3000, "b", "RUNNING", 1, None),
            (900, "", "ADD_CUSTOMIZED", None, {"x": 5}),
        ],
        [
            ("a", "0", "PERIODICAL", 0.5),
            ("a", "0", "FINAL", 0.7),
            ("b", "1", "PERIODICAL", {"default": 0.6}),
        ],
    )
    a, b = read_trials(tmp_path)
    assert (a.id, a.status, a.started, a.ended, a.final) == ("a", "succeeded", 2.0, 9.0, 0.7)
    assert a.has_ended and not b.has_ended and b.scores == [0.6]
    assert (a.parameters, b.parameters) == ({"x": 1}, {"x": 2})
    assert read_trials(tmp_path / "nowhere") == []


def test_a_resumed_trial_waits_and_then_runs_anew(tmp_path):
    events = [(1000, "a", "RUNNING", 0, given(0, x=1)), (5000, "a", "ADD_RESUMED", None, None)]
    database(tmp_path / "1", events, [])
    assert read_trials(tmp_path / "1")[0].status == "waiting"
    database(tmp_path / "2", [*events, (6000, "a", "RUNNING", 0, given(0, x=1))], [])
    (trial,) = read_trials(tmp_path / "2")
    assert (trial.status, trial.started, trial.resumed) == ("running", 1.0, 6.0)


def test_a_trial_that_runs_again_elsewhere_is_where_it_ran_last_and_its_scores_count_once(tmp_path):
    there = "{}:~/nni-experiments/x/environments/remote-worker1/trials/a"
    events = [
        (1000, "a", "RUNNING", 0, given(0, x=1), there.format("gpu1")),
        (7000, "a", "WAITING", 0, None, there.format("gpu1")),
        (3000, "a", "RUNNING", 0, None, there.format("gpu2")),  # its clock is behind
        (4000, "a", "SUCCEEDED", 0, None, there.format("gpu2")),
        (1000, "b", "RUNNING", 1, given(1, x=2), "/home/nni/x/trials/b"),
    ]
    database(
        tmp_path,
        events,
        [
            ("a", "0", "PERIODICAL", score, epoch)
            for epoch, score in [(0, 0.1), (2, 0.3), (1, 0.2), (0, 0.1), (1, 0.2)]
        ],
    )
    a, b = read_trials(tmp_path)
    assert (a.machine, a.status, a.ended, a.scores) == ("gpu2", "succeeded", 4.0, [0.1, 0.2, 0.3])
    assert b.machine is None


def test_parameters_are_those_whose_number_came_back_with_a_score(tmp_path):
    events = [(k, name, "RUNNING", k, given(k, x=k)) for k, name in enumerate("abcd")]
    # As without the guard: a and b were recorded with each other's; c says nothing; d was posted.
    database(
        tmp_path,
        [*events, (9, "e", "RUNNING", 4, given(None, x=9))],
        [
            ("a", "1", "FINAL", 0.1),
            ("b", "0", "FINAL", 0.2),
            ("d", "3", "FINAL", 0.3),
            ("e", None, "FINAL", 0.4),
        ],
    )
    found = {trial.id: trial.parameters["x"] for trial in read_trials(tmp_path)}
    assert found == {"a": 1, "b": 0, "c": 2, "d": 3, "e": 9}


def test_numbers_that_started_anew_on_resume_do_not_mix_up_parameters(tmp_path):
    events = [(k, name, "RUNNING", k, given(k % 2, x=k)) for k, name in enumerate("abcd")]
    database(tmp_path, events, [(n, str(k % 2), "FINAL", 0.1) for k, n in enumerate("abcd")])
    found = [trial.parameters["x"] for trial in read_trials(tmp_path)]
    assert found == [0, 1, 2, 3]


def test_what_is_read_bit_by_bit_is_what_is_read_at_once(tmp_path):
    events = [
        (10 * k + e, name, event, k, given((k + 1) % 4 if e == 0 else None, x=k))
        for k, name in enumerate("abcd")
        for e, event in enumerate(("WAITING", "RUNNING", "FAILED", "ADD_RESUMED", "RUNNING"))
    ]
    metrics = [
        (name, str(k), "PERIODICAL", 0.1 * k + step, step)
        for k, name in enumerate("abcd")
        for step in (0, 2, 1, 0)
    ]
    metrics += [(name, "1", "FINAL", 0.5) for name in "abcd"]
    database(tmp_path / "whole", events, metrics)
    database(tmp_path / "parts", [], [])
    records = Records(tmp_path / "parts")
    with (
        sqlite3.connect(tmp_path / "whole" / "db" / "nni.sqlite") as whole,
        sqlite3.connect(tmp_path / "parts" / "db" / "nni.sqlite") as parts,
    ):
        for number in range(1, len(metrics) + 9):
            for table, row in (("TrialJobEvent", number), ("MetricData", number - 8)):
                query = f"SELECT * FROM {table} WHERE rowid = {row}"
                for row in whole.execute(query).fetchall():
                    parts.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row)
            parts.commit()
            assert records.read() == read_trials(tmp_path / "parts")
    assert records.read() == read_trials(tmp_path / "whole") != []


def test_a_record_is_read_once(tmp_path):
    database(tmp_path, [(1, "a", "RUNNING", 0, given(0, x=1))], [("a", "0", "PERIODICAL", 0.5)])
    records = Records(tmp_path)
    (before,) = records.read()
    with sqlite3.connect(tmp_path / "db" / "nni.sqlite") as db:
        db.execute("UPDATE MetricData SET data = '0.1'")  # which NNI never does
        db.execute("INSERT INTO MetricData VALUES (2, 'a', '0', 'PERIODICAL', 1, '0.7')")
    assert records.read() == [before] and before.scores == [0.5, 0.7]


@pytest.mark.parametrize(
    "command, values, typed",
    [
        (
            "/v/python train.py --resume auto --epochs 5 --out_dir o",
            {"lr": 0.1},
            "python train.py --epochs 5 --lr 0.1",
        ),
        (
            "python3 train.py --lr 1 --metrics acc f1 --out-dir=o --time_limit 9",
            {"lr": 0.25, "optimizer": "SGD", "model_args.x": True},
            "python train.py --metrics acc f1 --lr 0.25 --optimizer SGD --model_args.x true",
        ),
        (
            "python train.py --compile",
            {"compile": False, "metrics": ["acc"], "seed": 3},
            "python train.py --no_compile --metrics acc --seed 3",
        ),
        (
            "python train.py --resume auto -c config.json -d 0 --bs 8 --momentum -1",
            {"batch_size": 16},
            "python train.py -c config.json --momentum -1 --batch_size 16",
        ),
        ("python train.py", {"model_args.a b": [1]}, "python train.py '--model_args.a b' '[1]'"),
    ],
)
def test_the_best_trial_can_be_typed(command, values, typed):
    assert trial_command.typed_command(command, values) == typed


def test_what_is_typed_trains_with_the_same_values():
    from ballot.config.command_line import build_parser, parse_command_line
    from ballot.config.layers import merge

    values = {
        "lr": 0.1 + 0.2,
        "optimizer": "SGD",
        "optimizer_args.nesterov": True,
        "channels_last": True,
        "image_size": 64,
    }
    words = shlex.split(trial_command.typed_command("python train.py --epochs 7 --lr 1", values))
    layer, _ = parse_command_line(build_parser("train.py", ""), words[2:])
    config, _ = merge([layer])
    assert (config.lr, config.optimizer, config.epochs) == (0.1 + 0.2, "SGD", 7)
    assert config.optimizer_args == {"nesterov": True}
    assert config.channels_last and config.image_size == 64


def test_the_mended_trials_come_before_the_guard_which_names_them():
    options = manager.environment(public=False)["NODE_OPTIONS"]
    order = [options.index(f"node/{name}.js") for name in ("trials", "guard", "remote")]
    assert order == sorted(order)


@pytest.mark.parametrize("name", ["trials.js", "keeper.js"])
def test_a_trial_has_as_long_to_write_as_the_engine_says(name):
    source = (Path(manager.__file__).parent / "node" / name).read_text()
    assert f"const PATIENCE_MS = {WRITE_S * 1000:.0f};" in source
