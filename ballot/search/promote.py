"""Trials that were stopped early and turned out to be good: the rest of their epochs.

What stops trials compares each with those that came as far before it. Once the search is over,
it is known how good the finished ones are; a stopped trial that was as good as the best of them
already goes on from where it was stopped, in time that is left (Li et al., 2020, promote trials
in the same way). Its run begins with the state of the stopped one, and votes in its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ballot.config.trial_command import option_of
from ballot.engines.interface import Engine, Launch, Plan, Search
from ballot.errors import UserError
from ballot.runs.files import json_or_empty, read_rows
from ballot.runs.results import EARLY, Results
from ballot.runs.trials import CONTINUES, TrialRecord, is_final
from ballot.search.supervise import follow
from ballot.search.time_budget import BEGIN_S, SAFE, Budget
from ballot.search.trouble import End
from ballot.steady import steady_time
from ballot.values import Json
from ballot.wording import clock, plural

BEST = 3  # of the finished trials: a stopped one that reached these is good


@dataclass(frozen=True)
class Stopped:
    """A trial that was stopped early, and how long the rest of its epochs takes."""

    trial: TrialRecord
    run: str
    score: float
    seconds: float


def good_ones(results: Results, trials: Sequence[TrialRecord]) -> list[Stopped]:
    """Return the stopped trials that reached the best finished ones, the best first."""
    sign = 1.0 if results.maximize else -1.0
    own = [(t, row) for t, row in zip(trials, results.rows) if not is_final(t)]
    scored = [(trial, row) for trial, row in own if row["score"] is not None]
    finished = sorted(sign * row["score"] for _, row in scored if row["status"] == "done")
    needed = min(finished[-BEST:], default=-math.inf)
    continued = {trial.parameters.get(CONTINUES) for trial, _ in own}
    found = []
    for trial, row in scored:
        stopped = row["status"] == "stopped" and row["reason"] == EARLY
        if not stopped or row["run"] in continued or sign * row["score"] < needed:
            continue
        seconds = seconds_for_rest(results.folder_of(trial))
        if seconds is not None:
            found.append(Stopped(trial, row["run"], float(row["score"]), seconds))
    return sorted(found, key=lambda each: -sign * each.score)


def seconds_for_rest(run: Path) -> float | None:
    """Return how long the rest of a stopped run takes, its start and its end included.

    None where it cannot go on: it has no epoch left, or its state has been removed.
    """
    result = json_or_empty(run / "result.json")
    done, planned = int(result.get("epochs") or 0), int(result.get("epochs_planned") or 0)
    if not 0 < done < planned or not any(run.rglob("last.pt")):
        return None
    try:
        files = [run / "history.csv", *run.glob("fold*/history.csv")]
        training = sum(float(row["seconds"]) for file in files for row in read_rows(file))
    except (UserError, OSError, ValueError, KeyError):
        return None
    beside = max(0.0, float(result.get("seconds") or 0.0) - training)
    return beside + training / done * (planned - done)


def runs_to_make(ranked: Sequence[Stopped], seconds: float, concurrency: int) -> list[Json]:
    """Return the parameters of as many runs as fit into the time, the best first."""
    room, made = SAFE * seconds * concurrency, []
    for each in ranked:
        if each.seconds <= min(room, SAFE * seconds):
            made.append({**each.trial.configuration, CONTINUES: each.run})
            room -= each.seconds
    return made


def promote(
    engine: Engine,
    search: Search,
    plan: Plan,
    results: Results,
    budget: Budget,
    launch: Launch,
) -> End | None:
    """Let good trials go on that were stopped early, as many as fit into the time that is left.

    Returns how that ended; None where there was none, or no time. Trials on machines reached over
    ssh left their state there and stay as they are, as do those that would not resume.
    """
    resumes = option_of(plan.command, "--resume", "") == "auto"
    if budget.limit is None or plan.links or not resumes or not launch.guarded:
        return None
    trials = search.trials()
    results.update(trials, over=True)
    budget.look([results.folder_of(trial) for trial in trials])
    left = budget.left_for_trials(steady_time()) - BEGIN_S
    begun = [t.id for t in trials if CONTINUES in t.parameters and not t.has_ended and left > 0]
    ranked = [] if begun else good_ones(results, trials)
    new = runs_to_make(ranked, left, plan.concurrency)
    count = len(begun) + len(new)
    if not count:
        return None
    verb = "goes" if count == 1 else "go"
    runs = f"{plural(count, 'good trial')} that had been stopped early {verb} on"
    print(f"{runs}, for at most {clock(left)} ...", flush=True)
    posted = plan.of_posted(trials, len(new), begun)
    running = engine.run_more(search, posted, launch, new, begun)
    return follow(running, posted, results, budget, launch)
