"""The process in which NNI runs the tuner and the assessor, and what it knows of the experiment."""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from ballot.config.schema import Config
from ballot.config.trial_command import command_problems, parse_command
from ballot.engines.nni.database import database_of, read_trials
from ballot.errors import UserError
from ballot.runs.files import replacing
from ballot.training.options import read_options
from ballot.values import Json, Values

log = logging.getLogger(__name__)

MODES = {"maximize": "max", "minimize": "min"}


def mode_of(optimize_mode: str) -> str:
    """Return `max` or `min` for what NNI's configurations call `optimize_mode`."""
    if optimize_mode not in MODES:
        raise ValueError(f"optimize_mode is {optimize_mode!r}; it is maximize or minimize")
    return MODES[optimize_mode]


def experiment_of(argv: Sequence[str]) -> Json:
    """Return the experiment whose tuner this process is, or nothing where it is no such process."""
    if "--exp_params" not in argv[:-1]:
        return {}
    return json.loads(base64.b64decode(argv[argv.index("--exp_params") + 1]))


def code_of(experiment: Values) -> Path:
    """Return the folder of the trials' code."""
    return Path(experiment.get("trialCodeDirectory") or ".")


def config_of(experiment: Values) -> Config | None:
    """Return what a trial of a search does without a tuner; None where its script is not ours."""
    text = experiment.get("trialCommand") or ""
    if not text or command_problems(text, ""):
        return None
    command = parse_command(text, code_of(experiment))
    if command.script < 0:
        return None
    return read_options(command, code_of(experiment), "")[0].config


def begun_of(folder: str | None) -> list[Json] | None:
    """Return the configurations of all trials in the database beside NNI's folder of the tuner.

    None where there is no database.
    """
    experiment = Path(folder or "").resolve().parent
    if not database_of(experiment).exists():
        return None
    return [trial.parameters for trial in read_trials(experiment)]


def log_into_dispatcher() -> None:
    """Let the messages of the tuner and the assessor go where NNI's do: into dispatcher.log."""
    theirs, ours = logging.getLogger("nni"), logging.getLogger("ballot")
    ours.setLevel(theirs.level)
    for handler in theirs.handlers:
        if handler not in ours.handlers:
            ours.addHandler(handler)


def write_state(folder: str | None, name: str, text: str) -> None:
    """Write down what is known in NNI's folder of an experiment, where there is one."""
    if folder is None:
        return
    try:
        with replacing(Path(folder, name)) as file:
            file.write(text)
    except UserError as error:  # a full disk must not end NNI's process
        log.warning("%s", error)


def read_state(folder: str | None, name: str) -> str:
    """Read what was written down; what is not there or not text is a `ValueError`."""
    file = Path(folder or "", name)
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{file}: {os.strerror(error.errno or 0)}") from None
