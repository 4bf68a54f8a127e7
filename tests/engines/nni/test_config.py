"""The configuration of a search, as NNI reads it and as it is refused."""

import pytest
import yaml

from ballot.engines.nni.config import (
    algorithm_problems,
    outline,
    read_content,
    samples,
    to_experiment,
    uploaded,
)
from ballot.errors import UserError
from ballot.wording import seconds_of

SPACE = {"lr": {"_type": "uniform", "_value": [0.1, 0.2]}}
GOOD = {
    "trialCommand": "python3 train.py --resume auto",
    "searchSpace": SPACE,
    "trialConcurrency": 2,
    "maxTrialNumber": 3,
    "tuner": {"name": "TPE", "classArgs": {"optimize_mode": "maximize"}},
    "trainingService": {"platform": "local"},
}
OLD = {
    "authorName": "a",
    "trialConcurrency": 1,
    "maxTrialNum": 5,
    "maxExecDuration": "1h",
    "trainingServicePlatform": "local",
    "searchSpacePath": "space.json",
    "tuner": {"builtinTunerName": "TPE", "classArgs": {"optimize_mode": "maximize"}},
    "trial": {"command": "python3 train.py", "codeDir": ".", "gpuNum": 1},
    "localConfig": {"useActiveGpu": True},
}


@pytest.fixture
def read(tmp_path):
    """Write a configuration, and return what is made of it and what is wrong with it."""

    def do(content):
        path = tmp_path / "c.yml"
        path.write_text(yaml.safe_dump(content))
        (tmp_path / "space.json").write_text('{"lr": {"_type": "uniform", "_value": [0.1, 0.2]}}')
        told, problems = outline(read_content(path), path)
        config, more = to_experiment(told, path)
        return told, config, [str(p).removeprefix(f"{path}: ") for p in [*problems, *more]]

    return do


def test_a_good_configuration_is_taken(read):
    told, config, problems = read(GOOD)
    assert problems == [] and told.version == 2
    assert config.max_trial_number == 3 and config.search_space == SPACE


def test_version_1_is_converted(read):
    told, config, problems = read(OLD)
    assert problems == [] and told.version == 1 and told.space == SPACE
    assert told.command == "python3 train.py" and told.concurrency == 1
    assert (config.max_trial_number, config.trial_gpu_number) == (5, 1)
    assert config.training_service.use_active_gpu is True


def test_version_1_that_names_a_gpu_of_this_machine_leaves_it_to_the_trials(read):
    old = {key: value for key, value in OLD.items() if key != "localConfig"}
    _, config, problems = read(old)
    assert config.trial_gpu_number is None
    assert problems == [
        "gpuNum: 1 is left to the trials: each takes a free GPU by itself, if there is one"
    ]


def test_keys_are_compared_as_nni_does(read):
    content = {**GOOD, "trial_command": GOOD["trialCommand"]}
    del content["trialCommand"]
    assert read(content)[0].command == GOOD["trialCommand"] and read(content)[2] == []


@pytest.mark.parametrize(
    "change, message",
    [
        ({"trialConcurency": 2}, "there is no 'trialConcurency'; did you mean 'trialConcurrency'?"),
        ({"tuner": None}, "names no tuner; set tuner: {name: TPE, ...}"),
        ({"tuner": {"nam": "TPE"}}, "NNI does not take it: there is no nam in tuner"),
        ({"trialConcurrency": True}, "trialConcurrency is true; give a whole number from 1 on"),
        ({"maxTrialNumber": -2}, "maxTrialNumber is -2; give a whole number from 1 on"),
        ({"trialGpuNumber": False}, "trialGpuNumber is false; give a whole number from 0 on"),
        ({"maxTrialNumber": 1.5}, "maxTrialNumber is 1.5, which is of the wrong type"),
        ({"trialCommand": ""}, "has no trialCommand; as in python3 train.py"),
        ({"trialCodeDirectory": "nowhere"}, "nowhere is not there"),
        ({"trainingService": {"platform": "loca"}}, "platform 'loca'; did you mean 'local'?"),
        ({"trialGpuNumber": 1}, "trialGpuNumber without useActiveGpu"),
        ({"searchSpace": None}, "names no search space; set searchSpaceFile: search_space.json"),
        ({"searchSpace": []}, "holds no search space"),
    ],
)
def test_what_nni_does_not_take_is_one_problem(read, change, message):
    (problem,) = read({**GOOD, **change})[2]
    assert message in problem


def test_nni_says_everything_it_does_not_take(read):
    content = {**GOOD, "trialConcurrency": "two", "maxTrialNumber": "x", "tuner": {"nam": "TPE"}}
    assert len(read(content)[2]) == 3


def test_what_the_conversion_would_drop_is_a_problem(read):
    (problem,) = read({**OLD, "trial": {**OLD["trial"], "gpus": 3}})[2]
    assert "not fully converted" in problem and "gpus" in problem


