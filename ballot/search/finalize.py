"""The best configurations of a search once more: on every fold, each with a seed of its own.

What is trained are further trials of the same search, on its machines and with its command; its
tuner is not asked, and learns nothing of them. Whatever is there already is not trained again.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ballot.engines.interface import Engine, Launch, Plan, Search
from ballot.errors import UserError
from ballot.runs.folder import ballots_of, run_of
from ballot.runs.results import Results, searched_values
from ballot.runs.trials import TrialRecord, is_final
from ballot.search.status import table_of
from ballot.search.supervise import follow
from ballot.search.time_budget import Budget, usual_seconds
from ballot.search.trouble import End, Trouble
from ballot.steady import steady_time
from ballot.values import Json, Values
from ballot.wording import clock, short_value


@dataclass(frozen=True)
class Finalist:
    """A configuration that is to be trained on every fold; `score` is the search's own."""

    name: str
    score: float
    parameters: Json  # as the tuner gave them
    words: str  # the same for people
    seed: int
    split_seed: int

    def on_fold(self, fold: int, folds: int) -> Json:
        """Return the parameters of a trial: the same split for all folds, another seed for each."""
        return {
            **self.parameters,
            "fold": fold,
            "folds": folds,
            "split_seed": self.split_seed,
            "seed": (self.seed + 1 + fold) % 2**32,
        }


@dataclass(frozen=True)
class Standing:
    """A finalist's folds: their ballots and scores; `tied` with the best within its error."""

    finalist: Finalist
    ballots: list[Path]
    scores: list[float]
    tied: bool = False

    @property
    def mean(self) -> float:
        """Mean score of the folds."""
        return statistics.fmean(self.scores)

    @property
    def deviation(self) -> float:
        """Standard deviation over the folds, nan of a single one."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else math.nan


def choose(
    results: Results, trials: Sequence[TrialRecord], count: int, among: Collection[str] | None
) -> list[Finalist]:
    """Return the best configurations by validation score, equal ones once."""
    found: dict[str, Finalist] = {}
    ballots = _ballots(results, trials)
    for trial, row in zip(trials, results.rows):
        folder = results.folder_of(trial)
        whole = folder.name in ballots and (folder / "val.csv").is_file()
        asked = among is None or folder.name in among
        ended = row["status"] in ("done", "stopped") and row["score"] is not None
        if not (whole and asked and ended) or is_final(trial):
            continue
        values = results.values_of(trial)
        seed = values.get("seed") or 0
        split = values.get("split_seed")
        words = " ".join(f"{k}={short_value(v)}" for k, v in searched_values(trial).items())
        this = Finalist(
            folder.name,
            row["score"],
            trial.configuration,
            words,
            seed,
            seed if split is None else split,
        )
        own = {k: v for k, v in trial.configuration.items() if k != "seed"}
        key = json.dumps(own, sort_keys=True)
        if key not in found or (this.score > found[key].score) == results.maximize:
            found[key] = this
    ranked = sorted(found.values(), key=lambda each: each.score, reverse=results.maximize)
    if len(ranked) < count:
        raise UserError(
            f"--finalize: search {results.search_id} has {len(ranked)} configurations "
            f"with a score and a whole CSV, not {count}"
        )
    return ranked[:count]


@dataclass
class Work:
    """What is to be done: parameters that no trial has had, and trials that are to go on."""

    missing: list[Json]
    again: list[str]


def find_work(results: Results, trials: Sequence[TrialRecord], wanted: Sequence[Values]) -> Work:
    """Compare what is wanted with the trials that there are; one that failed is tried anew."""
    work, voted = Work([], []), _voted(results, trials)
    for parameters in wanted:
        same = [trial for trial in trials if trial.parameters == parameters]
        if any(trial.id in voted for trial in same):
            continue
        halted = [trial.id for trial in same if not trial.has_ended]
        if halted:
            work.again.append(halted[0])
        else:
            work.missing.append(dict(parameters))
    return work


def _voted(results: Results, trials: Sequence[TrialRecord]) -> dict[str, Path]:
    """Return the ballots of trials that came to their end, by the trials' ids."""
    ballots = _ballots(results, trials)
    return {
        trial.id: ballots[name]
        for trial in trials
        if (name := results.folder_of(trial).name) in ballots
        and results.result_of(trial).get("status") == "done"
    }


def _ballots(results: Results, trials: Sequence[TrialRecord]) -> dict[str, Path]:
    """Return what each run votes with, by its name."""
    return {run_of(file).name: file for file in ballots_of(map(results.folder_of, trials))}


@dataclass(frozen=True)
class Job:
    """The best configurations of a search, and what is to be trained of their folds."""

    plan: Plan
    results: Results
    trials: list[TrialRecord]
    finalists: list[Finalist]
    folds: int
    work: Work

    @property
    def runs(self) -> int:
        """How many trials are to run."""
        return len(self.work.missing) + len(self.work.again)


