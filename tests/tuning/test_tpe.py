"""The tuner: what it tries first, what it makes of results and failures, and that it resumes."""

import base64
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import nni
import pytest
from nni.common.hpo_utils import format_parameters, format_search_space

from ballot.tuning import tpe
from ballot.tuning.tpe import Tuner, startup_jobs

ROOT = Path(__file__).resolve().parents[2]
EVERY_TYPE = {
    "choice": {"_type": "choice", "_value": ["a", "b"]},
    "nested": {
        "_type": "choice",
        "_value": [
            {"_name": "one", "inner": {"_type": "loguniform", "_value": [0.001, 0.1]}},
            {"_name": "two", "other": {"_type": "randint", "_value": [3, 6]}},
            {"_name": "none"},
        ],
    },
    "randint": {"_type": "randint", "_value": [-2, 9]},
    "uniform": {"_type": "uniform", "_value": [-1, 1]},
    "quniform": {"_type": "quniform", "_value": [0.1, 0.95, 0.1]},
    "loguniform": {"_type": "loguniform", "_value": [0.0003, 0.7]},
    "qloguniform": {"_type": "qloguniform", "_value": [1, 100, 5]},
    "normal": {"_type": "normal", "_value": [3, 0.5]},
    "qnormal": {"_type": "qnormal", "_value": [3, 0.5, 0.25]},
    "lognormal": {"_type": "lognormal", "_value": [0, 1]},
    "qlognormal": {"_type": "qlognormal", "_value": [4, 0.5, 0.5]},
}
SMALL = {"x": {"_type": "choice", "_value": [1, 2, 3]}, "y": {"_type": "choice", "_value": "ab"}}
LINE = {"x": {"_type": "uniform", "_value": [0, 1]}}


def tuner(space=LINE, **arguments):
    made = Tuner(seed=0, **arguments)
    made.update_search_space(space)
    return made


def states(made):
    return [(trial.state, trial.loss) for trial in made._trials.values()]


def in_process_of(monkeypatch, **experiment):
    """Let this process look like that of an experiment's tuner."""
    coded = base64.b64encode(json.dumps(experiment).encode()).decode()
    monkeypatch.setattr(sys, "argv", ["nni", "--exp_params", coded])


@pytest.mark.parametrize("seed", range(3))
def test_every_type_of_nni_is_drawn_within_its_range_before_and_after_the_start(seed):
    made = Tuner(seed=seed, max_trials=10)
    made.update_search_space(EVERY_TYPE)
    for trial in range(60):
        values = made.generate_parameters(trial)
        format_parameters(values, format_search_space(EVERY_TYPE))  # NNI reads it, as on resume
        assert json.loads(json.dumps(values)) == values
        assert list(values) == list(EVERY_TYPE)
        inner = {"one": {"_name", "inner"}, "two": {"_name", "other"}, "none": {"_name"}}
        assert set(values["nested"]) == inner[values["nested"]["_name"]]
        assert values["nested"].get("other", 3) in (3, 4, 5)
        assert values["randint"] in range(-2, 9) and -1 <= values["uniform"] <= 1
        assert 0.1 <= values["quniform"] <= 0.95 and 0.0003 <= values["loguniform"] <= 0.7
        assert values["qloguniform"] in (1, *range(5, 101, 5))
        assert values["qnormal"] % 0.25 == 0 and values["qlognormal"] % 0.5 == 0
        assert values["lognormal"] > 0
        made.receive_trial_result(trial, values, values["uniform"])
        made.trial_end(trial, True)


@pytest.mark.parametrize("mode, wanted", [("maximize", 0.8), ("minimize", 0.2)])
def test_it_finds_the_good_end_of_a_line(mode, wanted):
    made = tuner(optimize_mode=mode, max_trials=25)
    tried = []
    for trial in range(25):
        tried.append(made.generate_parameters(trial)["x"])
        made.receive_trial_result(
            trial, None, -abs(tried[-1] - 0.8) if mode == "maximize" else abs(tried[-1] - 0.2)
        )
    assert min(abs(x - wanted) for x in tried) < 0.02
    assert sum(abs(x - wanted) < 0.25 for x in tried[-10:]) >= 7