def test_a_misspelt_concurrency_is_not_missing_too(read):
    content = {**GOOD, "trialConcurency": 2}
    del content["trialConcurrency"]
    assert len(read(content)[2]) == 1


@pytest.mark.parametrize("text", ["[1, 2", "hello"])
def test_what_is_no_configuration_is_an_error(tmp_path, text):
    (tmp_path / "c.yml").write_text(text)
    with pytest.raises(UserError, match=r"c\.yml: "):
        read_content(tmp_path / "c.yml")


def problems_with(read, tmp_path, mode="maximize", **change):
    _, config, refused = read({**GOOD, **change})
    assert refused == []
    return algorithm_problems(config, mode, "val_acc", tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "Hyperband",
        "BOHB",
        "GP",
        "Metis",
        "Anneal",
        "PBT",
        "batch",
        "TPE_legacy",
        "SMAC",
        "DNGO",
        "PPO",
    ],
)
def test_a_tuner_that_does_not_work_is_refused_with_the_reason(read, tmp_path, name):
    (problem,) = problems_with(read, tmp_path, tuner={"name": name})
    assert name in problem.what and len(problem.what) > len(f"the tuner {name} ")
    assert problem.remedy == "use TPE, Random, Evolution or GridSearch"


@pytest.mark.parametrize(
    "tuner",
    [
        {"name": "tpe", "classArgs": {"optimize_mode": "maximize", "seed": 1}},
        {"name": "Random"},
        {"name": "GridSearch"},
        {"name": "Evolution", "classArgs": {"optimize_mode": "maximize"}},
    ],
)
def test_a_tuner_that_works_is_taken_and_draws_from_the_space(read, tmp_path, tuner):
    assert problems_with(read, tmp_path, tuner=tuner) == []
    config = read({**GOOD, "tuner": tuner})[1]
    drawn = samples(config, SPACE, 3)
    assert len(drawn) == 3
    assert all(0.1 <= values["lr"] <= 0.2 for values in drawn)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tuner": {"name": "TPE"}}, "not set, which NNI takes for minimize"),
        ({"tuner": {"name": "Tpe", "classArgs": {"optimize_mode": "max"}}}, "'max'"),
        ({"tuner": {"name": "TPP"}}, "no tuner 'TPP'"),
        (
            {"tuner": {**GOOD["tuner"], "classArgs": {"optimize_mode": "maximize", "sead": 1}}},
            "does not take its classArgs",
        ),
        ({"assessor": {"name": "Medianstopp"}}, "no assessor 'Medianstopp'"),
        (
            {"assessor": {"name": "Medianstop", "classArgs": {"optimize_mode": "minimize"}}},
            "the assessor's optimize_mode is minimize",
        ),
        (
            {"assessor": {"name": "Curvefitting", "classArgs": {"epochs": 3}}},
            "does not take its classArgs",
        ),
    ],
)
def test_what_is_wrong_with_a_tuner_or_an_assessor_is_said_once(read, tmp_path, change, message):
    (problem,) = problems_with(read, tmp_path, **change)
    assert message in problem.what


def test_curvefitting_is_refused_where_less_is_better(read, tmp_path):
    tuner = {"name": "TPE", "classArgs": {"optimize_mode": "minimize"}}
    assessor = {"name": "Curvefitting", "classArgs": {"epoch_num": 5}}
    (problem,) = problems_with(read, tmp_path, "minimize", tuner=tuner, assessor=assessor)
    assert "Curvefitting takes more for better" in problem.what


@pytest.mark.parametrize("text, seconds", [("90", 90), (90, 90), ("1.5m", 90), ("2h", 7200)])
def test_a_duration_is_read(text, seconds):
    assert seconds_of(text, "x") == seconds


def test_what_nni_would_upload_follows_its_own_ignore_file(tmp_path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    for name in ("a.py", "data/x.bin", "data/deep/y.bin", "data/deep/keep.txt", "b.log"):
        (tmp_path / name).write_text("12345")
    (tmp_path / ".nniignore").write_text("*.log\ndata/**/*.bin\n")
    assert uploaded(tmp_path) == {"a.py": [1, 5], "data/": [1, 5], ".nniignore": [1, 20]}


def test_trial_code_that_is_a_link_to_itself_is_one_line(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop: is a link that leads to itself; set trialCodeDir"):
        outline({**GOOD, "trialCodeDirectory": "loop"}, tmp_path / "c.yml")


def test_a_place_for_searches_that_is_no_folder_is_one_line(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="loop: is a link that leads to itself; set experiment"):
        outline({**GOOD, "experimentWorkingDirectory": "loop"}, tmp_path / "c.yml")
    for place, wrong in [("file", True), ("file/below", True), ("new/below", False)]:
        found = outline({**GOOD, "experimentWorkingDirectory": place}, tmp_path / "c.yml")[1]
        assert any("is no folder" in str(problem) for problem in found) == wrong
