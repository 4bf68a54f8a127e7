"""Search: check the configuration, let NNI try it, watch, then let the trials vote."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from ballot.installed import require

    require("numpy", "nni", "psutil")

from ballot.config import trial_command
from ballot.config.command_line import Parser
from ballot.engines.nni import experiment, manager, processes, remote
from ballot.engines.nni.config import seconds_of
from ballot.engines.nni.database import read_trials
from ballot.engines.nni.experiment import Search
from ballot.errors import UserError
from ballot.errors import guard as guarded
from ballot.machines import setup
from ballot.machines.ssh import Link, has_terminal
from ballot.preflight import examine, machines, tryout
from ballot.preflight.machines import Reach
from ballot.problems import listed, note
from ballot.report.page import try_report
from ballot.runs.folder import ballots_of, read_result, run_of
from ballot.runs.results import Results, searched_values
from ballot.runs.trials import TrialRecord
from ballot.search.finalize import is_final
from ballot.search.plan import Plan, manager_environment, outputs_of, resumed_plan
from ballot.search.status import list_lines, status_lines
from ballot.search.supervise import End, follow
from ballot.search.time_budget import BEGIN_S, Budget, how_time_cut, time_before
from ballot.search.trouble import Trouble
from ballot.vote.selection import VoteOptions
from ballot.vote.table import format_table
from ballot.vote.tally import VoteReport, run_vote

BAGS = 20  # rounds of the greedy choice, each over half of the members (Caruana et al., 2006)
MANY = 50  # members; beyond them one round is enough, and twenty would take minutes
QUICK_PAGE_S = 5.0  # for the report without pictures, where the time is over
SHOWN = 20  # last lines of a trial that ends the search


@guarded
def main(argv: list[str] | None = None) -> int:
    """Run a search from its configuration to its vote, or look after others."""
    began = time.time()
    args = build_parser().parse_args(argv)
    if args.list:
        print("\n".join(list_lines(experiment.known_searches())))
        return 0
    if args.status is not None:
        print("\n".join(status_lines(named_search(args.status, args.config))))
        return 0
    if args.stop is not None:
        return stop_searches(args.stop)
    if args.resume is not None:
        if args.warm_start:
            raise UserError("command line: --warm_start is for a new search; leave it out")
        found = named_search(args.resume, args.config)
        with found.watched():
            return see_through(*take_up(found, args, began), args)
    if args.config is None:
        raise UserError("command line: --config names what to search; see config_local.yml")
    plan = preflight(args)
    if plan is None:
        return 2
    if args.check:
        print(f"{args.config}: nothing is wrong with it")
        return 0
    search = begin(plan, args)
    budget = Budget(plan.max_seconds, began, away=bool(plan.links))
    with search.watched():
        return see_through(search, plan, budget, args)


def build_parser() -> Parser:
    """Make the command line."""
    parser = Parser(prog="search.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--config", metavar="FILE", help="NNI configuration, as config_local.yml")
    add("--max_trials", type=int, metavar="N", help="trials in all, instead of the configuration's")
    add("--max_duration", metavar="TIME", help="time in all, the vote included: 90s, 30m or 2h")
    add("--concurrency", type=int, metavar="K", help="trials at once")
    add("--trial_timeout", metavar="TIME", help="time of a trial, which then ends with its best")
    add(
        "--keep_checkpoints",
        type=int,
        metavar="N",
        help="remove the checkpoints of all trials but the N best (default: keep all)",
    )
    add("--port", type=int, default=8080, help="first port to try for NNI (default: 8080)")
    add("--vote_dir", metavar="DIR", help="folder of the vote (default: ensemble)")
    add("--public", action="store_true", help="let other machines reach the portal")
    add("--no_guard", action="store_true", help="run NNI as it ships (docs/nni.md)")
    add("--check", action="store_true", help="check the configuration and stop")
    add("--no_probe", action="store_true", help="check without trying a batch of training")
    add(
        "--warm_start",
        nargs="+",
        default=[],
        metavar="DIR",
        help="run folders, or folders of them, from which the tuner learns first",
    )
    add(
        "--install",
        action="store_true",
        help="make or update an environment on each machine first (docs/remote.md)",
    )
    add(
        "--sync_data",
        nargs="?",
        const="",
        metavar="DIR",
        help="copy the data to each machine first (default: this machine's --data_dir)",
    )
    add(
        "--accept_new_host_keys",
        action="store_true",
        help="trust machines that ssh does not know yet; a changed key is always refused",
    )
    add(
        "--skip_bad_machines",
        action="store_true",
        help="go on with the machines that nothing is wrong with",
    )
    add("--ssh_config", metavar="FILE", help="instead of ~/.ssh/config")
    add(
        "--resume",
        nargs="?",
        const="",
        metavar="ID",
        help="go on with a search that was stopped or killed (default: the newest)",
    )
    add("--status", nargs="?", const="", metavar="ID", help="show a search and its trials")
    add("--list", action="store_true", help="list the searches")
    add("--stop", metavar="ID|all", help="stop a search that runs; its results are kept")
    return parser


def preflight(args: Any) -> Plan | None:
    """Check everything that can be checked before anything starts; None where something is wrong.

    A single problem is raised, several are listed.
    """
    path, width = Path(args.config), shutil.get_terminal_size((100, 24)).columns - 1
    reach = reach_machines(args)
    with passing_words(f"checking {path} ..."):
        found = examine.examine(
            path,
            functools.partial(limits_of, args),
            port=args.port,
            guarded=not args.no_guard,
            probe=not args.no_probe,
            reach=reach,
            warm_start=args.warm_start,
        )
    if len(found.errors) == 1:
        raise UserError(str(found.errors[0]))
    if found.errors:
        heading = f"error: {path}: {len(found.errors)} things are wrong"
        print(listed(found.errors, heading, width), file=sys.stderr)
        return None
    for each in found.notes:
        print(note(each, width))
    if found.estimate:
        print(found.estimate, flush=True)
    return plan_of(found, [] if args.no_guard else reach.links)


def reach_machines(args: Any) -> Reach:
    """Connect to the machines of a search, and set them up where the command line says so."""
    path, wants = Path(args.config), args.install or args.sync_data is not None
    found = machines.reach(
        path,
        accept_new_host_keys=args.accept_new_host_keys,
        ssh_config=args.ssh_config,
        interactive=has_terminal(),
        skip_bad=args.skip_bad_machines,
    )
    if wants and not found.machines and not found.problems:
        raise UserError(
            f"{path}: is a search on this machine; --install and --sync_data set up others"
        )
    if args.install:
        requirements = Path(__file__).with_name("requirements.txt")
        found.problems += setup.install(found.links, requirements)
    if args.sync_data is not None:
        local, there = machines.data_folders(path, args.sync_data)
        found.problems += setup.sync_data(found.links, local, there)
    return found


@contextlib.contextmanager
def passing_words(text: str) -> Iterator[None]:
    """Show what is being done to a person who waits, and take it away again."""
    if sys.stdout.isatty():
        print(text, end="", flush=True)
    try:
        yield
    finally:
        if sys.stdout.isatty():
            print("\r\x1b[K", end="", flush=True)


def plan_of(found: examine.Found, links: list[Link]) -> Plan:
    """Make the plan of a search that nothing is wrong with."""
    config, local = found.config, found.told.platform == "local"
    if local:
        config.trial_command = trial_command.with_own_interpreter(config.trial_command)
    if links:
        remote.prepare(config, links)
    outputs = outputs_of(config.trial_command, found.told.code, elsewhere=not local)
    limit = config.max_experiment_duration
    return Plan(
        config,
        config.trial_command,
        outputs,
        config.max_trial_number,
        seconds_of(limit, str(found.path)) if limit else None,
        config.trial_concurrency,
        found.aim[1] == "max",
        not local or bool(config.trial_gpu_number),
        links,
    )


def limits_of(args: Any, command: str) -> dict[str, Any]:
    """Return what the command line says of limits, by NNI's names."""
    for name, value in (
        ("max_trials", args.max_trials),
        ("concurrency", args.concurrency),
        ("keep_checkpoints", args.keep_checkpoints),
    ):
        if value is not None and value < 1:
            raise UserError(f"command line: {name} is {value}; it must be at least 1")
    limits: dict[str, Any] = {
        "maxTrialNumber": args.max_trials,
        "maxExperimentDuration": args.max_duration,
        "trialConcurrency": args.concurrency,
    }
    if args.max_duration:
        seconds_of(args.max_duration, "command line")
    if args.trial_timeout:
        seconds = seconds_of(args.trial_timeout, "command line")
        limits["trialCommand"] = f"{command} --time_limit {seconds:g}"
    return {key: value for key, value in limits.items() if value}


