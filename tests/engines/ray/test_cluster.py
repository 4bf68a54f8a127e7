"""Searches on real Ray nodes on loopback: to their vote, and through the loss of what runs them."""

import json
import subprocess
import sys
import time

import pytest

pytest.importorskip("ray")

from ray_for_tests import ROOT, RealCluster

pytestmark = pytest.mark.slow

CONFIG = """
searchSpace: {{lr: {{_type: loguniform, _value: [0.001, 0.1]}}}}
trialCommand: >-
  python3 -m ballot.preload train.py --resume auto --model simple_cnn --epochs {epochs}
  --no_tensorboard --out_dir {home}/outputs
trialCodeDirectory: {code}
maxTrialNumber: {trials}
trialConcurrency: 2
tuner: {{name: TPE, classArgs: {{optimize_mode: maximize, seed: 1}}}}
trainingService: {{platform: ray, address: "{address}", cpus: 1{more}}}
"""


@pytest.fixture(scope="module")
def cluster():
    cluster = RealCluster()
    try:
        cluster.add_node()
        cluster.add_node()
        yield cluster
    finally:
        cluster.close()


def write_config(cluster, *, epochs, trials, more=""):
    path = cluster.home / f"config-{epochs}-{trials}.yml"
    facts = {"home": cluster.home, "code": ROOT, "address": cluster.address}
    path.write_text(CONFIG.format(epochs=epochs, trials=trials, more=more, **facts))
    return path


def begin(cluster, config, *words):
    """Start a search; return its process and its folder."""
    before = folders(cluster)
    process = cluster.search("--config", config, "--no_probe", "--refit", "no", *words)
    folder = await_(lambda: next(iter(folders(cluster) - before), None), process)
    return process, folder


def folders(cluster):
    return {path.parent for path in (cluster.home / ".ballot" / "ray").glob("*/spec.json")}


