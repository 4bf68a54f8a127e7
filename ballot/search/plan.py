"""What a search starts with, the first time and again: its plan, and its manager's environment."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ballot.config.trial_command import out_dir_of
from ballot.cpus import threads_each
from ballot.engines.nni import manager, remote
from ballot.engines.nni.algorithms import OURS
from ballot.engines.nni.config import seconds_of
from ballot.engines.nni.experiment import Search
from ballot.machines.ssh import Link


def manager_environment(plan: Plan, *, guarded: bool, public: bool) -> dict[str, str]:
    """Return what NNI's manager, and with it every trial, has in its environment."""
    extra = manager.environment(public) if guarded else {}
    elsewhere = remote.environment(plan.links, plan.concurrency, plan.command, plan.outputs)
    return threads_for(plan.concurrency) | extra | elsewhere


def threads_for(concurrency: int) -> dict[str, str]:
    """Divide the cores among the trials: more threads than cores slow all of them down."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(threads_each(concurrency))}


def resumed_plan(search: Search, params: dict[str, Any]) -> Plan:
    """Return the plan of a search as NNI's database has it."""
    limit = params.get("maxExperimentDuration")
    command, away = params["trialCommand"], is_elsewhere(params)
    return Plan(
        None,
        command,
        outputs_of(command, params["trialCodeDirectory"], elsewhere=away),
        params.get("maxTrialNumber"),
        seconds_of(limit, "NNI") if limit else None,
        params["trialConcurrency"],
        is_maximized(params),
        away or bool(params.get("trialGpuNumber")),
        remote.links_again(search, params) if away else (),
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """A search that has been checked and can start."""

    config: Any  # nni.experiment.config.ExperimentConfig; None where NNI's database has it
    command: str
    outputs: Path
    max_trials: int | None
    max_seconds: float | None
    concurrency: int
    maximize: bool
    may_wait: bool = False  # trials may wait for a GPU or a machine
    links: Sequence[Link] = ()  # to other machines, where the trials run
    halted: frozenset[str] = frozenset()  # ids of trials that NNI has as running, and that do not

    @property
    def page(self) -> Path:
        """Where the report of the search stands: beside its outputs."""
        return self.outputs.parent / "report.html"


def outputs_of(command: str, code: str | Path, *, elsewhere: bool = False) -> Path:
    """Return the folder here that the runs of a command's trials come into.

    What trials `elsewhere` name as theirs, with $HOME or another absolute path, has its last part.
    """
    wanted = Path(out_dir_of(command, Path(code)))
    if elsewhere and (wanted.is_absolute() or str(wanted).startswith(("~", "$"))):
        wanted = Path(wanted.name)
    return Path(code, wanted).absolute()


def is_elsewhere(params: Mapping[str, Any]) -> bool:
    """Whether a search's trials run on other machines."""
    service = params.get("trainingService")
    return isinstance(service, Mapping) and str(service.get("platform")).startswith("remote")


def is_maximized(params: Mapping[str, Any]) -> bool:
    """Return which way the tuner of a search goes; NNI takes minimize where nothing is said."""
    tuner = params.get("tuner") or {}
    usual = "maximize" if tuner.get("className") in OURS else "minimize"
    return (tuner.get("classArgs") or {}).get("optimize_mode", usual) == "maximize"
