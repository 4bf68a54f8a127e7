"""Real searches on two machines behind ssh: results at home, dead machines, cut cables."""

import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from searches_for_tests import SPACE, environment, managers_and_trials, wait_for

from ballot.engines.nni import database
from ballot.engines.nni.manager import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
SILENT = "203.0.113.1"  # of a net for documentation: nobody answers


@pytest.fixture
def project(lab, tmp_path):
    """A copy of the project with a search of `lab`'s machines, which end it all afterwards."""
    folder = tmp_path / "project"
    folder.mkdir()
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(
        ROOT / "ballot", folder / "ballot", ignore=shutil.ignore_patterns("__pycache__")
    )
    (folder / ".nniignore").write_text("outputs*/\n__pycache__/\nensemble/\n/nni/\n")
    (folder / "search_space.json").write_text(json.dumps(SPACE))
    yield folder
    for process in managers_and_trials(folder):
        process.kill()
    for box in lab.boxes:
        box.kill_all()
        box.start_sshd()


def configure(project, lab, *, epochs, trials):
    config = {
        "searchSpaceFile": "search_space.json",
        "trialCommand": f"exec {sys.executable} -m ballot.preload train.py --resume auto "
        f"--epochs {epochs} --no_tensorboard",
        "trialCodeDirectory": ".",
        "experimentWorkingDirectory": str(project / "nni"),
        "maxTrialNumber": trials,
        "trialConcurrency": 2,
        "tuner": {"name": "TPE", "classArgs": {"optimize_mode": "maximize"}},
        "trainingService": {"platform": "remote", "machineList": [b.entry() for b in lab.boxes]},
    }
    (project / "config.yml").write_text(yaml.safe_dump(config))


def start(project, script, *words):
    command = [sys.executable, script, *map(str, words)]
    return subprocess.Popen(
        command,
        cwd=project,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(project),
        stderr=subprocess.STDOUT,
    )


def search(project, lab, *words):
    port = free_port(18400, 2)
    return start(project, "search.py", "--ssh_config", lab.ssh_config, "--port", port, *words)


def latest(project):
    return (project / "nni" / "_latest").resolve()


def trials_of(project):
    return database.read_trials(latest(project)) if (project / "nni" / "_latest").exists() else []


def wait_for_epochs(project, process, epochs, trials=2, seconds=300):
    def reached():
        assert process.poll() is None, process.communicate()[0]  # why it ended
        return sum(len(trial.scores) >= epochs for trial in trials_of(project)) >= trials

    wait_for(reached, f"{epochs} epochs of {trials} trials", seconds)


def hashes(folder, pattern):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob(pattern)
        if path.is_file()
    }


def machines_in_table(project):
    with (project / "results.csv").open(newline="") as file:
        return {row["run"]: row["machine"] for row in csv.DictReader(file)}


def nothing_runs_on(lab, experiment_id):
    return not [
        line
        for box in lab.boxes
        for line in box.processes()
        if "train.py" in line or f"{experiment_id}/environments" in line
    ]


def test_a_competitions_file_of_version_1_is_searched_on_its_machine(lab, project):
    box = lab.boxes[0]
    entry = box.entry()
    machine = {
        "ip": entry["host"],
        "username": entry["user"],
        "sshKeyPath": entry["sshKeyFile"],
        "pythonPath": sys.executable,  # a program there, where NNI wants its folder
    }
    config = {
        "authorName": "default",
        "experimentName": "pstage1-env1",
        "trialConcurrency": 1,
        "maxExecDuration": "12h",
        "maxTrialNum": 1,
        "trainingServicePlatform": "remote",
        "searchSpacePath": "search_space.json",
        "useAnnotation": False,
        "tuner": {"builtinTunerName": "TPE", "classArgs": {"optimize_mode": "maximize"}},
        "trial": {"command": "python3 train.py --epochs 1", "codeDir": "."},
        "machineList": [machine],
    }
    (project / "config_remote.yml").write_text(yaml.safe_dump(config))
    process = search(project, lab, "--config", "config_remote.yml")
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    assert "was converted" in " ".join(said.split())
    (row,) = pd.read_csv(project / "results.csv").to_dict("records")
    assert row["machine"] == box.address


