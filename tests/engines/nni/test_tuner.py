"""The tuner as NNI calls it: numbers for trials, results in parts and twice, and its own files."""

import base64
import json
import logging
import math
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import nni
import pytest
from nni.common.hpo_utils import deformat_parameters, format_parameters, format_search_space
from spaces_for_tests import EVERY_TYPE

from ballot.engines.nni import dispatcher
from ballot.engines.nni.tuner import Tuner
from ballot.tuning import space as spaces
from ballot.tuning.tpe import startup_jobs

ROOT = Path(__file__).resolve().parents[3]
LINE = {"x": {"_type": "uniform", "_value": [0, 1]}}
RATE = {"lr": {"_type": "loguniform", "_value": [0.0001, 1]}}


def tuner(space=LINE, **arguments):
    made = Tuner(seed=0, **arguments)
    made.update_search_space(space)
    return made


def states(made):
    return [(trial.state, trial.loss) for trial in made._tpe.trials()]


@pytest.fixture
def in_process_of(monkeypatch):
    """Let this process look like that of an experiment's tuner."""
    ours = logging.getLogger("ballot")
    level, handlers = ours.level, list(ours.handlers)

    def pretend(**experiment):
        coded = base64.b64encode(json.dumps(experiment).encode()).decode()
        monkeypatch.setattr(sys, "argv", ["nni", "--exp_params", coded])

    yield pretend
    ours.setLevel(level)
    ours.handlers[:] = handlers


def test_the_experiment_is_read_from_the_command_of_nnis_process():
    experiment = {"trialCommand": "python3 train.py", "maxTrialNumber": 5}
    coded = base64.b64encode(json.dumps(experiment).encode()).decode()
    assert dispatcher.experiment_of(["nni", "--exp_params", coded]) == experiment
    assert dispatcher.experiment_of(["search.py"]) == {}


@pytest.mark.parametrize("command", ["", "python3 other.py", "python3 train.py; echo", "a 'b"])
def test_of_another_script_no_options_are_known(in_process_of, command):
    experiment = {"trialCommand": command, "trialCodeDirectory": str(ROOT)}
    assert dispatcher.config_of(experiment) is None
    in_process_of(**experiment)
    assert tuner(RATE).generate_parameters(0) != {"lr": 0.001}


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return float(f"{value:.10g}") if isinstance(value, float) else value


@pytest.mark.parametrize("seed", range(2))
def test_a_space_is_to_us_what_it_is_to_nni(seed):
    theirs, ours = format_search_space(EVERY_TYPE), spaces.parse(EVERY_TYPE)
    assert list(theirs) == list(ours)
    for key, spec in theirs.items():
        own = ours[key]
        assert (own.size, own.step, own.is_nested) == (spec.size, spec.q, spec.is_nested())
        if not spec.categorical:
            assert (own.is_normal, own.is_log) == (spec.normal_distributed, spec.log_distributed)
            numbers = (own.mu, own.sigma) if own.is_normal else (own.low, own.high)
            assert numbers == (
                (spec.mu, spec.sigma) if spec.normal_distributed else (spec.low, spec.high)
            )
    made = Tuner(seed=seed)
    made.update_search_space(EVERY_TYPE)
    for trial in range(30):
        values = made.generate_parameters(trial)
        point = format_parameters(values, theirs)  # NNI reads it, as on resume
        assert spaces.values_of(ours, point) == values
        assert rounded(deformat_parameters(point, theirs)) == values


def test_where_nothing_is_left_nni_hears_it_in_its_own_way():
    made = tuner({"x": {"_type": "choice", "_value": [1, 2, 3]}})
    assert sorted(made.generate_parameters(trial)["x"] for trial in range(3)) == [1, 2, 3]
    with pytest.raises(nni.NoMoreTrialError):
        made.generate_parameters(3)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, "bad", None, {"loss": 1}, {"default": 0.0, "failed": 1}]
)
def test_a_score_that_is_none_is_a_failure(value):
    made = tuner()
    made.generate_parameters(0)
    made.receive_trial_result(0, None, value)
    assert states(made) == [("failed", None)]


def test_results_that_come_twice_late_or_from_nowhere_do_no_harm():
    made = tuner()
    for trial in range(3):
        made.generate_parameters(trial)
    made.receive_trial_result(0, None, {"default": 0.5})
    made.receive_trial_result(0, None, 0.9)  # NNI's TPE dies of it
    made.trial_end(0, True)
    made.receive_trial_result(77, None, 0.9)
    made.trial_end(77, False)
    made.trial_end(None, False)  # one that was posted through the portal
    made.trial_end(1, False)
    made.receive_trial_result(1, None, 0.4)  # NNI hears of results and ends in two threads
    assert states(made) == [("done", -0.5), ("stopped", -0.4), ("running", None)]


