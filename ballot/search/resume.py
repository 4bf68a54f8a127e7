"""Going on with a search: what is to be done is decided first, and then done by search.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ballot.engines.interface import Limits, Plan, SearchState
from ballot.errors import UserError
from ballot.runs.trials import TrialRecord, is_posted
from ballot.search.time_budget import BEGIN_S, Budget, time_before
from ballot.values import Values

NO_CHANGE = Limits()


@dataclass(frozen=True)
class Record:
    """What is known of a search that is to go on."""

    plan: Plan
    note: Values
    trials: Sequence[TrialRecord]
    state: SearchState
    is_running: bool
    seconds_counted: float  # by its engine


@dataclass(frozen=True)
class Decision:
    """What is to be done with a search.

    watch: it runs, and is told of new limits; complete: nothing is left to do but the vote;
    restart: what is left of it is stopped, and its engine is started again.
    """

    action: Literal["watch", "complete", "restart"]
    plan: Plan
    budget: Budget
    limits: Limits = NO_CHANGE  # that a search that runs is to be told
    counts: Mapping[str, int] = field(default_factory=dict)  # to be noted
    more: str = ""  # the option that would let a complete search go on


def decide(record: Record, limits: Limits, began: float) -> Decision:
    """Decide how a search goes on; `began` is when the command was typed."""
    limits, counts = _counted(record, limits)
    plan = changed(record.plan, limits)
    before = time_before(record.note, record.seconds_counted, runs=record.is_running, now=began)
    budget = Budget(plan.max_seconds, began - before, away=plan.elsewhere)
    state = record.state
    if (state == "running" and not limits.changes_command) or (
        state in ("all_started", "exhausted") and not limits
    ):
        return Decision("watch", plan, budget, limits, counts)
    ended = sum(trial.has_ended for trial in record.trials)
    enough = plan.max_trials is not None and ended >= plan.max_trials
    late = budget.left_for_trials(began) <= BEGIN_S or budget.is_too_late(
        record.trials, began + BEGIN_S
    )
    if (enough or late) and state in ("gone", "done"):
        more = "--max_trials" if enough else "--max_duration"
        return Decision("complete", plan, budget, more=more)
    return Decision("restart", plan, budget, limits, counts)


def changed(plan: Plan, limits: Limits) -> Plan:
    """Return a plan with the limits of a command line."""
    values = {
        name: value
        for name in ("max_trials", "max_seconds", "concurrency")
        if (value := getattr(limits, name)) is not None
    }
    return dataclasses.replace(plan, command=limits.command(plan.command), **values)


def _counted(record: Record, limits: Limits) -> tuple[Limits, dict[str, int]]:
    """Raise the number of trials by those that the engine counts and that are not the search's.

    Trials that search.py posted come on top: configurations that are trained again, or further. So
    do those that crashed at their start, whose cause has been removed, or the search would not be
    resumed.
    """
    trials, note = record.trials, record.note
    finals = sum(map(is_posted, trials))
    if limits.max_trials is not None:
        if limits.max_trials < len(trials) - finals:
            raise UserError(
                f"command line: max_trials is {limits.max_trials}, but "
                f"{len(trials) - finals} trials have been started already"
            )
        raised = dataclasses.replace(limits, max_trials=limits.max_trials + finals)
        return raised, {"finals": finals} if finals else {}
    if record.state != "gone" or record.plan.max_trials is None:
        return limits, {}
    crashed = sum(t.status == "failed" and not t.scores and not is_posted(t) for t in trials)
    more = crashed - note.get("replaced", 0) + finals - note.get("finals", 0)
    if more <= 0:
        return limits, {}
    raised = dataclasses.replace(limits, max_trials=record.plan.max_trials + more)
    return raised, {"replaced": crashed, "finals": finals}
