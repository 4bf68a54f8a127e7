"""A search that search.py has planned, written as a configuration: its keys are any engine's."""

from __future__ import annotations

from pathlib import Path

import yaml

from ballot.engines.interface import Sketch
from ballot.runs.files import replacing
from ballot.values import Json, Values

MIN_TRIALS = 4  # that have come as far, before one that is behind is stopped


def write_planned(
    path: Path, sketch: Sketch, *, tuner: Values, assessor: Values, service: Values
) -> None:
    """Write a configuration as a person would write it.

    `tuner` and `assessor` say how the engine names them, `service` where the trials run.
    """
    mode = "maximize" if sketch.maximize else "minimize"
    first = {"optimize_mode": mode, "defaults": False, "first": list(sketch.first)}
    config: Json = {
        "experimentName": sketch.name,
        "searchSpaceFile": sketch.space_file,
        "trialCommand": sketch.command,
        "trialCodeDirectory": str(sketch.code),
        "maxExperimentDuration": f"{sketch.max_seconds:g}s",
        "trialConcurrency": sketch.concurrency,
        "tuner": {**tuner, "classArgs": first},
        "trainingService": dict(service),
    }
    if sketch.max_trials:
        config["maxTrialNumber"] = sketch.max_trials
    if sketch.stops_early:
        stops = {"optimize_mode": mode, "min_trials": MIN_TRIALS}
        config["assessor"] = {**assessor, "classArgs": stops}
    with replacing(path) as file:
        file.write(f"# python search.py --config {path}\n")
        yaml.safe_dump(config, file, sort_keys=False, width=100)
