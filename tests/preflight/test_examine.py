"""Everything that is wrong with a search, in one list, before anything starts."""

import json
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ballot.config.schema import Config
from ballot.engines.interface import Limits
from ballot.engines.nni import checks
from ballot.engines.nni.engine import NniEngine
from ballot.preflight import examine as examine_module

ROOT = Path(__file__).resolve().parents[2]
SPACE = {"lr": {"_type": "loguniform", "_value": [0.001, 0.01]}}
CONFIG = {
    "searchSpaceFile": "space.json",
    "trialCommand": "python3 train.py --resume auto --epochs 1",
    "trialCodeDirectory": str(ROOT),
    "trialConcurrency": 1,
    "maxTrialNumber": 4,
    "tuner": {
        "name": "TPE",
        "classArgs": {"optimize_mode": "maximize", "tpe_args": {"n_startup_jobs": 2}},
    },
    "trainingService": {"platform": "local"},
}


@pytest.fixture
def examine(tmp_path, monkeypatch):
    """Examine a configuration that differs from a good one; nothing is trained unless asked."""
    monkeypatch.setattr(checks, "count_gpus", lambda: 0)

    def do(space=SPACE, limits=None, probe=False, guarded=True, **change):
        (tmp_path / "space.json").write_text(json.dumps(space))
        content = {k: v for k, v in {**CONFIG, **change}.items() if v is not None}
        (tmp_path / "c.yml").write_text(yaml.safe_dump(content))
        # Not NNI's own 8080, on which a search may run while this is tested.
        return examine_module.examine(
            NniEngine(),
            tmp_path / "c.yml",
            limits or Limits(),
            probe=probe,
            guarded=guarded,
            port=28400,
        )

    return do


def test_nothing_is_wrong_with_a_good_configuration(examine):
    found = examine()
    assert found.problems == [] and found.aim == ("val_acc", "max")
    assert found.draft.plan([], maximize=True).settings.search_space == SPACE


SHIPPED = [
    "config_local.yml",
    "config_remote.yml",
    *sorted(ROOT.glob("examples/*/config_local.yml")),
]
# What the machine that reads them cannot have: photos in the named folder, keys of other machines.
NOT_HERE = ("data_dir: ", "its key file ")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: Path(path).parent.name or str(path))
def test_nothing_is_wrong_with_what_is_shipped_but_what_is_not_here(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = examine_module.examine(
        NniEngine(), ROOT / path, Limits(), probe=False, guarded=True, port=28400
    )
    assert [p for p in found.problems if not p.what.startswith(NOT_HERE)] == []
    assert found.aim is not None and found.aim[1] == "max"


def test_everything_is_found_at_once(examine):
    space = {
        "learning_rate": SPACE["lr"],
        "batch_size": {"_type": "choice", "_value": [16, "many"]},
        "monitor": {"_type": "choice", "_value": ["val_acc"]},
    }
    found = examine(
        space,
        trialCommand="python3 train.py --epoch 3 --data_dir nowhere",
        tuner={"name": "Hyperband"},
        assessor={"name": "Medianstopp"},
        useAnnotation=True,
        maxExperimentDuration="90 minutes",
        maxTrialNumbr=3,
        trainingService={"platform": "local", "reuseMode": True},
    )
    text = "\n".join(map(str, found.errors))
    for message in (
        "unknown option 'learning_rate'; did you mean 'lr'?",
        "batch_size is 'many'",
        "monitor is searched",
        "unknown flag '--epoch'",
        "nowhere is not there",
        "the tuner Hyperband fails",
        "no assessor 'Medianstopp'",
        "useAnnotation",
        "'90 minutes' is no duration",
        "there is no 'maxTrialNumbr'",
        "reuseMode: true",
    ):
        assert text.count(message) == 1, message
    assert len(found.errors) == 11


@pytest.mark.parametrize(
    "change, message",
    [
        ({"trialCommand": "python3 train.py; echo"}, "several commands"),
        ({"trialCommand": "python3 train.py --config none.json"}, "none.json: cannot be read"),
        ({"trialCommand": "python3 train.py --run_name a"}, "one --run_name"),
        ({"trialCommand": "python3 train.py --plugins none.py"}, "plugins: none.py is not there"),
        ({"trialCommand": "python3 train.py --monitor val_loss"}, "set it to minimize"),
        ({"trialCommand": "python3 train.py --monitor 'max val_loss'"}, None),
        ({"tuner": {"name": "TPE"}}, "set it to maximize"),
        (
            {"trialGpuNumber": 1, "trainingService": {"platform": "local", "useActiveGpu": True}},
            "this machine has no GPU: NNI waits for ever",
        ),
        ({"trialGpuNumber": 0}, None),
        ({"searchSpaceFile": "none.json"}, "none.json: cannot be read"),
        ({"trialCodeDirectory": "."}, "has no train.py"),
    ],
)
def test_a_single_mistake_is_a_single_problem(examine, change, message):
    found = examine(**change)
    assert len(found.errors) == (message is not None)
    assert message is None or message in str(found.errors[0])


def test_the_monitor_may_stand_in_a_file_of_the_trial_command(examine, tmp_path):
    (tmp_path / "o.json").write_text('{"monitor": "val_loss"}')
    (error,) = examine(trialCommand=f"python3 train.py --config {tmp_path}/o.json").errors
    assert "report val_loss; set it to minimize" in str(error)


def test_the_command_line_of_the_search_comes_before_its_file(examine):
    bounds = ("--max_params", "4M")
    limits = Limits(9, max_seconds=90.0, concurrency=3, trial_seconds=5.0, bounds=bounds)
    plan = examine(limits=limits).draft.plan([], maximize=True)
    assert (plan.max_trials, plan.concurrency, plan.max_seconds) == (9, 3, 90.0)
    assert plan.command.endswith("--time_limit 5 --max_params 4M")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"trialCommand": "python3 train.py"}, "add --resume auto"),
        ({"trialCommand": "python3 train.py --resume auto --lr 0.1"}, "the search space wins"),
        (
            {"space": {"batch_size": {"_type": "choice", "_value": [1, 2]}}},
            "holds 2 configurations",
        ),
        ({"space": {**SPACE, "fold": {"_type": "choice", "_value": [0, 1]}}}, "other rows"),
        ({"maxTrialNumber": None}, "nothing ends this search but Ctrl-C"),
        ({"maxTrialNumber": 2}, "set tpe_args: {n_startup_jobs: 1}"),
        ({"trialCommand": f"python3 {ROOT}/bench/data.py"}, "another script"),
    ],
)
def test_what_is_hardly_meant_is_noted(examine, change, message):
    found = examine(**change)
    assert found.errors == []
    (note,) = found.notes
    assert message in str(note)