def begin(plan: Plan, args: Any) -> Search:
    """Start a new search, and write down what it takes to go on with it."""
    folder = plan.outputs.parent
    if not os.access(next(f for f in (folder, *folder.parents) if f.exists()), os.W_OK):
        raise UserError(f"{folder}: cannot be written, where the results are to stand")
    print(f"starting NNI for {args.config} ...", flush=True)
    extra = manager_environment(plan, guarded=not args.no_guard, public=args.public)
    search = manager.start(plan.config, args.port, extra)
    search.write_note(
        config=str(Path(args.config).resolve()),
        folder=str(Path.cwd()),
        vote_dir=str(Path(args.vote_dir or "ensemble").absolute()),
        guarded=not args.no_guard,
        public=args.public,
        **remote.note_of(plan.links),
    )
    return search


def named_search(wanted: str, config: str | None) -> Search:
    """Return the search of an id, or the newest of a configuration or of this folder."""
    if wanted:
        return experiment.find_search(wanted)
    return experiment.newest_search(Path(config).resolve() if config else None)


def take_up(found: Search, args: Any, began: float) -> tuple[Search, Plan, Budget]:
    """Go on with a search: watch the manager that it has, or start it another one."""
    params, counted = found.profile()
    note, trials = found.note(), read_trials(found.folder)
    if note.get("max_duration"):  # NNI was told another one, so that no trial would begin
        params["maxExperimentDuration"] = f"{note['max_duration']:g}s"
    ended = sum(trial.has_ended for trial in trials)
    changes = limits_of(args, params["trialCommand"])
    counts: dict[str, int] = {}
    finals = sum(map(is_final, trials))
    if args.max_trials:
        if args.max_trials < len(trials) - finals:
            raise UserError(
                f"command line: max_trials is {args.max_trials}, but "
                f"{len(trials) - finals} trials have been started already"
            )
        if finals:
            changes["maxTrialNumber"] += finals
            counts = {"finals": finals}
    status, _ = found.status()
    if status == "GONE" and not args.max_trials:
        raised, counts = replacing_those_that_never_ran(note, trials, params)
        changes |= raised
    params.update(changes)
    plan = resumed_plan(found, params)
    before = time_before(note, counted, runs=found.manager() is not None, now=began)
    budget = Budget(plan.max_seconds, began - before, away=bool(plan.links))
    if (status == "RUNNING" and "trialCommand" not in changes) or (
        status in ("NO_MORE_TRIAL", "TUNER_NO_MORE_TRIAL") and not changes
    ):
        if counts:
            found.amend_note(**counts)
        found.raise_limits(changes)
        print(f"search {found.id} still runs: watching it", flush=True)
        return found, plan, budget
    whole = plan.max_trials is not None and ended >= plan.max_trials
    late = budget.left_for_trials(began) <= BEGIN_S or budget.is_too_late(trials, began + BEGIN_S)
    if (whole or late) and status in ("GONE", "DONE"):
        more = "--max_trials" if whole else "--max_duration"
        print(f"search {found.id} is complete; a larger {more} goes on with it", flush=True)
        return found, plan, budget
    if not plan.links:
        check_data_of(found, plan, Path(params["trialCodeDirectory"]), trials)
    found.stop()  # what hangs, what is to run with other limits, and what a dead manager left
    params["trainingService"]["trialCommand"] = params["trialCommand"]
    found.change_profile(params)
    if note or counts:
        found.amend_note(max_duration=None, **counts)
    print(f"resuming search {found.id}: {ended} trials have ended ...", flush=True)
    args.no_guard = args.no_guard or not note.get("guarded", True)
    args.public = args.public or note.get("public", False)
    extra = manager_environment(plan, guarded=not args.no_guard, public=args.public)
    return manager.resume(found, args.port, extra), plan, budget


