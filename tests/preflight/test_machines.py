"""What is wrong with machines: told from their words, and by real ones before a search starts."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ballot.config.schema import Config
from ballot.engines.nni.config import outline
from ballot.engines.nni.machine_check import NniMachineCheck
from ballot.engines.nni.machine_list import NO_KEY, filled_in, machines_of
from ballot.machines.machine import Machine
from ballot.machines.sent import facts
from ballot.machines.ssh import Done, Link
from ballot.preflight.machines import (
    Needs,
    Reach,
    ask,
    command_problems,
    data_problems,
    differences,
    facts_problems,
    leave_out,
    needs_of,
    summary,
    trial_interpreter,
)
from ballot.problems import Problem

ROOT = Path(__file__).resolve().parents[2]
GB = 1_000_000_000
NOW = 1_700_000_000.0
WELL = {
    "python": [3, 12, 1],
    "packages": {
        "nni": "3.0",
        "setuptools": "80.9.0",
        "torch": "2.15.0",
        "torchvision": "0.29",
        "numpy": "2.4",
        "scikit-learn": "1.8",
        "pillow": "12",
    },
    "modules": {"nni_node": True},
    "gpus": [["H200", 140 * GB, 1 * GB]],
    "cuda": True,
    "home": "/home/ann",
    "free": 400 * GB,
    "unwritable": [],
    "missing": [],
    "data": None,
    "time": NOW,
}
CHECK = NniMachineCheck(guarded=True)
NEEDS = Needs("", {"data_dir": "$HOME/d", "init_from": "/w.pt"}, "$HOME/d")


class LinkToHere(Link):
    """A link that runs commands on this machine, as ssh would there."""

    def run(self, command, *, input=b"", timeout=60.0):
        done = subprocess.run(
            command, shell=True, cwd="/", input=input, capture_output=True, timeout=timeout
        )
        return Done(done.returncode, done.stdout, done.stderr)


def test_a_machine_says_its_facts_by_a_program_that_is_sent_to_it(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"image")
    said = ask(
        LinkToHere(Machine("here")),
        sys.executable,
        "pythonPath",
        ["torch", "no-such-package"],
        ["json", "no_such_module"],
        ["/no/such/path", "/"],
        str(tmp_path),
    )
    assert said["python"] == list(sys.version_info[:3]) and said["missing"] == ["/no/such/path"]
    assert said["packages"]["torch"] and said["packages"]["no-such-package"] is None
    assert said["modules"] == {"json": True, "no_such_module": False}
    assert said["data"] == facts.listing_digest(str(tmp_path))


def without(package):
    return {"packages": {**WELL["packages"], package: None}}


def with_version(package, version):
    return {"packages": {**WELL["packages"], package: version}}


@pytest.mark.parametrize(
    ("change", "what", "fatal"),
    [
        ({"python": [3, 9, 0]}, "its Python 3.9 is not one of 3.10 to 3.13", True),
        (without("nni"), "nni is not installed there", True),
        (without("torch"), "torch is not installed there", True),
        (with_version("nni", "2.10"), "nni 2.10 is installed there, 3.0 is needed", True),
        ({"modules": {"nni_node": False}}, "not all of it", True),
        (with_version("setuptools", "81.0"), "NNI needs one before 81", True),
        ({"free": 100_000_000}, "its disk is full: 100 MB are free in /home/ann", True),
        ({"free": 2 * GB}, "only 2.0 GB of disk are free", False),
        ({"unwritable": ["/tmp"]}, "nothing can be written in /tmp", True),
        ({"missing": ["$HOME/d"]}, "data_dir: $HOME/d is not there; --sync_data", True),
        ({"missing": ["/w.pt"]}, "init_from: /w.pt is not there; copy it there", True),
        ({"time": NOW + 3600}, "its clock is 3600 s ahead", False),
        ({"cuda": False}, "has 1 GPU, but its torch 2.15.0 cannot use any", False),
        ({"gpus": [["H200", 140 * GB, 100 * GB]]}, "its GPUs are in use: at most 40.0 GB", False),
    ],
)
def test_each_fault_is_one_line_with_what_to_do(change, what, fatal):
    assert facts_problems("box", WELL, NEEDS, CHECK, NOW) == []
    (problem,) = facts_problems("box", {**WELL, **change}, NEEDS, CHECK, NOW)
    assert problem.where == "box" and what in str(problem) and problem.fatal is fatal
    assert problem.remedy


def test_a_machine_is_summed_up_in_a_line():
    two = {**WELL, "gpus": [["H200", 140 * GB, GB], ["H200", 140 * GB, 0]]}
    said = "box: 2 x H200 (139.0 GB free), 400.0 GB of disk free, Python 3.12, torch 2.15.0"
    assert summary("box", two) == said


def test_other_versions_are_worth_a_word():
    (problem,) = differences({"a": WELL, "b": {**WELL, **with_version("torch", "2.9")}})
    assert "torch: is not the same everywhere (2.15.0 on a, 2.9 on b)" in str(problem)
    assert not problem.fatal


def test_data_are_the_same_by_names_and_sizes_alone(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder / "cats").mkdir(parents=True)
        (tmp_path / folder / "cats" / "ä\n1.png").write_bytes(b"12")
    (tmp_path / "two" / ".DS_Store").touch()
    one, two = (facts.listing_digest(str(tmp_path / name)) for name in ("one", "two"))
    assert one == two and one[:2] == [1, 2]
    (tmp_path / "two" / "cats" / "ä\n1.png").write_bytes(b"123")
    assert facts.listing_digest(str(tmp_path / "two"))[2] != one[2]
    assert facts.listing_digest(str(tmp_path / "three")) is None


def test_the_machine_with_other_data_is_named_and_ours_may_be_others(tmp_path):
    usual, other = [2, 20, "x"], [3, 30, "y"]
    problems = data_problems({"a": usual, "b": other, "c": usual}, "/d", "")
    assert [problem.where for problem in problems] == ["b"] and problems[0].fatal
    assert "3 files (30 bytes) instead of 2 (20)" in problems[0].what
    (tmp_path / "x").touch()
    (note,) = data_problems({"a": usual}, "/d", str(tmp_path))
    assert not note.fatal and str(tmp_path) in note.what
    assert data_problems({"a": usual, "b": None}, "/d", "") == []


@pytest.mark.parametrize(
    ("command", "interpreter"),
    [
        (
            'exec "$HOME/.ballot/venv/bin/python" -m ballot.preload train.py',
            "$HOME/.ballot/venv/bin/python",
        ),
        ("A=1 exec /v/bin/python3.12 train.py", "/v/bin/python3.12"),
        ("python3 train.py", "python3"),
        ("./run.sh", ""),
    ],
)
def test_the_trials_interpreter_stands_in_the_command(command, interpreter):
    assert trial_interpreter(command) == interpreter


def test_paths_of_the_machines_are_told_from_those_that_are_sent():
    command = "python3 train.py --data_dir $HOME/d --init_from weights.pt"
    needs = needs_of(command, Config(data_dir="/root/d", init_from="weights.pt"))
    assert needs.paths == {"data_dir": "$HOME/d"} and needs.data == "$HOME/d"


def test_files_that_do_not_reach_the_machines_are_told_from_those_that_do(tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    (code / "in.csv").touch()
    (tmp_path / "out.csv").touch()
    draft = SimpleNamespace(
        outline=SimpleNamespace(code=code, command="python3 train.py"),
        machine_check=SimpleNamespace(ignore_file=".nniignore"),
        uploaded=lambda: ["in.csv"],
    )
    assert (
        command_problems(draft, Config(exclude="in.csv", soft_labels="/there/soft.csv"), "c") == []
    )
    for key in ("exclude", "soft_labels"):
        (problem,) = command_problems(draft, Config(**{key: "../out.csv"}), "c")
        assert str(problem) == (
            f"c: {key}: ../out.csv is outside {code}, which is all that is sent to the machines; "
            f"give its place there, as in --{key} $HOME/out.csv"
        )
    needs = needs_of("python3 train.py", Config(soft_labels="/there/soft.csv"))
    assert needs.paths == {"soft_labels": "/there/soft.csv"}  # is looked for on each machine


def test_bad_machines_are_left_out_only_where_that_is_wanted_and_others_remain():
    machines = [Machine("a"), Machine("b")]
    link = SimpleNamespace(name="a", close=lambda: None)
    taken_out = []
    draft = SimpleNamespace(leave_out=taken_out.extend)
    bad = [Problem("b", "is away", "fetch it"), Problem("search.yml", "odd", fatal=False)]
    assert leave_out(draft, Reach(machines, [link]), bad) == bad
    found = Reach(machines, [link], skip_bad=True)
    kept = leave_out(draft, found, bad)
    assert [str(p) for p in kept] == ["b: is away; it is left out", "search.yml: odd"]
    assert not any(p.fatal for p in kept)
    assert taken_out == [1] and found.links == [link]
    both = [Problem("a", "x"), Problem("b", "x")]
    assert leave_out(draft, found, both) == both


@pytest.mark.parametrize("old", [False, True])
def test_nni_is_given_a_file_and_a_user_where_a_machine_needs_none(old, tmp_path):
    (tmp_path / "key").touch()
    names = ("ip", "sshKeyPath") if old else ("host", "sshKeyFile")
    entries = [{names[0]: "a"}, {names[0]: "b", names[1]: "key"}, {names[0]: "c", names[1]: "gone"}]
    content = {"machineList": entries} if old else {"trainingService": {"machineList": entries}}
    filled = filled_in(content, tmp_path)
    entries = (filled if old else filled["trainingService"])["machineList"]
    assert [entry[names[1]] for entry in entries] == [NO_KEY, "key", NO_KEY]
    assert all(entry["username" if old else "user"] for entry in entries)
    assert machines_of(filled, tmp_path)[0].key_file is None


def test_the_shipped_form_is_understood():
    path = ROOT / "config_remote.yml"
    content = yaml.safe_load(path.read_text())
    told, problems = outline(content, path)
    assert problems == [] and told.platform == "remote"
    machines = machines_of(content, ROOT)
    assert len(machines) == 2
    assert {m.interpreter for m in machines} == {"$HOME/.ballot/venv/bin/python3"}
    trials = trial_interpreter(told.command)
    assert Path(trials).parent == Path(machines[0].interpreter).parent


# ---------------------------------------------------------------- real machines


@pytest.fixture
def check(lab, tmp_path):
    """Check a search of both boxes as a user does: `check("--skip_bad_machines", options=...)`."""

    def start(*words, options="", service=None, **changes):
        config = yaml.safe_load((ROOT / "config_local.yml").read_text()) | {
            "trialCommand": f"exec {sys.executable} train.py --resume auto {options}",
            "trialCodeDirectory": str(ROOT),
            "searchSpaceFile": str(ROOT / "search_space.json"),
            "trainingService": {
                "platform": "remote",
                "machineList": [{**box.entry(), **changes} for box in lab.boxes],
            },
        }
        for algorithm in (config["tuner"], config["assessor"]):
            algorithm["codeDirectory"] = str(ROOT)
        (tmp_path / "search.yml").write_text(yaml.safe_dump(service or config))
        return subprocess.run(
            [
                sys.executable,
                ROOT / "search.py",
                "--config",
                tmp_path / "search.yml",
                "--check",
                "--port",
                "9460",
                "--ssh_config",
                lab.ssh_config,
                *words,
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )

    return start


@pytest.mark.slow
def test_machines_that_are_well_are_shown(check, lab):
    done = check()
    assert done.returncode == 0 and "configuration OK" in done.stdout
    for box in lab.boxes:
        assert f"{box.address}: no GPU, " in done.stdout
        assert box.listening() == {"0.0.0.0:22", "[::]:22"}, "the tunnel of the check is gone"


@pytest.mark.slow
def test_a_file_for_old_versions_of_nni_is_checked_alike(check, lab):
    old = {
        "authorName": "ann",
        "experimentName": "old",
        "trialConcurrency": 2,
        "maxTrialNum": 4,
        "maxExecDuration": "1h",
        "trainingServicePlatform": "remote",
        "useAnnotation": False,
        "searchSpacePath": str(ROOT / "search_space.json"),
        "tuner": {"builtinTunerName": "TPE", "classArgs": {"optimize_mode": "maximize"}},
        "trial": {"command": f"exec {sys.executable} train.py", "codeDir": str(ROOT)},
        "machineList": [
            {
                "ip": box.address,
                "username": "ann",
                "sshKeyPath": str(lab.key),
                "pythonPath": str(Path(sys.executable).parent),
            }
            for box in lab.boxes
        ],
    }
    done = check(service=old)
    assert done.returncode == 0, done.stderr
    assert f"{lab.boxes[1].address}: no GPU, " in done.stdout


@pytest.mark.slow
def test_an_alias_of_ssh_config_is_enough(check, lab, tmp_path):
    lab.configure(
        "".join(
            f"Host {box.name}\n HostName {box.address}\n User ann\n IdentityFile {lab.key}\n"
            for box in lab.boxes
        )
    )
    assert check().returncode == 0
    config = yaml.safe_load((tmp_path / "search.yml").read_text())
    python = {"pythonPath": str(Path(sys.executable).parent)}
    config["trainingService"]["machineList"] = [{"host": b.name, **python} for b in lab.boxes]
    done = check(service=config)
    lab.configure()
    assert done.returncode == 0, done.stderr
    assert "box2: no GPU, " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sshKeyFile": "wrong"}, "login failed for ann with"),
        ({"sshKeyFile": "/none"}, "its key file /none is not there"),
        ({"pythonPath": "/usr/bin"}, "nni is not installed there"),
        ({"pythonPath": "~/x"}, "there is no interpreter ~/x/python3, which pythonPath names"),
        ({"options": "--data_dir $HOME/data/x"}, "data_dir: $HOME/data/x is not there"),
    ],
)
def test_what_is_wrong_is_named_for_each_machine_before_anything_starts(check, lab, changes, said):
    if changes.get("sshKeyFile") == "wrong":
        changes = {"sshKeyFile": str(lab.wrong_key)}
    done = check(**changes)
    assert done.returncode == 2
    text = " ".join(done.stderr.split())
    for box in lab.boxes:
        assert f"{box.address}: {said}" in text
    assert not any((box.home / "nni-experiments").exists() for box in lab.boxes)


@pytest.mark.slow
def test_unknown_host_keys_are_shown_then_accepted_when_that_is_said(check, lab):
    lab.known_hosts.write_text("")
    done = check()
    assert done.returncode == 2 and done.stderr.count("SHA256:") == 2
    done = check("--accept_new_host_keys")
    assert done.returncode == 0 and done.stdout.count("is now known") == 2
    assert check().returncode == 0


@pytest.mark.slow
def test_a_full_disk_and_other_data_are_named(check, lab):
    one, two = lab.boxes
    for box, content in ((one, b"12"), (two, b"123")):
        (box.home / "d").mkdir()
        (box.home / "d" / "a.png").write_bytes(content)
    done = check(options="--data_dir ~/d")
    assert f"{two.address}: the data in ~/d are not those of {one.address}" in done.stderr
    with (one.home / "full").open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 20))
        except OSError:
            pass
    done = check()
    assert f"{one.address}: its disk is full" in " ".join(done.stderr.split())
    (one.home / "full").unlink()


@pytest.mark.slow
def test_a_machine_that_is_off_can_be_left_out(check, lab):
    one = lab.boxes[0]
    one.kill_all()
    assert f"{one.address}: refuses connections on port 22" in check().stderr
    done = check("--skip_bad_machines")
    assert done.returncode == 0 and "it is left out" in " ".join(done.stdout.split())
    one.start_sshd()


@pytest.mark.slow
def test_a_forbidden_tunnel_a_missing_sftp_and_a_talking_shell_are_named(check, lab):
    box = lab.boxes[0]
    settings = (box.folder / "sshd_config").read_text()
    lines = [line for line in settings.splitlines() if not line.startswith("Subsystem")]
    (box.folder / "sshd_config").write_text("\n".join([*lines, "AllowTcpForwarding no\n"]))
    box.kill_all()
    box.start_sshd()
    said = " ".join(check("--no_guard").stderr.split())
    program = "/usr/lib/openssh/sftp-server"  # which a shell starts
    (box.folder / "sshd_config").write_text(settings.replace("internal-sftp", program))
    box.kill_all()
    box.start_sshd()
    assert "its sshd leads no port back to this machine" in said
    assert "has no sftp, through which NNI sends the code" in said
    (box.home / ".bashrc").write_text("echo Welcome to the machine\n")
    began = time.monotonic()
    done = check()
    assert done.returncode == 0 and time.monotonic() - began < 60
    assert "its login shell prints 'Welcome'" in " ".join(done.stdout.split())
    (box.home / ".bashrc").unlink()
