"""What a search starts with, the first time and again: its plan, and its manager's environment."""

from __future__ import annotations

import os
from typing import Any

from harness import experiment, overview, remote
from harness.cores import threads_each
from harness.follow import Plan
from harness.nni_config import seconds_of
from harness.searches import Search


def manager_environment(plan: Plan, *, guarded: bool, public: bool) -> dict[str, str]:
    """Return what NNI's manager, and with it every trial, has in its environment."""
    extra = experiment.environment(public) if guarded else {}
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
    command, away = params["trialCommand"], overview.is_elsewhere(params)
    return Plan(None, command,
                overview.outputs_of(command, params["trialCodeDirectory"], elsewhere=away),
                params.get("maxTrialNumber"), seconds_of(limit, "NNI") if limit else None,
                params["trialConcurrency"], overview.is_maximized(params),
                away or bool(params.get("trialGpuNumber")),
                remote.links_again(search, params) if away else ())  # fmt: skip
