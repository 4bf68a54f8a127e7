"""A configuration for Ray: what it says, what is wrong with it, and what a cluster must have."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import search
from ballot.config.schema import Config
from ballot.engines.choose import engine_of_config, load_engine
from ballot.engines.interface import Launch, Limits, Sketch
from ballot.engines.ray import asked, config, engine, sent
from ballot.engines.ray.asked import Facts
from ballot.engines.ray.cluster import request_of
from ballot.engines.ray.config import Resources
from ballot.engines.ray.draft import room_problems
from ballot.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
GOOD = {
    "searchSpace": {"lr": {"_type": "loguniform", "_value": [0.001, 0.1]}},
    "trialCommand": "python3 -m ballot.preload train.py --resume auto --model simple_cnn",
    "trialCodeDirectory": str(ROOT),
    "maxTrialNumber": 3,
    "maxExperimentDuration": "1h",
    "trialConcurrency": 2,
    "tuner": {"name": "TPE", "classArgs": {"optimize_mode": "maximize"}},
    "assessor": {"name": "ASHA", "classArgs": {"optimize_mode": "maximize"}},
    "trainingService": {"platform": "ray", "cpus": 2, "gpus": 0.5, "memory": "4GiB"},
}


def write(path, **more):
    path.write_text(yaml.safe_dump({**GOOD, **more}))
    return path


def problems_of(path):
    draft, problems = load_engine("ray").read(path, Limits(), guarded=True)
    problems += draft.complete([])
    problems += draft.algorithm_problems("maximize", "val_acc")
    return [str(problem).removeprefix(f"{path}: ") for problem in problems]


def test_a_file_names_its_engine(tmp_path):
    assert engine_of_config(write(tmp_path / "a.yml")).name == "ray"
    local = write(tmp_path / "b.yml", trainingService={"platform": "local"})
    assert engine_of_config(local).name == "nni"


def test_a_plan_holds_what_the_driver_needs(tmp_path):
    path = write(tmp_path / "a.yml")
    assert problems_of(path) == []
    draft, _ = load_engine("ray").read(path, Limits(max_trials=5, trial_seconds=9), guarded=True)
    draft.complete([])
    plan = draft.plan([], maximize=True)
    assert (plan.max_trials, plan.max_seconds, plan.concurrency) == (5, 3600.0, 2)
    assert plan.command.endswith("--time_limit 9")
    spec = json.loads(json.dumps(plan.settings.spec, default=str))
    assert spec["resources"] == {
        "address": "auto",
        "cpus": 2.0,
        "gpus": 0.5,
        "memory": 4 * 2**30,
    }
    assert draft.assigns_gpus and spec["asked"] == "2 CPUs, 0.5 GPUs, 4.0 GiB of memory"


def test_the_file_of_another_engine_needs_only_another_platform(tmp_path):
    theirs = {
        "className": "ballot.engines.nni.tuner.Tuner",
        "codeDirectory": ".",
        "classArgs": {"optimize_mode": "maximize"},
    }
    assert problems_of(write(tmp_path / "a.yml", tuner=theirs)) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"maxTrialNumbr": 3}, "there is no 'maxTrialNumbr'; did you mean 'maxTrialNumber'?"),
        ({"trialConcurrency": 0}, "trialConcurrency is 0; give a whole number from 1 on"),
        ({"maxTrialNumber": True}, "maxTrialNumber is True; give a whole number from 1 on"),
        ({"tuner": {"name": "BOHB"}}, "there is no tuner 'BOHB' on Ray; use tuner: {name: TPE}"),
        (
            {"trainingService": {"platform": "ray", "gpus": 1.5}},
            "trainingService: gpus is 1.5; give a number from 0 on; above 1 a whole one",
        ),
        (
            {"trainingService": {"platform": "ray", "memory": "much"}},
            "trainingService: memory is 'much'; give a size, as in 4GiB",
        ),
        (
            {"trainingService": {"platform": "ray", "address": "ray://head:10001"}},
            "trainingService: address 'ray://head:10001' is that of a Ray client, which no "
            "results come home to; run search.py on a node of the cluster, with address: auto",
        ),
        (
            {"tuner": {"name": "TPE", "classArgs": {"optimize_mode": "minimize"}}},
            "the tuner's optimize_mode is minimize, but the trials report val_acc; set it to "
            "maximize",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path, more, said):
    assert said in problems_of(write(tmp_path / "a.yml", **more))


def test_what_search_py_plans_is_a_good_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    (tmp_path / "space.json").write_text(json.dumps(GOOD["searchSpace"]))
    command = GOOD["trialCommand"]
    sketch = Sketch("n", "space.json", command, ROOT, 90.0, 4, 2, True, [{"lr": 0.01}], True)
    load_engine("ray").write_config(tmp_path / "config.yml", sketch)
    assert problems_of(tmp_path / "config.yml") == []
    written = yaml.safe_load((tmp_path / "config.yml").read_text())
    assert written["trainingService"] == {"platform": "ray", "address": "head:6379"}


def test_what_no_node_has_is_said_with_what_there_is():
    nodes = [{"CPU": 8.0, "memory": 9e9}, {"CPU": 2.0, "GPU": 1.0, "memory": 9e9}]
    facts = Facts("head:6379", nodes=nodes)
    (problem,) = room_problems(facts, Resources(gpus=4), "f")
    assert str(problem).startswith("f: a trial asks for 4 GPUs, and the most that a node has is 1")
    (problem,) = room_problems(facts, Resources(cpus=4, gpus=1), "f")
    assert "no node has all that a trial asks for: 4 CPUs, 1 GPUs" in str(problem)
    assert room_problems(facts, Resources(cpus=2, gpus=0.5), "f") == []


def test_nodes_of_a_host_that_unpack_into_one_folder_are_told_of(monkeypatch, tmp_path):
    folders = [("a", "/tmp/ray/s"), ("a", "/tmp/ray/s"), ("a", "/tmp/own/s"), ("b", "/tmp/ray/s")]
    nodes = [SimpleNamespace(node_manager_hostname=h, session_dir=d) for h, d in folders]
    shared = asked.shared_folders(nodes)
    assert shared == ["a:/tmp/ray/s"]
    facts = Facts("head:6379", nodes=[{"CPU": 8.0, "GPU": 1.0, "memory": 9e9}], shared=shared)
    monkeypatch.setattr(asked, "ask_cluster", lambda _: facts)
    draft, _ = load_engine("ray").read(write(tmp_path / "a.yml"), Limits(), guarded=True)
    draft.complete([])
    (problem,) = draft.resource_problems(None, None)
    assert not problem.fatal and "several nodes unpack the code into a:/tmp/ray/s" in str(problem)


def test_no_cluster_is_said_before_ray_is_asked(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(UserError, match="no cluster runs here, and RAY_ADDRESS is not set"):
        asked.ask_cluster("auto")
    with pytest.raises(UserError, match=r"no cluster at 127.0.0.1:9 \(Connection refused\)"):
        asked.ask_cluster("127.0.0.1:9")
    with pytest.raises(UserError, match="'head' is not HOST:PORT"):
        asked.ask_cluster("head")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"error": "InvalidAuthToken: token is incorrect"}, "does not take this user's token"),
        ({"ray": "2.1.0"}, "the cluster has Ray 2.1.0, and here is 2.60.0"),
        ({"python": "3.9.1"}, "the cluster has Python 3.9.1, and here is"),
    ],
)
def test_another_version_or_token_is_refused(monkeypatch, answer, said):
    here = ".".join(map(str, sys.version_info[:3]))
    good = {"ray": "2.60.0", "python": here, "nodes": []}
    monkeypatch.setattr(asked, "found_address", lambda address: address)
    monkeypatch.setattr(asked, "_ask", lambda *_: answer if "error" in answer else good | answer)
    monkeypatch.setattr(asked.metadata, "version", lambda _: "2.60.0")
    with pytest.raises(UserError, match=said):
        asked.ask_cluster("head:6379")


def test_an_open_cluster_and_an_old_ray_are_refused_unless_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(asked, "installed", lambda: (2, 60))
    closed, is_open = Facts("head:1"), Facts("head:1", open=True)
    engine.refuse_open(closed, Launch())
    with pytest.raises(UserError, match="the cluster lets in whoever reaches its ports"):
        engine.refuse_open(is_open, Launch())
    engine.refuse_open(is_open, Launch(public=True))
    assert capsys.readouterr().out.startswith("WARNING: --public: the cluster lets in whoever")
    monkeypatch.setattr(asked, "installed", lambda: (2, 51))
    with pytest.raises(UserError, match="has CVE-2025-62593; update Ray"):
        engine.refuse_open(closed, Launch())


def test_ray_that_is_not_installed_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(asked, "installed", lambda: None)
    draft, _ = load_engine("ray").read(write(tmp_path / "a.yml"), Limits(), guarded=True)
    (problem,) = draft.environment_problems(8080)
    assert str(problem) == "ray: is not installed; pip install -r requirements-extra.txt"


def test_a_folder_above_rays_limit_is_refused_with_the_largest_part(monkeypatch, tmp_path):
    code = tmp_path / "code"
    (code / "ballot").mkdir(parents=True)
    (code / "outputs").mkdir()
    (code / "outputs" / "large").write_bytes(bytes(9000))
    (code / "data").mkdir()
    (code / "data" / "photo").write_bytes(bytes(5000))
    (code / sent.IGNORE).write_text("outputs*/\n")
    assert sent.sizes(code) == {".nniignore": (1, 10), "ballot/": (0, 0), "data/": (1, 5000)}
    monkeypatch.setattr(sent, "LIMIT", 4000)
    path = write(tmp_path / "a.yml", trialCodeDirectory=str(code))
    draft, _ = load_engine("ray").read(path, Limits(), guarded=True)
    draft.complete([])
    draft._wanted.resources = dataclasses.replace(draft._wanted.resources, address="local")
    (problem,) = draft.resource_problems(None, None)
    assert "would be sent to the nodes" in str(problem) and str(problem).endswith("as data/")


def test_neither_the_scripts_nor_a_trial_load_ray():
    code = "import sys, search, train, ballot.engines.ray.engine; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_what_a_trial_is_given_is_asked_of_ray_parts_of_a_gpu_too(tmp_path):
    draft, _ = load_engine("ray").read(write(tmp_path / "a.yml"), Limits(), guarded=True)
    draft.complete([])
    spec = draft.plan([], maximize=True).settings.spec
    given = {"num_cpus": 2.0, "num_gpus": 0.5, "memory": 4 * 2**30}
    assert request_of(spec["resources"]) == given
    none = dataclasses.asdict(Resources(cpus=0.0))
    assert request_of(none) == {"num_cpus": 0.0, "num_gpus": 0.0}


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("", ["--install"], "--install sets up machines that are reached over ssh; nodes of a"),
        ("", ["--sync_data"], "the trial command names no folder of data on the machines"),
        ("--data_dir /nowhere", ["--sync_data"], "sync_data: /nowhere is not a folder"),
    ],
)
def test_what_nodes_cannot_be_sent_is_said_before_anything_starts(
    tmp_path, capsys, command, words, said
):
    path = write(tmp_path / "a.yml", trialCommand=f"{GOOD['trialCommand']} {command}")
    assert search.main(["--config", str(path), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("key", ["exclude", "soft_labels"])
def test_a_list_outside_the_code_folder_is_refused_for_nodes_in_a_line(tmp_path, key):
    code, inside, outside = tmp_path / "code", tmp_path / "code" / "in.csv", tmp_path / "out.csv"
    (code / "ballot").mkdir(parents=True)
    for path in (inside, outside):
        path.write_text("id\na\n")
    draft, _ = load_engine("ray").read(
        write(tmp_path / "a.yml", trialCodeDirectory=str(code)), Limits(), guarded=True
    )
    draft.complete([])
    assert draft.file_problems(Config(**{key: "in.csv"})) == []
    (problem,) = draft.file_problems(Config(**{key: str(outside)}))
    assert str(problem).endswith(
        f"{key}: {outside} is not sent to the nodes; copy it into {code} and name it from there, "
        f"as in --{key} out.csv"
    )
    (problem,) = draft.file_problems(Config(**{key: str(inside)}))
    assert str(problem).endswith(f"; name it from {code}, as in --{key} in.csv")
    draft._wanted.resources = dataclasses.replace(draft._wanted.resources, address="local")
    assert draft.file_problems(Config(**{key: str(outside)})) == []


def test_a_planned_search_names_lists_in_the_code_folder_as_the_nodes_have_them(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    (tmp_path / "space.json").write_text(json.dumps(GOOD["searchSpace"]))
    command = f"python3 train.py --exclude '{ROOT}/a b.csv' --out_dir {ROOT}/outputs"
    sketch = Sketch("n", "space.json", command, ROOT, 90.0, 4, 2, True, [{"lr": 0.01}], True)
    load_engine("ray").write_config(tmp_path / "config.yml", sketch)
    written = yaml.safe_load((tmp_path / "config.yml").read_text())
    wanted = f"python3 train.py --exclude 'a b.csv' --out_dir {ROOT}/outputs"
    assert written["trialCommand"] == wanted


def test_the_platform_is_the_engines_name():
    assert load_engine("ray").name == config.PLATFORM
