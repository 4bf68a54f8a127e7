"""NNI's record of a search's configuration: read as a plan, and written for the next manager."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from ballot.config.out_dir import outputs_of
from ballot.engines.interface import Plan
from ballot.engines.nni.algorithms import OURS
from ballot.engines.nni.database import database_of, query_database
from ballot.errors import UserError
from ballot.values import Json, Values
from ballot.wording import seconds_of


def read_profile(folder: Path) -> tuple[Json, float]:
    """Return NNI's configuration of a search as it stands, and the seconds it has run."""
    query = "SELECT params, execDuration FROM ExperimentProfile ORDER BY revision DESC LIMIT 1"
    for params, seconds in query_database(database_of(folder), query):
        with contextlib.suppress(ValueError, TypeError):  # a database that was cut
            known = json.loads(params)
            if isinstance(known, dict):
                return known, float(seconds or 0)
    raise UserError(f"{folder}: holds no search that can be read")


def write_profile(folder: Path, params: Values) -> None:
    """Write a configuration for the next manager, while none runs."""
    with contextlib.closing(sqlite3.connect(database_of(folder), timeout=10)) as db, db:
        db.execute(
            "UPDATE ExperimentProfile SET params = ? WHERE revision = "
            "(SELECT MAX(revision) FROM ExperimentProfile)",
            (json.dumps(params),),
        )


def plan_of(params: Values, search_id: str) -> Plan:
    """Return the plan of a search as its record has it; links to machines are not opened."""
    try:
        command, code = params["trialCommand"], Path(params["trialCodeDirectory"])
        concurrency = params["trialConcurrency"]
    except KeyError as error:
        raise UserError(f"search {search_id}: its record lacks {error.args[0]}") from None
    if " -m harness." in command or "harness." in str(params.get("tuner")):
        raise UserError(
            f"search {search_id}: was started by an older version, which this one cannot go on "
            "with; start a new search, with --warm_start OUTPUTS to learn from its trials"
        )
    limit, elsewhere = params.get("maxExperimentDuration"), is_elsewhere(params)
    return Plan(
        settings=None,
        command=command,
        code=code,
        outputs=outputs_of(command, code, elsewhere=elsewhere),
        max_trials=params.get("maxTrialNumber"),
        max_seconds=seconds_of(limit, "NNI") if limit else None,
        concurrency=concurrency,
        maximize=is_maximized(params),
        may_wait=elsewhere or bool(params.get("trialGpuNumber")),
        elsewhere=elsewhere,
    )


def with_plan(params: Values, plan: Plan) -> Json:
    """Return a record with the limits and the command of a plan."""
    seconds = None if plan.max_seconds is None else f"{plan.max_seconds:g}s"
    changed = {
        **params,
        "trialCommand": plan.command,
        "maxTrialNumber": plan.max_trials,
        "maxExperimentDuration": seconds,
        "trialConcurrency": plan.concurrency,
    }
    service = params.get("trainingService")
    if isinstance(service, Mapping):  # which has a copy of the command
        changed["trainingService"] = {**service, "trialCommand": plan.command}
    return {key: value for key, value in changed.items() if value is not None}


def is_elsewhere(params: Values) -> bool:
    """Whether a search's trials run on other machines."""
    service = params.get("trainingService")
    return isinstance(service, Mapping) and str(service.get("platform")).startswith("remote")


def is_maximized(params: Values) -> bool:
    """Return which way the tuner of a search goes; NNI takes minimize where nothing is said."""
    tuner = params.get("tuner") or {}
    usual = "maximize" if tuner.get("className") in OURS else "minimize"
    return (tuner.get("classArgs") or {}).get("optimize_mode", usual) == "maximize"


def with_time(plan: Plan, seconds: float | None) -> Plan:
    """Return a plan with another limit of its time."""
    return dataclasses.replace(plan, max_seconds=seconds)
