"""A search that search.py has planned, written as a configuration of NNI."""

from __future__ import annotations

from pathlib import Path

import yaml

from ballot.engines.interface import Sketch
from ballot.engines.nni.algorithms import ASSESSOR, TUNER
from ballot.runs.files import replacing
from ballot.values import Json

MIN_TRIALS = 4  # that have come as far, before one that is behind is stopped


def write_config(path: Path, sketch: Sketch) -> None:
    """Write a configuration as a person would write it."""
    mode = "maximize" if sketch.maximize else "minimize"
    ours = {"codeDirectory": str(sketch.code)}
    config: Json = {
        "experimentName": sketch.name,
        "searchSpaceFile": sketch.space_file,
        "trialCommand": sketch.command,
        "trialCodeDirectory": str(sketch.code),
        "maxExperimentDuration": f"{sketch.max_seconds:g}s",
        "trialConcurrency": sketch.concurrency,
        "tuner": {
            "className": TUNER,
            **ours,
            "classArgs": {"optimize_mode": mode, "defaults": False, "first": list(sketch.first)},
        },
        "trainingService": {"platform": "local"},
    }
    if sketch.max_trials:
        config["maxTrialNumber"] = sketch.max_trials
    if sketch.stops_early:
        config["assessor"] = {
            "className": ASSESSOR,
            **ours,
            "classArgs": {"optimize_mode": mode, "min_trials": MIN_TRIALS},
        }
    with replacing(path) as file:
        file.write(f"# python search.py --config {path}\n")
        yaml.safe_dump(config, file, sort_keys=False, width=100)
