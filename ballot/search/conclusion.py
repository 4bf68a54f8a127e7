"""How a search ends: what went wrong, the vote of its trials, the report."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ballot.config.trial_command import typed_command
from ballot.engines.interface import Plan, Search
from ballot.errors import UserError
from ballot.prediction import soup_process
from ballot.report.page import try_report
from ballot.runs.files import json_or_empty
from ballot.runs.folder import ballots_of, is_validation, read_result, run_of
from ballot.runs.results import Results, searched_values
from ballot.runs.trials import TrialRecord, is_final
from ballot.search.time_budget import Budget, how_time_cut
from ballot.search.trouble import End, Trouble
from ballot.vote.options import Refit, VoteOptions
from ballot.vote.outcome import VoteReport
from ballot.vote.run import run_vote
from ballot.vote.table import format_table
from ballot.wording import plural, terminal_width

ROOT = Path(__file__).resolve().parents[2]
QUICK_PAGE_S = 5.0  # for the report without pictures, where the time is over
SHOWN = 20  # last lines of a trial that ends the search


def conclude(
    search: Search,
    plan: Plan,
    results: Results,
    end: End,
    vote_dir: Path,
    budget: Budget,
    *,
    refits: Sequence[Refit] = (),
) -> VoteReport | None:
    """Say what went wrong and let the trials vote; None where none of them can."""
    trials = search.trials()
    rows = results.update(trials, over=True)
    if end.trouble is not None:
        say_trouble(end.trouble, search)
    if cut := how_time_cut(rows):
        print(cut)
    failed = [(t, row) for t, row in zip(trials, rows) if row["status"] == "failed"]
    for trial, row in failed[:10]:
        print(f"trial {trial.sequence} ({trial.id}) failed: {row['reason']}")
    if len(failed) > 10:
        print(f"and {len(failed) - 10} more failed")
    print(f"a row for each of {plural(len(rows), 'trial')}: {results.path}")
    own = [trial for trial in trials if not is_final(trial)]  # the others saw other rows
    ballots = sorted(ballots_of(map(results.folder_of, own)))
    if not ballots:
        print(
            f"no trial of {search.id} left predictions; the trials' output is in "
            f"{search.folder / 'environments'}",
            file=sys.stderr,
        )
        return None
    report = vote(ballots, vote_dir, budget, refits)
    print(format_table(report, terminal_width()))
    print_best(plan, results, own)
    return report


def print_best(plan: Plan, results: Results, trials: Sequence[TrialRecord]) -> None:
    """Print the command that repeats the best trial, if there is one."""
    best = results.best(trials)
    if best is None:
        return
    names, values = searched_values(best), results.values_of(best)
    if "seed" in names and values.get("split_seed") is not None:
        names["split_seed"] = values["split_seed"]  # which a trial by itself takes from seed
    wanted = {key: values.get(key, value) for key, value in names.items()}
    print(f"reproduce the best trial: {typed_command(plan.command, wanted)}")


def vote(
    ballots: list[Path], vote_dir: Path, budget: Budget, refits: Sequence[Refit] = ()
) -> VoteReport:
    """Weigh the members by their validation rows; the best of them answers where a vote is worse.

    Where the trials share no validation rows, all of them have the same weight.
    """
    monitor = read_result(run_of(ballots[0])).get("monitor") or ""
    metric = {"val_f1_macro": "f1_macro", "val_loss": "nll"}.get(monitor, "acc")
    soups = try_soups(ballots, vote_dir / "soup", metric, budget)
    options = VoteOptions(out_dir=str(vote_dir), metric=metric, select="auto")
    return run_vote([*ballots, *soups], options, refits)


def vote_folder(wanted: str | None, noted: str | None, search_id: str) -> Path:
    """Return the folder of a search's vote; that of another search is not written over."""
    if wanted:
        return Path(wanted)
    folder = Path(noted or "ensemble")
    members = json_or_empty(folder / "ensemble.json").get("members") or []
    names = [str(member.get("name")) for member in members if isinstance(member, dict)]
    if names and not any(name.startswith(f"{search_id}-") for name in names):
        other = folder.with_name(f"{folder.name}-{search_id}")
        print(f"{folder} holds another vote, so this one is written to {other}")
        return other
    return folder