def await_(what, process=None, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        ended = process is not None and process.poll() is not None
        assert not ended, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def events(folder):
    path = folder / "trials.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()[:-1] if line]


def scores_of(folder, sequence=0):
    ids = [e["id"] for e in events(folder) if "new" in e and e["new"]["sequence"] == sequence]
    return [e for e in events(folder) if ids and e["id"] == ids[0] and "score" in e]


def finish(process, seconds=300):
    said, _ = process.communicate(timeout=seconds)
    return process.returncode, said


def test_twelve_trials_on_two_nodes_end_with_a_vote_and_everything_home(cluster):
    process, folder = begin(cluster, write_config(cluster, epochs=2, trials=12))
    status, said = finish(process)
    assert status == 0, said
    runs = sorted((cluster.home / "outputs").glob(f"{folder.name}-*/"))
    assert len(runs) == 12
    for run in runs:
        assert json.loads((run / "result.json").read_text())["status"] == "done"
        assert (run / "best.pt").is_file() and (run / "val.csv").is_file()
        assert run.with_name(f"{run.name}.csv").is_file()
    assert (cluster.home / "ensemble" / "submission.csv").is_file()
    assert (cluster.home / "report.html").is_file()
    assert not list((cluster.home / "outputs").glob(".collect"))
    listed, words = finish(cluster.search("--list"))
    assert listed == 0 and f"{folder.name}" in words and "12/12 trials done" in words


def test_a_trial_goes_on_elsewhere_to_the_same_bits_when_its_node_is_killed(cluster):
    process, folder = begin(cluster, write_config(cluster, epochs=40, trials=2))
    await_(lambda: min(len(scores_of(folder, n)) for n in (0, 1)) >= 5, process)
    cluster.kill(cluster.nodes.pop(), "raylet")
    cluster.add_node()
    status, said = finish(process)
    assert status == 0, said
    assert "lost its node; it goes on" in said
    assert "has joined the cluster" in said
    moved = [e["id"] for e in events(folder) if e.get("status") == "running"]
    (again,) = {trial for trial in moved if moved.count(trial) == 2}
    new = next(e["new"] for e in events(folder) if e["id"] == again and "new" in e)
    run = cluster.home / "outputs" / f"{folder.name}-{new['sequence']:03d}-{again}"
    assert "resum" in (run / "run.log").read_text()
    options = ["--epochs", "40", "--lr", str(new["parameters"]["lr"]), "--no_tensorboard"]
    options += ["--out_dir", str(cluster.home / "alone")]
    alone = subprocess.run(
        [sys.executable, "train.py", "--model", "simple_cnn", "--run_name", "alone", *options],
        cwd=ROOT,
        env=cluster.environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert alone.returncode == 0, alone.stderr
    for name in ("val.csv", f"../{run.name}.csv"):
        same = cluster.home / "alone" / "alone" / name.replace(run.name, "alone")
        assert (run / name).read_bytes() == same.read_bytes()


def test_a_search_whose_driver_is_killed_ends_its_trials_and_is_resumed(cluster):
    process, folder = begin(cluster, write_config(cluster, epochs=30, trials=2))
    await_(lambda: len(scores_of(folder)) >= 3, process)
    subprocess.run(["kill", "-9", (folder / "driver.lock").read_text()], check=True)
    status, said = finish(process)
    assert status == 1 and "--resume" in said
    await_(lambda: not trials_running(cluster), seconds=20)
    status, said = finish(cluster.search("--resume", folder.name))
    assert status == 0, said
    assert "2/2 trials done" in said


def test_a_search_outlives_its_terminal_and_is_watched_and_stopped_from_elsewhere(cluster):
    process, folder = begin(cluster, write_config(cluster, epochs=150, trials=2))
    await_(lambda: min(len(scores_of(folder, n)) for n in (0, 1)) >= 2, process)
    process.kill()
    process.communicate()
    process = cluster.search("--resume", folder.name)
    assert "still runs: watching it" in process.stdout.readline()
    process.stdout.readline()  # it watches
    stopped, words = finish(cluster.search("--stop", folder.name))
    assert stopped == 0 and f"--resume {folder.name} goes on with it" in words
    status, said = finish(process)
    assert status == 130 and "vote of 2 members" in said, said
    for run in (cluster.home / "outputs").glob(f"{folder.name}-*/"):
        assert json.loads((run / "result.json").read_text())["status"] == "stopped"
    shown, words = finish(cluster.search("--status", folder.name))
    assert shown == 0 and f"search {folder.name}: stopped" in words


def test_a_trial_whose_worker_is_killed_runs_once_more_on_what_was_kept(cluster):
    process, folder = begin(cluster, write_config(cluster, epochs=40, trials=1))
    await_(lambda: len(scores_of(folder)) >= 5, process)
    for pid in cluster.processes():
        if command_of(pid).startswith("ray::ballot"):
            subprocess.run(["kill", "-9", str(pid)], check=True)
    status, said = finish(process)
    assert status == 0 and "it runs once more" in said, said
    (again,) = [event["again"] for event in events(folder) if "again" in event]
    assert again.startswith("crashed"), again
    run = next((cluster.home / "outputs").glob(f"{folder.name}-*/"))
    assert "resum" in (run / "run.log").read_text()


def trials_running(cluster):
    words = [p for pid in cluster.processes() if (p := command_of(pid)) and "train.py" in p]
    return [p for p in words if "search.py" not in p]


def command_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return ""


def test_the_token_is_in_no_file_and_no_process_list(cluster):
    for path in cluster.home.rglob("*"):
        if path.is_file() and path.name != "auth_token":
            assert cluster.token.encode() not in path.read_bytes(), path
    assert not any(cluster.token in command_of(pid) for pid in cluster.processes())


def test_a_wrong_token_is_refused_in_one_line(cluster):
    config = write_config(cluster, epochs=1, trials=1)
    wrong = {"RAY_AUTH_TOKEN": "0" * 64}
    status, said = finish(cluster.search("--config", config, "--no_probe", **wrong))
    assert status == 2
    assert said.startswith(f"error: ray: the cluster at {cluster.address} does not take")
    assert len(said.splitlines()) == 1


def test_more_than_any_node_has_is_refused(cluster):
    config = write_config(cluster, epochs=1, trials=1, more=", gpus: 4")
    status, said = finish(cluster.search("--config", config, "--no_probe"))
    assert status == 2 and "asks for 4 GPUs, and the most that a node has is 0" in said


def test_a_search_says_that_the_head_is_gone_and_goes_on_on_a_new_cluster(cluster):
    process, folder = begin(cluster, write_config(cluster, epochs=30, trials=2))
    await_(lambda: len(scores_of(folder)) >= 3, process)
    cluster.kill(cluster.head, "gcs_server", "raylet")
    status, said = finish(process)
    assert status == 1
    assert "head of the cluster" in said and f"--resume {folder.name}" in said
    before = [cluster.head, *cluster.nodes]
    cluster.start_head()
    cluster.add_node()
    cluster.nodes += before
    environment = {"RAY_ADDRESS": cluster.address}
    status, said = finish(cluster.search("--resume", folder.name, **environment))
    assert status == 0, said
