"""The project's own tuner and assessor in a configuration, and classes that are not there."""

from pathlib import Path

import pytest

from ballot.engines.nni import algorithms
from ballot.engines.nni.algorithms import ASSESSOR, TUNER
from ballot.engines.nni.config import (
    algorithm_problems,
    outline,
    samples,
    startup_notes,
    to_experiment,
)
from ballot.engines.nni.profile import is_maximized

ROOT = Path(__file__).resolve().parents[3]
SPACE = {"lr": {"_type": "loguniform", "_value": [0.1, 0.2]}}


@pytest.fixture
def problems(tmp_path):
    """Return what is wrong with a tuner and an assessor, and NNI's configuration of them."""

    def find(mode="maximize", **change):
        content = {
            "searchSpace": SPACE,
            "trialCommand": "python3 train.py",
            "maxTrialNumber": 5,
            "trialCodeDirectory": str(ROOT),
            "trialConcurrency": 1,
            **change,
            "trainingService": {"platform": "local"},
        }
        told, wrong = outline(content, tmp_path / "c.yml")
        config, more = to_experiment(told, tmp_path / "c.yml")
        assert wrong == more == []
        return config, algorithm_problems(config, mode, "val_acc", tmp_path / "c.yml")

    return find


def ours(name, code=ROOT, **arguments):
    return {"className": name, "codeDirectory": str(code), "classArgs": arguments}


def test_ours_are_taken_and_draw_from_the_space(problems):
    config, wrong = problems(tuner=ours(TUNER), assessor=ours(ASSESSOR))
    assert wrong == []
    drawn = samples(config, SPACE, 4)
    assert len(drawn) == 4 and all(0.1 <= values["lr"] <= 0.2 for values in drawn)
    assert startup_notes(config, ROOT) == []
    config, _ = problems(tuner=ours(TUNER, tpe_args={"n_startup_jobs": 5}))
    assert "all 5 trials are random" in startup_notes(config, ROOT)[0].what


def test_a_relative_code_directory_starts_at_the_configuration(problems, tmp_path):
    (tmp_path / "code").symlink_to(ROOT)
    assert problems(tuner=ours(TUNER, "code"))[1] == []
    (problem,) = problems(tuner=ours(TUNER, "."))[1]
    assert f"is not in codeDirectory {tmp_path}" in str(problem)


@pytest.mark.parametrize(
    "tuner, message",
    [
        (
            ours("ballot.engines.nni.tuner.Tunner"),
            "nni.tuner.Tunner'; did you mean 'ballot.engines",
        ),
        (
            ours("harness.tpe.Tuner"),
            f"harness.tpe.Tuner has another name now; write className: {TUNER}",
        ),
        (ours(ASSESSOR), f"no tuner {ASSESSOR!r}"),
        (ours(TUNER, "/tmp"), "is not in codeDirectory /tmp"),
        (ours(TUNER, sead=1), "does not take its classArgs: got an unexpected"),
        (ours(TUNER, tpe_args={"startup": 1}), "does not take its classArgs"),
        (ours(TUNER, optimize_mode="max"), "optimize_mode is 'max'"),
        (ours(TUNER, optimize_mode="minimize"), "optimize_mode is minimize, but the trials report"),
        (ours("Mine"), "'Mine' names no module"),
        (ours("no_such_module.Mine"), "there is no module 'no_such_module'"),
    ],
)
def test_what_nnis_process_would_die_of_is_one_line(problems, tuner, message):
    (problem,) = problems(tuner=tuner)[1]
    assert message in str(problem)


def test_where_less_is_better_ours_have_to_be_told(problems):
    wrong = problems("minimize", tuner=ours(TUNER), assessor=ours(ASSESSOR))[1]
    assert [p.what.split("'")[0] for p in wrong] == ["the tuner", "the assessor"]
    assert "not set, which it takes for maximize" in wrong[0].what


def test_another_persons_class_is_left_to_nni(problems, tmp_path):
    (tmp_path / "mine.py").write_text("raise RuntimeError('is not imported here')\n")
    assert problems(tuner=ours("mine.Mine", tmp_path))[1] == []


@pytest.mark.parametrize(
    "tuner, maximized",
    [
        ({"name": "TPE"}, False),
        ({"className": TUNER}, True),
        ({"className": "mine.Mine"}, False),
        ({"className": TUNER, "classArgs": {"optimize_mode": "minimize"}}, False),
    ],
)
def test_which_way_a_search_goes_is_known_later(tuner, maximized):
    assert is_maximized({"tuner": tuner}) is maximized


def test_earlier_runs_are_handed_to_the_tuner_that_takes_them(problems, tmp_path, monkeypatch):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs" / "a" / "result.json").write_text('{"status": "done"}')
    monkeypatch.chdir(tmp_path)

    def add(given, tuner):
        config = problems(tuner=tuner)[0]
        wrong = algorithms.add_warm_start(config, given, tmp_path, Path("c.yml"))
        return config.tuner.class_args, [str(problem) for problem in wrong]

    arguments, wrong = add(["runs"], ours(TUNER, seed=1))
    assert wrong == [] and arguments == {"seed": 1, "warm_start": [str(tmp_path / "runs")]}
    assert add([], ours(TUNER, warm_start="runs/a"))[1] == []
    assert add([], {"name": "TPE"})[1] == []
    for given, tuner, message in (
        (["none"], ours(TUNER), f"command line: warm_start: {tmp_path}/none is not there"),
        (["empty"], ours(TUNER), "holds no run that has ended; name a run's folder"),
        ([], ours(TUNER, warm_start=["none"]), "c.yml: warm_start: none is not there"),
        (["runs"], {"name": "TPE"}, "the tuner TPE takes no earlier runs; set tuner: {className"),
    ):
        (problem,) = add(given, tuner)[1]
        assert message in problem
