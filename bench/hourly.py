"""Trials an hour of a search against the same trials as plain processes that NNI starts.

    python bench/run.py [--full] hourly

Both are searches of NNI over photos made here, two trials at once, the same network and epochs.
Ours forks each trial from a preloaded process, divides the threads and maps the cache; plain
decodes in each trial and leaves the threads to PyTorch, which takes every core for each.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from data import make_images  # noqa: E402 - beside this file

from ballot.cpus import count_cores  # noqa: E402 - the repository is no installed package
from ballot.engines.nni.database import read_trials  # noqa: E402

AT_ONCE, TRIALS = 2, 4


def trials_an_hour(home: Path, photos: Path, plain: bool, epochs: int, port: int) -> float:
    """Search, and return the rate from the first trial's start to the last one's end."""
    home.mkdir(parents=True)
    space = {"lr": {"_type": "uniform", "_value": [0.001, 0.002]}}
    (home / "search_space.json").write_text(json.dumps(space))
    words = (
        f"train.py --data_dir {photos} --model simple_cnn --image_size 64 --epochs {epochs} "
        f"--no_tensorboard --resume auto --out_dir {home}/outputs --cache "
    )
    config = {
        "searchSpaceFile": "search_space.json",
        "trialCodeDirectory": str(ROOT),
        "experimentWorkingDirectory": str(home / "nni"),
        "maxTrialNumber": TRIALS,
        "trialConcurrency": AT_ONCE,
        "tuner": {"name": "Random"},
        "trainingService": {"platform": "local"},
        "trialCommand": f"python3 {words}off"
        if plain
        else f"python3 -m ballot.preload {words}{home.parent}/cache",
    }
    (home / "config.yml").write_text(yaml.safe_dump(config))
    environment = {**os.environ, "HOME": str(home), "BALLOT_PRELOAD": "30"}
    if plain:
        environment["OMP_NUM_THREADS"] = str(count_cores())
    search = [
        sys.executable,
        str(ROOT / "search.py"),
        "--config",
        "config.yml",
        "--no_probe",
        "--port",
        str(port),
    ]
    subprocess.run(search, cwd=home, env=environment, check=True, stdout=sys.stderr, timeout=1800)
    ended = [trial for trial in read_trials((home / "nni" / "_latest").resolve()) if trial.ended]
    seconds = max(trial.ended for trial in ended) - min(trial.started for trial in ended)
    return len(ended) * 3600 / seconds


def measure(full: bool, port: int = 9380) -> list[dict[str, Any]]:
    """Run both in turns; a ratio above 1 says that ours does more."""
    found: dict[bool, list[float]] = {False: [], True: []}
    photos, epochs, rounds = (1500, 10, 3) if full else (600, 5, 1)
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder, "photos", "train"), photos)
        for photo in sorted(Path(folder, "photos", "train").rglob("*00.jpg")):
            held = photo.parents[2] / "test" / photo.parent.name
            held.mkdir(parents=True, exist_ok=True)
            photo.rename(held / photo.name)
        for number in range(rounds):
            for plain in (True, False) if number % 2 else (False, True):
                home = Path(folder, f"{number}{plain}")
                rate = trials_an_hour(home, Path(folder, "photos"), plain, epochs, port)
                found[plain].append(rate)
    ratios = [own / other for own, other in zip(found[False], found[True])]
    minutes = AT_ONCE * 60 / statistics.median(found[True])
    what = f"trials an hour, {AT_ONCE} at once, plain ones of {minutes:.1f} minutes"
    return [
        {
            "what": what,
            "ours": statistics.median(found[False]),
            "other": statistics.median(found[True]),
            "ratio": statistics.median(ratios),
            "spread": (min(ratios), max(ratios)),
        }
    ]