def check_data_of(search: Search, plan: Plan, code: Path, trials: list[TrialRecord]) -> None:
    """Refuse to go on with a search on other data than its newest run was begun with."""
    results = Results(search.id, plan.outputs, maximize=plan.maximize, words=search.last_words)
    for trial in reversed(trials):
        run = results.folder_of(trial)
        if not is_final(trial) and (run / "split.csv").is_file():
            with passing_words("checking the data ..."):
                tryout.check_data(plan.command, code, run, trial.parameters)
            return


def replacing_those_that_never_ran(
    note: dict[str, Any], trials: list[TrialRecord], params: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Raise the number of trials by those that NNI counts and that were none of the search.

    Some crashed at their start, whose matter has been mended, or it would not be resumed; others
    are those of ensemble.py --finalize. Returns what changes, and what the search's note then says.
    """
    limit, finals = params.get("maxTrialNumber"), sum(map(is_final, trials))
    crashed = sum(t.status == "FAILED" and not t.scores and not is_final(t) for t in trials)
    more = crashed - note.get("replaced", 0) + finals - note.get("finals", 0)
    if limit is None or more <= 0:
        return {}, {}
    return {"maxTrialNumber": limit + more}, {"replaced": crashed, "finals": finals}


def stop_searches(wanted: str) -> int:
    """Stop one search, or all that search.py started and that run."""
    if wanted == "all":
        found = [s for s in experiment.known_searches() if s.note() and s.manager()]
    else:
        found = [experiment.find_search(wanted)]
    for search in found:
        if search.manager() is None and not processes.belonging(search.id, search.folder):
            print(f"search {search.id} does not run")
            continue
        print(f"stopping search {search.id}: its trials write what they have ...", flush=True)
        search.stop()
        print(f"search {search.id} is stopped; --resume {search.id} goes on with it")
    if not found:
        print("no search runs")
    return 0


def see_through(search: Search, plan: Plan, budget: Budget, args: Any) -> int:
    """Follow a search to its end, however it comes, and let its trials vote in time."""
    note = search.note()
    results = Results(search.id, plan.outputs, maximize=plan.maximize, words=search.last_words)
    results.reasons.update(note.get("reasons", {}))
    if args.keep_checkpoints is not None:
        search.amend_note(keep_checkpoints=args.keep_checkpoints)
    end = follow(
        search,
        plan,
        results,
        budget,
        guarded=not args.no_guard and note.get("guarded", True),
        public=args.public or note.get("public", False),
    )
    vote_dir = Path(args.vote_dir or note.get("vote_dir") or "ensemble")
    status = conclude(search, plan, results, end, vote_dir)
    hurried = end.over or budget.closed
    write_report(search, plan, vote_dir, budget.left(time.time()) if hurried else None)
    search.amend_note(spent=budget.spent(time.time()))
    if end.interrupted:
        print(f"continue with: python search.py --resume {search.id}")
    return 130 if end.interrupted else status


def conclude(search: Search, plan: Plan, results: Results, end: End, vote_dir: Path) -> int:
    """Say what went wrong, let the trials vote, and say where everything is."""
    trials = read_trials(search.folder)
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
    print(f"a row for each of {len(rows)} trials: {results.path}")
    own = [trial for trial in trials if not is_final(trial)]  # the others saw other rows
    ballots = sorted(ballots_of(map(results.folder_of, own)))
    if not ballots:
        print(
            f"no trial of {search.id} left a ballot; the trials' own words are in "
            f"{search.folder / 'environments'}",
            file=sys.stderr,
        )
        return 1
    report = vote(ballots, vote_dir)
    print(format_table(report, shutil.get_terminal_size((100, 24)).columns))
    if best := results.best(own):
        names, values = searched_values(best), results.values_of(best)
        typed = trial_command.typed_command(
            plan.command, {key: values.get(key, value) for key, value in names.items()}
        )
        print(f"the best trial by hand: {typed}")
    return 0 if end.trouble is None else 1


def vote(ballots: list[Path], vote_dir: Path) -> VoteReport:
    """Choose and weigh the members greedily on validation rows, in bags against luck.

    Where the trials share no validation rows, all of them have the same say.
    """
    monitor = read_result(run_of(ballots[0])).get("monitor") or ""
    metric = {"val_f1_macro": "f1_macro", "val_loss": "nll"}.get(monitor, "acc")
    plain = VoteOptions(out_dir=str(vote_dir), metric=metric)
    if len(ballots) < 2:
        return run_vote(ballots, plain)
    try:
        bags = BAGS if len(ballots) <= MANY else 1
        return run_vote(ballots, dataclasses.replace(plain, select="greedy", bag=bags))
    except UserError as error:
        print(f"the vote is the plain mean: {error}")
        return run_vote(ballots, plain)


def write_report(search: Search, plan: Plan, vote_dir: Path, left: float | None) -> None:
    """Write the page with its pictures, which need torch: in a process of its own.

    Where that takes more than the seconds that are `left`, it is the page without them.
    """
    command = [
        sys.executable,
        str(Path(__file__).with_name("report.py")),
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
            print(f"to look at: {plan.page} (without its pictures, for which there was no time)")
        return
    if done.returncode == 0:
        print(f"to look at: {plan.page}")
    else:
        why = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        print(f"there is no report: {why.removeprefix('error: ')}")


def say_trouble(trouble: Trouble, search: Search) -> None:
    """Say why a search ended early, with the words of what failed, and what to do."""
    out = sys.stderr
    sys.stdout.flush()
    print(f"the search ended early: {trouble.what}", file=out)
    if trouble.trials:
        last = trouble.trials[-1]
        print(f"trial {last.sequence} ({last.id}) said at last:", file=out)
        for line in search.last_words(last.id, SHOWN).splitlines():
            print(f"    {line}", file=out)
    elif trouble.of_tuner and (words := search.tuner_words()):
        print(f"    the tuner said: {words}", file=out)
    print(
        f"what to do: {trouble.remedy} (NNI's own words: {search.folder / 'log'})",
        file=out,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