def test_where_trials_fail_it_soon_does_not_go():
    def late_failures(report):
        made, failed = tuner(max_trials=40), []
        for trial in range(40):
            x = made.generate_parameters(trial)["x"]
            if x > 0.5:
                report(made, trial)
            else:
                made.receive_trial_result(trial, None, x)  # the best stands at the brink
            made.trial_end(trial, x <= 0.5 or report is not crash)
            failed.append(x > 0.5)
        return sum(failed[-30:])

    def crash(made, trial):
        pass

    def floor(made, trial):
        made.receive_trial_result(trial, None, {"default": 0.0, "failed": 1})

    assert late_failures(crash) <= 8 and late_failures(floor) <= 8


def test_trials_at_once_differ():
    made = tuner(max_trials=20)
    for trial in range(10):
        x = made.generate_parameters(trial)["x"]
        made.receive_trial_result(trial, None, -((x - 0.5) ** 2))
    at_once = sorted(made.generate_parameters(10 + k)["x"] for k in range(4))
    assert all(b - a > 0.005 for a, b in itertools.pairwise(at_once))


def test_a_configuration_runs_once_and_then_there_are_no_more():
    made = tuner(SMALL)
    tried = [made.generate_parameters(trial) for trial in range(6)]
    assert len({json.dumps(each) for each in tried}) == 6
    with pytest.raises(nni.NoMoreTrialError):
        made.generate_parameters(6)


def test_values_that_are_the_same_after_rounding_run_once():
    made = tuner({"x": {"_type": "quniform", "_value": [0, 1, 0.25]}})
    assert sorted(made.generate_parameters(trial)["x"] for trial in range(5)) == [
        0,
        0.25,
        0.5,
        0.75,
        1,
    ]
    with pytest.raises(nni.NoMoreTrialError):
        made.generate_parameters(5)


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
    made.receive_trial_result(0, None, 0.5)
    made.receive_trial_result(0, None, 0.9)  # NNI's TPE dies of it
    made.trial_end(0, True)
    made.receive_trial_result(77, None, 0.9)
    made.trial_end(77, False)
    made.trial_end(None, False)  # one that was posted through the portal
    made.trial_end(1, False)
    made.receive_trial_result(1, None, 0.4)  # NNI hears of results and ends in two threads
    assert states(made) == [("done", -0.5), ("stopped", -0.4), ("running", None)]


def test_a_stopped_trial_is_better_than_a_failed_one_and_never_a_good_one():
    made = tuner(tpe_args={"gamma": 0.5})
    for trial, (score, success) in enumerate([(0.1, True), (0.2, True), (0.9, False)]):
        made.generate_parameters(trial)
        made.receive_trial_result(trial, None, score)
        made.trial_end(trial, success)
    made.generate_parameters(3)
    made.trial_end(3, False)
    points = [trial.point for trial in made._trials.values()]
    good, others, failed = made._split(list(made._trials.values()))
    assert (good, others, failed) == ([points[1], points[0]], [points[2]], [points[3]])


@pytest.mark.parametrize("liar, place", [("best", 1), ("mean", 2), ("worst", 3), (None, None)])
def test_a_trial_that_runs_counts_as_the_liar_says(liar, place):
    made = tuner(tpe_args={"constant_liar_type": liar, "gamma": 0.01})
    for trial, score in enumerate([0.9, 0.6, 0.1]):  # where two are the same, the real one is first
        made.generate_parameters(trial)
        made.receive_trial_result(trial, None, score)
    made.generate_parameters(3)
    good, others, _ = made._split(list(made._trials.values()))
    order, running = [*good, *others], list(made._trials.values())[3].point
    assert (order.index(running) if running in order else None) == place


@pytest.mark.parametrize("trials, random", [(None, 10), (1, 5), (50, 8), (1000, 10)])
def test_the_random_start_is_a_part_of_the_budget(trials, random):
    assert startup_jobs(trials) == random
    assert tuner(max_trials=trials).args.n_startup_jobs == random


def test_a_persons_own_arguments_win():
    args = tuner(max_trials=12, tpe_args={"n_startup_jobs": 7}).args
    assert args.n_startup_jobs == 7 and args.constant_liar_type == "mean"
    with pytest.raises(TypeError):
        tuner(tpe_args={"startup": 7})
    for wrong in ({"optimize_mode": "max"}, {"tpe_args": {"gamma": 2}}):
        with pytest.raises(ValueError):
            Tuner(**wrong)


