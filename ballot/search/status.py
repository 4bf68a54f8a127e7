"""Searches in words: a line for one that runs, a table of its trials, a list of them all."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from ballot.engines.interface import Plan, Search
from ballot.errors import UserError
from ballot.runs.results import Results, searched_values
from ballot.runs.trials import TrialRecord
from ballot.values import Values
from ballot.wording import clock, plural, short_value


def count_line(
    trials: Sequence[TrialRecord], rows: Sequence[Values], max_trials: int | None
) -> str:
    """Return how many trials have ended, how, and how many run."""
    counts = Counter(row["status"] for row in rows)
    ended = sum(trial.has_ended for trial in trials)
    apart = [f"{counts[word]} {word}" for word in ("failed", "stopped") if counts[word]]
    running = sum(trial.status == "running" for trial in trials)
    most = max_trials and max(max_trials, len(trials))  # those of --finalize come on top
    return (
        f"{ended}/{most or '?'} trials done"
        + (f" ({', '.join(apart)})" if apart else "")
        + f", {running} running"
    )


def best_score(rows: Sequence[Values], maximize: bool) -> str:
    """Return the best score so far, of trials that still run too."""
    scores = [row["score"] for row in rows if row["score"] is not None]
    best = (max if maximize else min)(scores, default=None)
    return "-" if best is None else format(best, ".4f")


def time_left(
    trials: Sequence[TrialRecord],
    max_trials: int | None,
    concurrency: int,
    limit: float | None,
    now: float,
) -> str:
    """Estimate the time left from the mean time of the trials that have ended.

    `limit` is what is left of the search's own time, if it has one.
    """
    times = [t.ended - t.resumed for t in trials if t.has_ended and t.ended and t.resumed]
    if not times or not max_trials:
        return "unknown time" if limit is None else f"at most {clock(limit)}"
    mean = sum(times) / len(times)
    spent = sum(min(mean, now - t.resumed) for t in trials if t.status == "running" and t.resumed)
    left = ((max_trials - len(times)) * mean - spent) / min(concurrency, max_trials)
    return f"about {clock(left if limit is None else min(left, limit))}"


def results_of(search: Search) -> tuple[Results, list[TrialRecord], Plan]:
    """Return a search's table as far as it can be read, its trials and its plan."""
    plan = search.plan()
    results = table_of(search, plan)
    trials = search.trials()
    results.read(trials, over=not search.is_running())
    return results, trials, plan


def table_of(search: Search, plan: Plan) -> Results:
    """Return the table of a search, with what an earlier search.py noted of its trials."""
    results = Results(search.id, plan.outputs, maximize=plan.maximize, words=search.last_words)
    results.reasons.update(search.note().get("reasons", {}))
    return results


def state_of(search: Search, trials: Sequence[TrialRecord], max_trials: int | None) -> str:
    """Return a word for how a search is: running, done, stopped, hangs or error."""
    state = search.status().state
    if state == "gone":
        complete = sum(trial.has_ended for trial in trials) >= (max_trials or float("inf"))
        return "done" if complete else "stopped"
    return {"silent": "hangs", "done": "done", "error": "error"}.get(state, "running")


def list_lines(searches: Sequence[Search]) -> list[str]:
    """Return a line for each search that search.py started, and how many others there are."""
    ours = [search for search in searches if search.note()]
    lines = []
    for search in ours:
        try:
            results, trials, plan = results_of(search)
        except UserError:
            lines.append(f"{search.id}  cannot be read; see {search.folder}")
            continue
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(search.began))
        lines.append(
            f"{search.id}  {when}  {state_of(search, trials, plan.max_trials):<8}"
            f"{count_line(trials, results.rows, plan.max_trials)}, "
            f"best {best_score(results.rows, plan.maximize)}  "
            f"{results.outputs}"
        )
    if others := len(searches) - len(ours):
        lines.append(f"besides, {others} of the engine's searches that search.py did not start")
    return lines or ["no search has been started yet"]


def status_lines(search: Search) -> list[str]:
    """Return what is known of one search: its state, each trial, and where things are."""
    results, trials, plan = results_of(search)
    state = state_of(search, trials, plan.max_trials)
    where = f", {search.address}" if search.address else ""
    lines = [
        f"search {search.id}: {state}{where}",
        f"{count_line(trials, results.rows, plan.max_trials)} | best "
        f"{best_score(results.rows, plan.maximize)}",
    ]
    lines += machine_lines(search, trials)
    for trial, row in zip(trials, results.rows):
        score = "-" if row["score"] is None else format(row["score"], ".4f")
        seconds = "-" if row["seconds"] is None else clock(row["seconds"])
        values = " ".join(f"{k}={short_value(v)}" for k, v in searched_values(trial).items())
        reason = f"  ({row['reason']})" if row["reason"] else ""
        lines.append(
            f"{trial.sequence:>4}  {trial.id}  {row['status']:<8}{score:>8}  "
            f"{plural(row['epochs'], 'epoch'):>11}  {seconds:>7}  {values}{reason}"
        )
    lines.append(
        f"runs: {results.outputs}; table: {results.path}; records and logs: {search.folder}"
    )
    if state in ("stopped", "error", "hangs"):
        lines.append(f"continue with: python search.py --resume {search.id}")
    return lines


def machine_lines(search: Search, trials: Sequence[TrialRecord]) -> list[str]:
    """Return a line for each machine of a search on others: its state, and its trials."""
    states = {state.name: state for state in search.machine_states()}
    lines = []
    for name in dict.fromkeys([*states, *(t.machine for t in trials if t.machine)]):
        counts = Counter(trial.status for trial in trials if trial.machine == name)
        ended = sum(trial.has_ended for trial in trials if trial.machine == name)
        state = f" {states[name].words}" if name in states and search.is_running() else ""
        waiting = f", {counts['waiting']} to go on" if counts["waiting"] else ""
        lines.append(f"{name}{state}: {counts['running']} running, {ended} ended{waiting}")
    return lines