def answer_lines(report: VoteReport, plan: Plan, vote_dir: Path) -> list[str]:
    """Say in a few lines what the answer is worth, what it is made of, and where things are."""
    on_all = sum(not member.val for member in report.members if member.weight)
    voting = sum(bool(member.weight) for member in report.members) - on_all
    made_of = plural(voting, "trial")
    if report.alone:
        made_of = "the best single trial, which is better than a vote"
    if on_all:
        made_of += f" and {plural(on_all, 'run')} on all rows"
    lines = [f"answer: {worth(report)}", f"made of: {made_of}"]
    lines += [f"submission: {file}" for file in report.files if file.name == "submission.csv"]
    lines.append(f"report: {plan.page}; weights: {plan.outputs}")
    lines.append(f"new images: python predict.py {vote_dir} PHOTOS --out new.csv")
    return lines


def worth(report: VoteReport) -> str:
    """Return the estimated score of the answer with its standard error, in words."""
    metric, rows = report.options.metric, report.val_rows
    if report.honest is not None:
        score = report.honest.best_single if report.alone else report.honest.vote
        known = f"estimated on {rows} validation rows that took no part in the choice"
    elif report.best_single is not None:
        score = report.val.get(metric, report.best_single.val.get(metric, 0.0))
        known = f"on the {rows} validation rows by which it was chosen"
    else:
        return "no validation rows tell what it is worth"
    if metric != "acc" or not rows:
        return f"{metric} {score:.4f}, {known}"
    error = math.sqrt(score * (1 - score) / rows)
    return f"accuracy {score:.3f} ± {error:.3f}, {known}"


def try_soups(ballots: list[Path], out: Path, metric: str, budget: Budget) -> list[Path]:
    """Average the best trials that share a start, where there is time; return what votes by it."""
    chosen = budget.soup.choose(list(map(run_of, ballots)))
    limit = budget.seconds_for_soup(chosen)
    if not limit:
        return []
    try:
        runs = [each.run for each in chosen]
        within = None if budget.limit is None else limit
        soups = soup_process.make_soups(runs, out, metric=metric, limit=within)
    except UserError as error:
        print(error)
        return []
    return soup_process.ballots_of(soups, tested=not is_validation(ballots[0]))


def write_report(search: Search, plan: Plan, vote_dir: Path, left: float | None) -> None:
    """Write the page with its pictures, which need torch: in a process of its own.

    Where that takes more than the seconds that are `left`, it is the page without them.
    """
    command = [
        sys.executable,
        str(ROOT / "report.py"),
        str(plan.outputs),
        "--search",
        search.id,
        "--vote_dir",
        str(vote_dir),
        "--out",
        str(plan.page),
    ]
    sys.stdout.flush()
    done, limit = None, None if left is None else left - QUICK_PAGE_S
    if limit is None or limit > QUICK_PAGE_S:
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    if done is None:
        if try_report(plan.outputs, plan.page, search=search.id, vote_dir=vote_dir):
            print("the report has no pictures: there was no time for them")
        return
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        print(f"there is no report: {why.removeprefix('error: ')}")


def say_trouble(trouble: Trouble, search: Search) -> None:
    """Say why a search ended early, with the words of what failed, and what to do."""
    out = sys.stderr
    sys.stdout.flush()
    print(f"the search ended early: {trouble.what}", file=out)
    if trouble.trials:
        last = trouble.trials[-1]
        print(f"trial {last.sequence} ({last.id}) failed; the end of its output:", file=out)
        for line in search.last_words(last.id, SHOWN).splitlines():
            print(f"    {line}", file=out)
    elif trouble.of_tuner and (words := search.tuner_error()):
        print(f"    last error of the tuner: {words}", file=out)
    print(
        f"what to do: {trouble.remedy} (its logs: {search.folder / 'log'})",
        file=out,
        flush=True,
    )