def test_version_1_is_converted_and_said(examine):
    old = {
        **dict.fromkeys(CONFIG),
        "searchSpacePath": "space.json",
        "maxTrialNum": 4,
        "trialConcurrency": 1,
        "trainingServicePlatform": "local",
        "trial": {"command": CONFIG["trialCommand"], "codeDir": str(ROOT)},
        "tuner": {"builtinTunerName": "TPE", "classArgs": CONFIG["tuner"]["classArgs"]},
    }
    found = examine(**old)
    assert found.errors == [] and "was converted" in str(found.notes[0])
    found = examine(**{**old, "tuner": {"builtinTunerName": "BOHB"}})
    assert "BOHB fails" in str(found.errors[0])


def test_a_key_of_another_script_is_not_ours_to_know(examine):
    space = {"hidden": {"_type": "choice", "_value": [1, 2, 3, 4]}}
    found = examine(space, trialCommand=f"python3 {ROOT}/bench/data.py", tuner={"name": "TPE"})
    assert found.errors == []
    broken = {"hidden": {"_type": "choise", "_value": [1]}}
    found = examine(broken, trialCommand=f"python3 {ROOT}/bench/data.py")
    assert "did you mean 'choice'" in str(found.errors[0])


def gpu(wanted, gpus, concurrency=1, guarded=True, **options):
    config = SimpleNamespace(trial_gpu_number=wanted, trial_concurrency=concurrency)
    return checks.gpu_problems(config, Config(**options), gpus, "c.yml", guarded=guarded)


@pytest.mark.parametrize(
    "wanted, gpus, guarded, fatal",
    [
        (None, 1, True, None),
        (0, 0, True, None),
        (0, 1, True, True),
        (1, 0, True, True),
        (1, 1, True, False),
        (1, 1, False, True),
        (1, 2, True, None),
        (2, 2, True, False),
        (3, 2, True, True),
    ],
)
def test_gpus_that_nni_would_assign_wrongly(wanted, gpus, guarded, fatal):
    found = gpu(wanted, gpus, guarded=guarded)
    assert [problem.fatal for problem in found] == ([] if fatal is None else [fatal])


def test_no_gpus_on_purpose_is_no_problem():
    assert gpu(0, 2, device="cpu") == []


def test_more_trials_than_gpus_is_noted_unless_they_share():
    (note,) = gpu(None, 2, concurrency=3)
    assert not note.fatal and "1 would wait" in note.what and "--trials_per_gpu" in note.remedy
    assert gpu(None, 2, concurrency=4, trials_per_gpu=2) == []


def test_other_machines_need_two_ports():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert checks.port_problems(port, "local") == []
        (problem,) = checks.port_problems(port - 1, "remote")
        assert str(port) in problem.what and "--port" in problem.remedy
    assert checks.port_problems(70000, "local")[0].fatal