def find_job(search: Search, count: int, folds: int, among: Collection[str] | None) -> Job:
    """Find out what is to be trained of the `count` best configurations on `folds` folds."""
    if search.is_running():
        raise UserError(
            f"search {search.id}: still runs; wait for its end, or end it with "
            f"search.py --stop {search.id}"
        )
    plan = search.plan()
    if plan.elsewhere and not search.note().get("guarded", True):
        raise UserError(
            f"search {search.id}: ran on other machines with --no_guard; its trials "
            "can be given anew only through the guard"
        )
    plan = search.reconnected(plan)
    results, trials = table_of(search, plan), search.trials()
    results.read(trials, over=True)
    finalists = choose(results, trials, count, among)
    wanted = [each.on_fold(k, folds) for each in finalists for k in range(folds)]
    return Job(plan, results, trials, finalists, folds, find_work(results, trials, wanted))


def finalize(engine: Engine, search: Search, job: Job, *, port: int) -> tuple[list[Standing], bool]:
    """Train what is missing; return how the finalists compare, and whether it was interrupted."""
    trials, end = job.trials, End()
    if job.runs:
        print(plan_line(search, job), flush=True)
        end = train(engine, search, job, port)
        trials = search.trials()
        job.results.update(trials, over=True)
        if end.trouble is not None:
            raise UserError(trouble_line(search, end.trouble))
    return rank(job.results, trials, job.finalists, job.folds), end.interrupted


def trouble_line(search: Search, trouble: Trouble) -> str:
    """Say why it cannot go on, with the last words of what failed."""
    said = search.last_words(trouble.trials[-1].id) if trouble.trials else search.tuner_error()
    return (
        f"search {search.id}: {trouble.what}{f' ({said})' if said else ''}; mend it, and the "
        "same command goes on from here"
    )


def plan_line(search: Search, job: Job) -> str:
    """Say how many trials there are to run, and about how long that takes."""
    wanted = len(job.finalists) * job.folds
    usual, rounds = usual_seconds(job.trials), math.ceil(job.runs / job.plan.concurrency)
    time_needed = f", about {clock(usual * rounds)}" if usual else ""
    there = f"; {wanted - job.runs} of {wanted} are there" if wanted > job.runs else ""
    return f"search {search.id}: {job.runs} more trials{time_needed}{there}"


def train(engine: Engine, search: Search, job: Job, port: int) -> End:
    """Run the trials without asking the tuner, and watch them to their end."""
    search.stop()  # what a dead manager left
    trials, work = job.trials, job.work
    plan = job.plan.of_posted(trials, len(work.missing), work.again)
    launch = Launch(port, guarded=True, public=search.note().get("public", False))
    running = engine.run_more(search, plan, launch, work.missing, work.again)
    budget = Budget(None, steady_time())  # that of the search is past, and does not count here
    return follow(running, plan, job.results, budget, launch)


def rank(
    results: Results, trials: Sequence[TrialRecord], finalists: Sequence[Finalist], folds: int
) -> list[Standing]:
    """Return the finalists that have results, the best mean first, and who is tied with it."""
    standings, voted = [], _voted(results, trials)
    for each in finalists:
        parameters = [each.on_fold(k, folds) for k in range(folds)]
        done = {
            trial.parameters["fold"]: trial
            for trial in trials
            if trial.parameters in parameters and trial.id in voted
        }
        ballots = [voted[done[k].id] for k in sorted(done)]
        scores = [results.result_of(done[k])["score"] for k in sorted(done)]
        if scores:
            standings.append(Standing(each, ballots, scores))
    standings.sort(key=lambda each: each.mean, reverse=results.maximize)
    if not standings:
        return []
    best = standings[0]
    error = best.deviation / math.sqrt(len(best.scores))
    return [
        best,
        *(
            dataclasses.replace(each, tied=abs(each.mean - best.mean) <= error)
            for each in standings[1:]
        ),
    ]


def table(standings: Sequence[Standing], folds: int) -> list[str]:
    """Return a line for each finalist: its folds' mean and deviation, and what it is."""
    names = max(len(each.finalist.name) for each in standings)
    lines = [f"{'configuration of':<{names}}  folds    mean      sd  in the search        votes as"]
    for place, each in enumerate(standings):
        word = "best" if place == 0 else "tied" if each.tied else ""
        counted, voter = f"{len(each.scores)}/{folds}", run_of(each.ballots[0]).name
        lines.append(
            f"{each.finalist.name:<{names}}  {counted:>5}"
            f"{each.mean:>8.4f}{each.deviation:>8.4f}{each.finalist.score:>15.4f}  "
            f"{word:<4}  {voter:<{names}}  {each.finalist.words}".rstrip()
        )
    if any(each.tied for each in standings):
        lines.append("tied: within one standard error of the best's mean")
    return lines
