"""The best configurations of a search once more, on all rows: within its time, for its vote.

A trial of the search holds out rows to be judged by; once it is known which configurations are
good, the same time is spent best on training these on all rows, each with seeds of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ballot.engines.interface import Engine, Launch, Plan, Search
from ballot.runs.results import OVER, Results, Row
from ballot.runs.trials import CONTINUES, TrialRecord, is_final, is_posted
from ballot.search.supervise import follow
from ballot.search.time_budget import BEGIN_S, SAFE, Budget
from ballot.search.trouble import End
from ballot.steady import steady_time
from ballot.values import Json, Values
from ballot.vote.options import Refit
from ballot.wording import clock, plural

BEST = 3  # configurations that are trained again
MOST = 12  # runs in all
ALL_ROWS = 1.15  # of a trial's time: more rows, and none that are scored to choose by


@dataclass(frozen=True)
class Candidate:
    """A configuration of the search that was not given up, and what it takes to its end."""

    trial: TrialRecord
    run: str
    score: float
    seconds: float
    seed: int
    is_drawn: bool  # whether another seed makes another network


def candidates(results: Results, trials: Sequence[TrialRecord]) -> list[Candidate]:
    """Return the configurations that ended well, the best first, equal ones once.

    Those that the end of the time has cut are among them: slow ones are often the best.
    """
    found: dict[str, Candidate] = {}
    for trial, row in zip(trials, results.rows):
        seconds = whole_seconds(results, trial, row)
        if is_final(trial) or row["score"] is None or not seconds:
            continue
        values = results.values_of(trial)
        each = Candidate(
            trial=trial,
            run=row["run"],
            score=float(row["score"]),
            seconds=seconds,
            seed=int(values.get("seed") or 0),
            is_drawn=values.get("recipe") != "probe",
        )
        own = {k: v for k, v in trial.configuration.items() if k != "seed"}
        key = json.dumps(own, sort_keys=True)
        if key not in found or (each.score > found[key].score) == results.maximize:
            found[key] = each
    return sorted(found.values(), key=lambda each: each.score, reverse=results.maximize)


def whole_seconds(results: Results, trial: TrialRecord, row: Row) -> float | None:
    """Return how long a trial takes to its end; None where it failed or was given up."""
    seconds = float(row["seconds"] or 0.0)
    if row["status"] == "done":
        return seconds
    result = results.result_of(trial)
    done, planned = int(result.get("epochs") or 0), int(result.get("epochs_planned") or 0)
    if row["status"] != "stopped" or row["reason"] != OVER or not 0 < done <= planned:
        return None
    return seconds * planned / done


def runs_to_make(ranked: Sequence[Candidate], seconds: float, concurrency: int) -> list[Json]:
    """Return the parameters of as many runs as fit into the time, the best in turn.

    Where each of the best takes too long, the next ones that do not have the time.
    """
    alone, made = SAFE * seconds, []
    fitting = [each for each in ranked if ALL_ROWS * each.seconds <= alone]
    best = [each for each in ranked[:BEST] if each in fitting] or fitting[:BEST]
    room = alone * concurrency
    for number in range(MOST if best else 0):
        turn, place = divmod(number, len(best))
        each = best[place]
        cost = ALL_ROWS * each.seconds
        if cost <= room and (turn == 0 or each.is_drawn):
            made.append(on_all_rows(each, turn))
            room -= cost
    return made


def on_all_rows(candidate: Candidate, turn: int) -> Json:
    """Return the parameters of a configuration on all rows, with a seed of its own."""
    return {
        **candidate.trial.configuration,
        "all_rows": True,
        "split_seed": candidate.seed,
        "seed": (candidate.seed + 1 + turn) % 2**32,
    }


def refit(
    engine: Engine,
    search: Search,
    plan: Plan,
    results: Results,
    budget: Budget,
    launch: Launch,
) -> End:
    """Train the best configurations on all rows, as many as fit into what is left of the time."""
    trials = search.trials()
    results.update(trials, over=True)
    budget.look([results.folder_of(trial) for trial in trials])
    left = budget.left_for_trials(steady_time()) - BEGIN_S
    had = [trial.parameters for trial in trials if trial.status == "succeeded"]
    wanted = runs_to_make(candidates(results, trials), left, plan.concurrency)
    missing = [values for values in wanted if values not in had]
    if not missing:
        return End()
    print(beginning(len(missing), left), flush=True)
    again = plan.of_posted(trials, len(missing), [])
    running = engine.run_more(search, again, launch, missing, [])
    budget.closed = False
    return follow(running, again, results, budget, launch)


def beginning(runs: int, left: float) -> str:
    """Say what begins, and how long it may take; a search may have no limit."""
    limit = f" in at most {clock(left)}" if math.isfinite(left) else ""
    return f"training the best again on all rows: {plural(runs, 'run')}{limit} ..."


def refits_of(results: Results, trials: Sequence[TrialRecord]) -> list[Refit]:
    """Return the runs on all rows that came to their end, each with the run that it repeats."""
    by_values: dict[str, str] = {}
    for trial in trials:
        run = results.folder_of(trial)
        if is_final(trial) or (is_posted(trial) and not _ballot_of(run).exists()):
            continue
        if _key(trial.parameters) not in by_values or is_posted(trial):  # in whose place it votes
            by_values[_key(trial.parameters)] = run.name
    found = []
    for trial in trials:
        run = results.folder_of(trial)
        repeated = by_values.get(_key(trial.parameters))
        done = results.result_of(trial).get("status") == "done"
        if trial.parameters.get("all_rows") and repeated and done and (run / "best.pt").exists():
            found.append(Refit(_ballot_of(run), repeated))
    return found


def _ballot_of(run: Path) -> Path:
    """Return the file that stands for a run in a vote, which holds test rows if there are any."""
    tested = run.with_name(f"{run.name}.csv")
    return tested if tested.exists() else run / "val.csv"


def _key(parameters: Values) -> str:
    own = ("all_rows", "split_seed", "seed", "fold", "folds", CONTINUES)
    return json.dumps({k: v for k, v in parameters.items() if k not in own}, sort_keys=True)
