"""Real searches in a home of their own, for several test files."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
SPACE = {
    "lr": {"_type": "loguniform", "_value": [0.002, 0.01]},
    "optimizer": {
        "_type": "choice",
        "_value": [
            {"_name": "AdamW"},
            {"_name": "SGD", "momentum": {"_type": "uniform", "_value": [0.8, 0.95]}},
        ],
    },
}


@contextlib.contextmanager
def home_of_its_own(folder):
    """A home for NNI's list of experiments, a configuration in it, and no process left behind."""
    (folder / "search_space.json").write_text(json.dumps(SPACE))
    write_config(folder)
    try:
        yield folder
    finally:
        for process in managers_and_trials(folder):
            process.kill()


def write_config(home, epochs=2, **more):
    config = {
        "experimentName": "test",
        "searchSpaceFile": "search_space.json",
        "trialCommand": f"python3 -m ballot.preload train.py --resume auto --epochs {epochs} "
        f"--out_dir {home}/outputs --no_tensorboard",
        "trialCodeDirectory": str(ROOT),
        "experimentWorkingDirectory": str(home / "nni"),
        "maxTrialNumber": 3,
        "trialConcurrency": 2,
        "tuner": {"name": "TPE", "classArgs": {"optimize_mode": "maximize"}},
        "trainingService": {"platform": "local"},
        **more,
    }
    (home / "config.yml").write_text(yaml.safe_dump(config))


def managers_and_trials(home):
    """Every process that works in or for this home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == str(home) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def environment(home):
    # HOME keeps NNI's list of experiments apart; PATH is that of an activated environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # All of these trials are forked from one process, which ends soon after the last one.
    return {**os.environ, "HOME": str(home), "PATH": path, "BALLOT_PRELOAD": "60"}


def search(home, *words):
    return subprocess.Popen(
        [sys.executable, ROOT / "search.py", "--port", "18200", *map(str, words)],
        cwd=home,
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def only_experiment(home):
    return (home / "nni" / "_latest").resolve()


def results(home):
    """What each run says of itself, by its folder."""
    return {p.parent: json.loads(p.read_text()) for p in sorted(home.glob("outputs/*/result.json"))}


def wait_for(reached, what, seconds=120):
    """Wait until something holds; fail where it does not in time."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def wait_for_epochs(home, runs, epochs):
    """Wait until so many runs have so many epochs."""

    def reached():
        return sum(result["epochs"] >= epochs for result in results(home).values()) >= runs

    wait_for(reached, f"{epochs} epochs of {runs} runs")


def process_of(home, *words):
    """The processes of this home whose command has all these words."""
    found = []
    for process in managers_and_trials(home):
        with contextlib.suppress(psutil.Error):  # it has just ended
            command = process.cmdline()
            if all(any(word in each for each in command) for word in words):
                found.append(process)
    return found
