"""Searches on real Ray nodes on loopback: to their vote, and through the loss of what runs them."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray")

from ray_for_tests import ROOT, RealCluster, command_of

from ballot.engines.ray import data
from ballot.engines.ray.control import news_after

pytestmark = pytest.mark.slow

CONFIG = """
searchSpace: {{lr: {{_type: loguniform, _value: [0.001, 0.1]}}}}
trialCommand: >-
  python3 -m ballot.preload train.py --resume auto --model simple_cnn --epochs {epochs}
  --no_tensorboard --out_dir {home}/outputs {options}
trialCodeDirectory: {code}
maxTrialNumber: {trials}
trialConcurrency: 2
tuner: {{name: TPE, classArgs: {{optimize_mode: maximize, seed: 1}}}}
trainingService: {{platform: ray, address: "{address}", cpus: {cpus}{more}}}
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


@pytest.fixture(autouse=True)
def ended(cluster):
    """End what a test that failed has left running: the next one needs the nodes."""
    yield
    cluster.end("search.py", "ballot.engines.ray.driver")


def write_config(cluster, *, epochs, trials, cpus=1, more="", options=""):
    path = cluster.home / f"config-{epochs}-{trials}.yml"
    facts = {"home": cluster.home, "code": ROOT, "address": cluster.address}
    path.write_text(
        CONFIG.format(epochs=epochs, trials=trials, cpus=cpus, more=more, options=options, **facts)
    )
    return path


def begin(cluster, config, *words):
    """Start a search; return its process and its folder."""
    before = folders(cluster)
    process = cluster.search("--config", config, "--no_probe", "--refit", "no", *words)
    folder = await_(lambda: next(iter(folders(cluster) - before), None), process)
    return process, folder


def folders(cluster):
    return {path.parent for path in (cluster.home / ".ballot" / "ray").glob("*/spec.json")}


def await_(what, process=None, seconds=240):
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
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines() if line]


def scores_of(folder, sequence=0):
    ids = [e["id"] for e in events(folder) if "new" in e and e["new"]["sequence"] == sequence]
    return [e for e in events(folder) if ids and e["id"] == ids[0] and "score" in e]


def finish(process, seconds=600):
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
    young = await_(lambda: [n for n in (0, 1) if 5 <= len(scores_of(folder, n)) < 20], process)[0]
    node = cluster.node_of(f"ballot {folder.name} {young}")
    cluster.kill(node, "raylet")
    cluster.nodes.remove(node)
    status, said = finish(process)
    assert status == 0, said
    assert "lost its node; it goes on" in said
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


def test_a_node_that_joins_is_used_and_a_search_outlives_its_terminal(cluster):
    process, folder = begin(cluster, write_config(cluster, epochs=9999, trials=2))
    await_(lambda: scores_of(folder), process)
    cluster.add_node()  # in place of the one that was killed
    await_(lambda: min(len(scores_of(folder, n)) for n in (0, 1)) >= 2, process)
    await_(lambda: "has joined the cluster" in str(news_after(folder, 0)), process)
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


def test_ctrl_c_and_limits_mean_the_same_on_data_that_only_this_machine_has(cluster):
    rng = np.random.default_rng(0)
    for number in range(40):
        path = cluster.home / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    options = "--data_dir /nowhere/photos --image_size 32 --recipe none"
    config = write_config(cluster, epochs=9999, trials=50, options=options)
    limits = ["--trial_timeout", "2s", "--keep_checkpoints", "1"]
    process, folder = begin(cluster, config, "--sync_data", cluster.home / "photos", *limits)
    outputs = cluster.home / "outputs"

    def kept():
        return [p for p in outputs.glob(f"{folder.name}-00[01]-*/best.pt")]

    await_(lambda: len(scores_of(folder, 3)) >= 2 and len(kept()) < 2, process)
    process.send_signal(signal.SIGINT)
    status, said = finish(process)
    assert status == 130 and f"--resume {folder.name}" in said and "vote of" in said, said
    assert said.count("are copied to") == 1  # two nodes of one machine have it once
    ids = {e["new"]["sequence"]: e["id"] for e in events(folder) if "new" in e}
    states = {e["id"]: e["status"] for e in events(folder) if "status" in e}
    assert [states[ids[number]] for number in (0, 1)] == ["succeeded"] * 2
    assert "waiting" in states.values()
    assert not data.place_of(folder.name).exists()


def test_a_trial_whose_worker_is_killed_runs_once_more_on_what_was_kept(cluster):
    process, folder = begin(cluster, write_config(cluster, epochs=40, trials=1))
    await_(lambda: len(scores_of(folder)) >= 5, process)
    for pid in cluster.processes():
        if command_of(pid)[0].startswith("ray::ballot"):
            subprocess.run(["kill", "-9", str(pid)], check=True)
    status, said = finish(process)
    assert status == 0 and "it runs once more" in said, said
    (again,) = [event["again"] for event in events(folder) if "again" in event]
    assert again.startswith("crashed"), again
    run = next((cluster.home / "outputs").glob(f"{folder.name}-*/"))
    assert "resum" in (run / "run.log").read_text()


def test_a_trial_that_is_out_of_memory_fails_and_is_not_tried_for_ever(cluster):
    full = cluster.add_node(
        2, RAY_memory_usage_threshold="0.01", RAY_memory_monitor_refresh_ms="99"
    )
    process, folder = begin(cluster, write_config(cluster, epochs=9999, trials=1, cpus=2))
    status, said = finish(process)
    full.terminate()  # other trials are not to go there
    cluster.nodes.remove(full)
    assert status == 1, said
    assert "failed: 1 worker(s) were killed due to the node running low on memory" in said, said
    assert len([event for event in events(folder) if "again" in event]) == 1
    assert events(folder)[-1]["status"] == "failed"


def trials_running(cluster):
    commands = [command_of(pid) for pid in cluster.processes()]
    return [words for words in commands if "train.py" in words and "search.py" not in words]


def test_the_token_is_in_no_file_and_no_process_list(cluster):
    for path in cluster.home.rglob("*"):
        if path.is_file() and path.name != "auth_token":
            assert cluster.token.encode() not in path.read_bytes(), path
    commands = [" ".join(command_of(pid)) for pid in cluster.processes()]
    assert not any(cluster.token in command for command in commands)


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
    cluster.start_head()
    cluster.add_node()
    environment = {"RAY_ADDRESS": cluster.address}
    status, said = finish(cluster.search("--resume", folder.name, **environment))
    assert status == 0, said