def test_the_options_of_the_trial_command_are_tried_first(monkeypatch):
    in_process_of(
        monkeypatch,
        trialCommand="python3 train.py --batch_size 50 --lr 0.5",
        trialCodeDirectory=str(ROOT),
        maxTrialNumber=30,
    )
    made = tuner(json.loads((ROOT / "search_space.json").read_text()))
    first, second = made.generate_parameters(0), made.generate_parameters(1)
    assert first == {
        "batch_size": 64,
        "criterion": "cross_entropy",
        "optimizer": {"_name": "AdamW", "lr": 0.01, "weight_decay": 0.01},
    }
    assert second != first and made.args.n_startup_jobs == startup_jobs(30)
    made = tuner(json.loads((ROOT / "search_space.json").read_text()), defaults=False)
    assert made.generate_parameters(0) != first


def test_earlier_runs_are_its_history(tmp_path):
    for number, (status, score, x) in enumerate(
        [("done", 0.9, 0.002), ("failed", None, 0.5), ("running", 0.1, 0.003)]
    ):
        run = tmp_path / f"run{number}"
        run.mkdir()
        values = {"values": {"lr": x}, "origin": {}}
        (run / "config.json").write_text(json.dumps(values))
        result = {"status": status, "score": score, "mode": "max"}
        (run / "result.json").write_text(json.dumps(result))
    space = {"lr": {"_type": "loguniform", "_value": [0.001, 1]}}
    for folders in (str(tmp_path), [str(tmp_path / "run0"), str(tmp_path / "run1")]):
        assert states(tuner(space, warm_start=folders)) == [("done", -0.9), ("failed", None)]


def test_defaults_that_have_run_earlier_do_not_run_again(monkeypatch, tmp_path):
    in_process_of(monkeypatch, trialCommand="python3 train.py", trialCodeDirectory=str(ROOT))
    (tmp_path / "config.json").write_text(json.dumps({"values": {"lr": 0.001}, "origin": {}}))
    (tmp_path / "result.json").write_text('{"status": "done", "score": 0.5, "mode": "max"}')
    made = tuner({"lr": {"_type": "loguniform", "_value": [0.0001, 1]}}, warm_start=str(tmp_path))
    assert made.generate_parameters(0) != {"lr": 0.001}


def test_a_resumed_search_knows_all_and_tries_the_defaults_no_more(monkeypatch, tmp_path):
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path))
    in_process_of(monkeypatch, trialCommand="python3 train.py", trialCodeDirectory=str(ROOT))
    space = {"lr": {"_type": "loguniform", "_value": [0.0001, 1]}}
    before = tuner(space)
    given = [before.generate_parameters(trial) for trial in range(5)]
    assert given[0] == {"lr": 0.001}
    before.receive_trial_result(0, None, 0.5)
    before.trial_end(1, False)
    before.receive_trial_result(2, None, 0.3)
    before.trial_end(2, False)
    before.receive_trial_result(3, None, 0.6)
    after = Tuner(seed=1)
    after.load_checkpoint()  # as NNI does it: before the search space is there
    after.update_search_space(space)
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


def test_without_what_was_written_down_a_resumed_search_has_what_nni_knows(monkeypatch, tmp_path):
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path))
    (tmp_path / "tuner.json").write_text("[[")
    after = Tuner()
    after.load_checkpoint()
    after.update_search_space(LINE)
    after.import_data([{"parameter": {"x": 0.5}, "value": 1.0}])
    assert states(after) == [("done", -1.0)]


def test_another_search_space_keeps_what_has_a_place_in_it():
    made = tuner(SMALL)
    for trial in range(3):
        values = made.generate_parameters(trial)
        made.receive_trial_result(trial, None, values["x"])
    made.update_search_space({**SMALL, "x": {"_type": "choice", "_value": [2, 3, 4, 5]}})
    assert [trial.point is None for trial in made._trials.values()] == [
        trial.parameters["x"] == 1 for trial in made._trials.values()
    ]
    assert made.generate_parameters(3)["x"] in (2, 3, 4, 5)


def test_nnis_process_loads_it_without_torch():
    code = (
        f"import sys; sys.path.append({str(ROOT)!r}); import ballot.tuning.tpe, ballot.tuning.asha; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd="/").returncode == 0
    assert Path(tpe.__file__).parent == ROOT / "ballot" / "tuning"