def test_the_results_of_two_machines_come_home_and_vote(lab, project):
    for box in lab.boxes:  # pip would wait for a registry that is silent, and say so
        pip = box.home / ".config/pip"
        pip.mkdir(parents=True)
        (pip / "pip.conf").write_text(
            f"[global]\nindex-url = http://{SILENT}/\nlog = {'/tmp/pip'}\n"
        )
    configure(project, lab, epochs=3, trials=4)
    began = time.time()
    process = search(project, lab, "--config", "config.yml")
    wait_for_epochs(project, process, 1)
    search_id = latest(project).name
    assert_only_ssh_is_open(lab, project)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    trials = trials_of(project)
    assert [trial.status for trial in trials] == ["succeeded"] * 4
    assert min(trial.started for trial in trials) - began < 90
    assert not list(lab.folder.glob("box*/tmp/pip")) and not [
        box for box in lab.boxes if box.inside("ls", "/tmp").stdout.count("pip")
    ]
    made = {}
    for box in lab.boxes:
        there = box.home / "nni-experiments" / search_id
        assert there.parent.stat().st_mode & 0o777 == 0o700
        ours = hashes(there / "outputs", "*.csv")
        assert ours
        made |= ours
    assert hashes(project / "outputs", "*.csv") == made and len(made) == 4
    names = machines_in_table(project)
    assert set(names.values()) == {box.address for box in lab.boxes}
    assert names == {f"{search_id}-{t.sequence:03d}-{t.id}": t.machine for t in trials}
    assert "vote of 4 members" in said and len(list(project.glob("outputs/*/best.pt"))) == 1
    wait_for(lambda: nothing_runs_on(lab, search_id), "the machines to be left", 20)
    wait_for(lambda: managers_and_trials(project) == [], "its processes to end", 20)
    votes = start(project, "ensemble.py", *sorted(project.glob("outputs/*.csv")))
    assert "vote of 4 members" in votes.communicate(timeout=60)[0] and votes.returncode == 0
    assert_collect_is_idempotent_and_names_what_is_missing(lab, project, search_id)


def assert_only_ssh_is_open(lab, project):
    for box in lab.boxes:
        open_to_all = {a for a in box.listening() if not re.match(r"127\.0\.0\.1:|\[::1\]:", a)}
        assert {address.rsplit(":", 1)[1] for address in open_to_all} == {"22"}
        for address in box.listening() - open_to_all:  # the tunnel's end and NNI's keeper
            url = f"http://{address}/api/v1/nni/check-status"
            asked = box.inside("curl", "-s", "-w", "%{http_code}", "-m", "5", url, check=False)
            assert asked.stdout.endswith("404"), (address, asked.stdout)
    own = [
        c
        for process in managers_and_trials(project)
        for c in process.net_connections()
        if c.status == psutil.CONN_LISTEN
    ]
    assert own and {c.laddr.ip for c in own} == {"127.0.0.1"}


def assert_collect_is_idempotent_and_names_what_is_missing(lab, project, search_id):
    whole = hashes(project / "outputs", "**/*")
    collected = start(project, "collect.py", search_id)
    said = collected.communicate(timeout=60)[0]
    assert collected.returncode == 0 and "0 runs brought home; 4 of 4" in said, said
    run = next(
        run for run, name in machines_in_table(project).items() if name == lab.boxes[1].address
    )
    shutil.rmtree(project / "outputs" / run)
    (project / "outputs" / f"{run}.csv").write_text("not what was sent")
    lab.boxes[1].kill_all()
    collected = start(project, "collect.py", search_id)
    said = collected.communicate(timeout=60)[0]
    assert collected.returncode == 1 and f"1 trial of {lab.boxes[1].address} could not" in said
    assert f"python collect.py {search_id}" in said and "refuses connections" in said
    lab.boxes[1].start_sshd()
    collected = start(project, "collect.py", search_id)
    said = collected.communicate(timeout=60)[0]
    assert collected.returncode == 0 and "1 run brought home; 4 of 4" in said, said
    assert hashes(project / "outputs", "**/*") == whole


def test_a_machine_that_dies_and_a_cable_that_is_cut_cost_no_trial(lab, project):
    epochs, (one, other) = 20, lab.boxes
    configure(project, lab, epochs=epochs, trials=4)
    first = search(project, lab, "--config", "config.yml", "--no_probe")
    wait_for_epochs(project, first, 3)
    search_id = latest(project).name
    first.kill()  # the search goes on, and is watched again
    process = search(project, lab, "--resume", search_id)
    other.kill_all()
    lost = [trial.id for trial in trials_of(project) if trial.machine == other.address]
    one.cut()
    cut = time.monotonic()
    time.sleep(5)
    other.start_sshd()
    time.sleep(85 - (time.monotonic() - cut))
    one.restore()
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    assert f"{other.address} is out" in said and f"{other.address} is back" in said
    assert f"{one.address} does not answer" in said
    trials = trials_of(project)
    assert [trial.status for trial in trials] == ["succeeded"] * 4 and len(lost) == 1
    for trial in trials:
        run = project / "outputs" / f"{search_id}-{trial.sequence:03d}-{trial.id}"
        history = pd.read_csv(run / "history.csv")
        assert history["epoch"].tolist() == list(range(1, epochs + 1)), trial.id
        assert len(pd.read_csv(run.with_name(f"{run.name}.csv"))) == 359
        assert len(trial.scores) == epochs and trial.final == history["val_acc"].max()
    assert f"trial {lost[0]} was lost" in said
    wait_for(lambda: nothing_runs_on(lab, search_id), "the machines to be left", 20)
    wait_for(lambda: managers_and_trials(project) == [], "its processes to end", 20)