def test_results_and_ends_may_come_in_two_threads(monkeypatch, tmp_path):
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path))
    made = tuner()
    for trial in range(20):
        made.generate_parameters(trial)
    threads = [
        threading.Thread(target=lambda: [made.trial_end(k, False) for k in range(20)]),
        threading.Thread(target=lambda: [made.receive_trial_result(k, 0, k) for k in range(20)]),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states(made) == [("stopped", -k) for k in range(20)]
    assert (tmp_path / "tuner.json").read_text() == made._tpe.state()


def test_a_persons_own_arguments_win(in_process_of):
    in_process_of(maxTrialNumber=30)
    assert tuner()._tpe.args.n_startup_jobs == startup_jobs(30) != startup_jobs(50)
    assert tuner(max_trials=50)._tpe.args.n_startup_jobs == startup_jobs(50)
    assert tuner(tpe_args={"n_startup_jobs": 7})._tpe.args.n_startup_jobs == 7
    assert Tuner("minimize")._tpe.mode == "min"
    with pytest.raises(ValueError, match="optimize_mode is 'max'"):
        Tuner("max")
    with pytest.raises(TypeError):
        Tuner(tpe_args={"startup": 7})


def test_the_options_of_the_trial_command_are_tried_first(in_process_of):
    in_process_of(
        trialCommand="python3 train.py --batch_size 50 --lr 0.5",
        trialCodeDirectory=str(ROOT),
        maxTrialNumber=30,
    )
    space = json.loads((ROOT / "search_space.json").read_text())
    made = tuner(space)
    first, second = made.generate_parameters(0), made.generate_parameters(1)
    assert first == {
        "batch_size": 64,
        "criterion": "cross_entropy",
        "optimizer": {"_name": "AdamW", "lr": 0.01, "weight_decay": 0.01},
    }
    assert second != first
    assert tuner(space, defaults=False).generate_parameters(0) != first


def write_run(run, values, **result):
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"values": values, "origin": {}}))
    (run / "result.json").write_text(json.dumps({"mode": "max", **result}))


def test_earlier_runs_are_named_from_the_trials_code(in_process_of, tmp_path):
    in_process_of(trialCodeDirectory=str(tmp_path))
    write_run(tmp_path / "run0", {"lr": 0.002}, status="done", score=0.9)
    write_run(tmp_path / "run1", {"lr": 0.5}, status="failed", score=None)
    for folders in (".", ["run0", str(tmp_path / "run1")]):
        assert states(tuner(RATE, warm_start=folders)) == [("done", -0.9), ("failed", None)]


def test_a_resumed_search_knows_all_and_tries_the_defaults_no_more(
    monkeypatch, in_process_of, tmp_path
):
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path))
    in_process_of(trialCommand="python3 train.py", trialCodeDirectory=str(ROOT))
    before = tuner(RATE)
    given = [before.generate_parameters(trial) for trial in range(5)]
    assert given[0] == {"lr": 0.001}
    before.receive_trial_result(0, None, 0.5)
    before.trial_end(1, False)
    before.receive_trial_result(2, None, 0.3)
    before.trial_end(2, False)
    before.receive_trial_result(3, None, 0.6)
    after = Tuner(seed=1)
    after.load_checkpoint()  # as NNI does it: before the search space is there
    after.update_search_space(RATE)
    posted = json.dumps({"parameter": {"lr": 0.2}, "value": {"default": 0.7}})
    after.import_data(
        [
            {"parameter": given[0], "value": 0.5},  # what NNI's database has
            {"parameter": given[2], "value": 0.3},
            posted,
        ]
    )
    assert states(after) == [
        ("done", -0.5),
        ("failed", None),
        ("stopped", -0.3),
        ("done", -0.6),
        ("running", None),
        ("done", -0.7),
    ]
    assert after.generate_parameters(0) not in given
    after.import_data([{"parameter": given[4], "value": 0.4}])  # the one that ran has ended
    assert states(after)[4] == ("done", -0.4)


def test_what_was_asked_for_and_became_no_trial_is_asked_for_again(monkeypatch, tmp_path):
    """NNI asks for as many as run at once, and is stopped before all of them are trials."""
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path / "checkpoint"))
    for name in ("checkpoint", "db"):
        (tmp_path / name).mkdir()
    space = {"x": {"_type": "choice", "_value": [1, 2, 3]}}
    before = tuner(space)
    given = [before.generate_parameters(trial) for trial in range(3)]
    with sqlite3.connect(tmp_path / "db" / "nni.sqlite") as db:
        db.execute(
            "CREATE TABLE TrialJobEvent (timestamp, trialJobId, event, data, logPath, sequenceId)"
        )
        db.execute("CREATE TABLE MetricData (trialJobId, parameterId, type, sequence, data)")
        data = json.dumps({"parameter_id": 0, "parameters": given[0]})
        db.execute("INSERT INTO TrialJobEvent VALUES (1, 'a', 'WAITING', ?, NULL, 0)", (data,))
    after = Tuner(seed=1)
    after.load_checkpoint()
    after.update_search_space(space)
    again = [after.generate_parameters(trial)["x"] for trial in range(2)]
    assert sorted(again) == sorted(values["x"] for values in given[1:])
    with pytest.raises(nni.NoMoreTrialError):
        after.generate_parameters(2)


def test_without_what_was_written_down_a_resumed_search_has_what_nni_knows(
    monkeypatch, in_process_of, tmp_path
):
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path))
    in_process_of(trialCommand="python3 train.py", trialCodeDirectory=str(ROOT))
    (tmp_path / "tuner.json").write_text("[[")
    after = Tuner()
    after.load_checkpoint()
    after.update_search_space(RATE)
    after.import_data([{"parameter": {"lr": 0.5}, "value": 1.0}])
    assert states(after) == [("done", -1.0)]
    assert after.generate_parameters(0) != {"lr": 0.001}


def test_nnis_process_loads_them_without_torch_and_logs_where_nni_does():
    coded = base64.b64encode(b'{"maxTrialNumber": 5}').decode()
    code = (
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        "import ballot.engines.nni.tuner, ballot.engines.nni.assessor\n"
        f"sys.argv = ['nni', '--exp_params', {coded!r}]\n"
        "ballot.engines.nni.assessor.Assessor(); ballot.engines.nni.tuner.Tuner(seed=12)\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("random seed 12") == 1