def test_the_data_of_other_machines_are_looked_for_there(examine, monkeypatch):
    monkeypatch.setattr(checks, "uploaded", lambda _: {"a": [1, 1]})
    machine = {"host": "192.0.2.1", "user": "a", "password": "b"}
    service = {"platform": "remote", "machineList": [machine]}
    command = "python3 train.py --resume auto --data_dir /there"
    assert examine(trialCommand=command, trainingService=service).errors == []
    service["reuseMode"] = True
    (error,) = examine(trialCommand=command, trainingService=service).errors
    assert "reuseMode" in error.what


def test_too_much_to_upload_names_the_largest_folders(tmp_path, monkeypatch):
    counts = {"data/": [1999, 400 * 1024**2], "a.py": [1, 10], "runs/": [5, 10]}
    monkeypatch.setattr(checks, "uploaded", lambda _: counts)
    files, size = checks.upload_problems(tmp_path)
    assert "2,005 files" in files.what and "data/" in files.what and ".nniignore" in files.remedy
    assert "400 MB" in size.what


def test_more_threads_than_cores_are_warned_of(monkeypatch):
    monkeypatch.setattr(examine_module, "count_cores", lambda: 4)
    monkeypatch.setattr(examine_module, "threads_each", lambda at_once: 4 // at_once)
    for text, notes in (("", 0), ("2", 0), ("3", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        found = examine_module.thread_notes(2, "c.yml")
        assert len(found) == notes
    (note,) = found
    assert "=3 gives 2 trials at once 6 threads on 4 cores" in note.what
    assert note.remedy == "unset it, or set it to 2" and not note.fatal


def test_a_path_that_a_shell_reads_is_refused_without_the_guard(examine, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/a b/python")
    assert "python" in [error.where for error in examine(guarded=False).errors]
    assert "python" not in [error.where for error in examine().errors]


def test_versions_are_those_that_nni_runs_with(monkeypatch):
    assert checks.version_problems() == []
    versions = {"nni": "2.10", "setuptools": "82.0.1", "torch": None}
    monkeypatch.setattr(checks, "_version", versions.get)
    monkeypatch.setattr(checks, "PYTHONS", ((4, 0), (5, 0)))
    wheres = [problem.where for problem in checks.version_problems()]
    assert wheres == ["python", "nni", "setuptools", "torch"]


@pytest.mark.slow
def test_a_few_batches_are_tried_and_the_search_is_estimated(examine, tmp_path):
    space = {**SPACE, "batch_size": {"_type": "choice", "_value": [32, 512]}}
    found = examine(space, probe=True)
    assert found.errors == [] and found.estimate.startswith("about 4 trials in ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yml", "space.json"]


@pytest.mark.slow
def test_the_trial_itself_knows_names_their_arguments_and_which_way_is_better(examine):
    space = {
        **SPACE,
        "criterion": {"_type": "choice", "_value": ["cross_entropy", "focall"]},
        "model": {"_type": "choice", "_value": [{"_name": "simple_cnn"}, {"_name": "simple_cn"}]},
        "optimizer": {
            "_type": "choice",
            "_value": [
                {"_name": "SGD", "momentumm": {"_type": "uniform", "_value": [0, 1]}},
                {"_name": "AdamW"},
            ],
        },
    }
    found = examine(
        space,
        probe=True,
        trialCommand="python3 train.py --resume auto --epochs 1 "
        "--metrics acc --monitor val_log_loss",
    )
    text = "\n".join(map(str, found.errors))
    assert "space.json: unknown criterion 'focall'; did you mean 'focal'?" in text
    assert "did you mean 'simple_cnn'?" in text and "did you mean 'momentum'?" in text


@pytest.mark.slow
def test_an_interpreter_that_cannot_train_is_said(examine, tmp_path):
    (tmp_path / "python3").write_text("#!/bin/sh\necho 'ImportError: no torch' >&2\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    command = f"{tmp_path}/python3 train.py --resume auto"
    (error,) = examine(probe=True, trialCommand=command).errors
    assert "a trial does not start: ImportError: no torch" in str(error)
    (error,) = examine(probe=True, trialCommand="/none/python3 train.py --resume auto").errors
    assert "No such file" in str(error)


@pytest.mark.slow
def test_networks_above_a_bound_are_named_and_a_search_of_none_else_is_refused(examine):
    space = {"model": {"_type": "choice", "_value": ["simple_cnn", "AlexNet"]}}
    command = "python3 train.py --resume auto --epochs 1 --image_size 64 --max_params "
    found = examine(space, probe=True, trialCommand=command + "1M")
    (note,) = [p for p in found.problems if "parameters" in p.what]
    assert not note.fatal and note.what.startswith("AlexNet has ")
    assert note.remedy == "leave it out of the search space" and found.errors == []
    (refused,) = examine(space, probe=True, trialCommand=command + "1k").errors
    assert str(refused).startswith("max_params: simple_cnn has 338,486 parameters, more than 1k; ")
