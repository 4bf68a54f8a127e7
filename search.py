"""Run a hyperparameter search, then combine its trials into one ensemble."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from ballot.installed import require

    require("numpy", "nni", "psutil")

from ballot.config.command_line import Parser
from ballot.config.schema import FIELDS, convert
from ballot.config.trial_command import parse_command
from ballot.cpus import threads_each
from ballot.data.survey import check_folder
from ballot.engines.choose import (
    DEFAULT,
    NAMES,
    AnyEngine,
    engine_of_config,
    find_search,
    load_engine,
    newest_search,
    outside_trials,
)
from ballot.engines.interface import Engine, Launch, Limits, Plan, Search
from ballot.errors import UserError
from ballot.machines import setup
from ballot.machines.ssh import has_terminal
from ballot.preflight import examine, machines, tryout
from ballot.preflight.machines import Reach
from ballot.problems import listed, note
from ballot.runs.trials import TrialRecord
from ballot.scripts import lasting_main
from ballot.search.conclusion import answer_lines, conclude, vote_folder, write_report
from ballot.search.plan import (
    PRESETS,
    REFIT_SHARE,
    ROOT,
    Prospect,
    Request,
    Schedule,
    concurrency_for,
    lines_of,
    new_place,
    options_of,
    portfolio_of,
    read_request,
    schedule_of,
    shapes_to_try,
    write_files,
)
from ballot.search.promote import promote
from ballot.search.refit import refit, refits_of
from ballot.search.resume import Record, decide
from ballot.search.status import list_lines, status_lines, table_of
from ballot.search.supervise import follow
from ballot.search.time_budget import Budget
from ballot.steady import steady_time
from ballot.wording import seconds_of, terminal_width


@lasting_main
def main(argv: list[str] | None = None) -> int:
    """Run a search from its configuration to its vote, or look after others."""
    began = steady_time()
    args = read_command_line(argv)
    every = AnyEngine()
    if args.list:
        print("\n".join(list_lines(every.known_searches())))
        return 0
    if args.status is not None:
        print("\n".join(status_lines(named_search(every, args.status, args.config))))
        return 0
    if args.stop is not None:
        return stop_searches(every, args.stop)
    if args.resume is not None:
        if args.warm_start:
            raise UserError("command line: --warm_start is for a new search; leave it out")
        search = named_search(every, args.resume, args.config)
        engine = every.of(search)
        with search.watched():
            return see_through(engine, *take_up(engine, search, args, began), args)
    if args.data_dir is not None:
        plan_from_folder(load_engine(args.engine or DEFAULT), args)
    if args.config is None:
        raise UserError(
            "command line: name what to search: --data_dir PHOTOS, or --config config_local.yml"
        )
    engine = chosen_engine(args)
    plan = preflight(engine, args)
    if plan is None:
        return 2
    if args.check:
        print(f"{args.config}: configuration OK")
        return 0
    search = begin(engine, plan, args)
    if args.data_dir is not None:
        for name in ("ensemble", "report.html"):
            link_here(name, Path(args.config).parent / name)
    budget = Budget(plan.max_seconds, began, away=plan.elsewhere)
    with search.watched():
        return see_through(engine, search, plan, budget, args)


def chosen_engine(args: Namespace) -> Engine:
    """Return the engine that a configuration is written for, which may be named as well."""
    engine = engine_of_config(Path(args.config))
    if args.engine not in (None, engine.name):
        raise UserError(
            f"command line: engine is {args.engine}, but {args.config} is for {engine.name}; "
            "leave --engine out"
        )
    return engine


def read_command_line(argv: list[str] | None) -> Namespace:
    """Read the flags; with --data_dir those of train.py may be added, fixed for all trials."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    refuse_misspelt(parser, rest)
    bounds = bounds_of(args)
    args.options, args.reserve, args.data = [*rest, *bounds], None, None
    args.bounds = bounds if args.data_dir is None else ()  # else they are options of the plan
    if args.data_dir is None:
        if rest:
            parser.refuse(rest[0])
    elif args.config is not None:
        raise UserError("command line: --config names its data itself; leave --data_dir out")
    return args


def refuse_misspelt(parser: Parser, rest: Sequence[str]) -> None:
    """Refuse a word that is nearer to a flag of this script than to one of train.py."""
    options = [f"--{prefix}{name}" for name in FIELDS for prefix in ("", "no_")]
    for word in rest:
        name = word.split("=")[0].split(".")[0].replace("-", "_").strip("_")
        known = f"--{name}" in options
        if word.startswith("--") and not known and parser.is_meant_by(word, options):
            parser.refuse(word)


def bounds_of(args: Namespace) -> tuple[str, ...]:
    """Return the options of train.py that bound the size of networks, as they were typed."""
    found: list[str] = []
    for name in ("max_params", "max_latency"):
        if (text := getattr(args, name)) is not None:
            convert(name, text, "command line")
            found += [f"--{name}", text]
    return tuple(found)


def build_parser() -> Parser:
    """Make the command line."""
    parser = Parser(prog="search.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--data_dir", metavar="DIR", help="folder of labelled images; the search is planned from it"
    )
    preset = "with --data_dir: fast runs many short trials, best few long ones (default: medium)"
    add("--preset", default="medium", choices=tuple(PRESETS), help=preset)
    refit = "retrain the best configurations on all rows (default: yes with --data_dir, else no)"
    add("--refit", choices=("yes", "no"), help=refit)
    add("--config", metavar="FILE", help="search configuration, such as config_local.yml")
    add("--engine", choices=NAMES, help="with --data_dir: what runs the trials (default: nni)")
    add("--max_trials", type=int, metavar="N", help="maximum number of trials, overrides --config")
    add("--max_duration", metavar="TIME", help="total time, ensemble included: 90s, 30m or 2h")
    add("--concurrency", type=int, metavar="K", help="number of trials that run at the same time")
    add("--trial_timeout", metavar="TIME", help="time limit of each trial; its best epoch counts")
    add_bounds(parser)
    keep = "keep the checkpoints of the N best trials only (default: keep all)"
    add("--keep_checkpoints", type=int, metavar="N", help=keep)
    add("--port", type=int, default=8080, help="first port to try for NNI (default: 8080)")
    add("--vote_dir", metavar="DIR", help="output folder of the ensemble (default: ensemble)")
    add(
        "--public",
        action="store_true",
        help="make the search's web page reachable from other machines",
    )
    add("--no_guard", action="store_true", help="run NNI without Ballot's fixes (docs/nni.md)")
    add("--check", action="store_true", help="check the configuration and stop")
    add("--no_probe", action="store_true", help="skip the check that trains one batch")
    warm = "earlier run folders, or folders of them, whose results initialise the tuner"
    add("--warm_start", nargs="+", default=[], metavar="DIR", help=warm)
    add_machine_options(parser)
    resume = "continue a search that was stopped or killed (default: the newest)"
    add("--resume", nargs="?", const="", metavar="ID", help=resume)
    add("--status", nargs="?", const="", metavar="ID", help="show a search and its trials")
    add("--list", action="store_true", help="list all searches")
    add("--stop", metavar="ID|all", help="stop a running search; its results are kept")
    return parser


def add_bounds(parser: Parser) -> None:
    """Add what bounds the networks of all trials; `bounds_of` reads it."""
    add = parser.add_argument
    few = "most parameters of a network, as in 10M; larger ones are not trained"
    add("--max_params", metavar="N", help=few)
    soon = "longest time of one image, as in 20ms; slower networks are not trained"
    add("--max_latency", metavar="TIME", help=soon)


def add_machine_options(parser: Parser) -> None:
    """Add what a search on other machines may need."""
    add = parser.add_argument
    install = "create or update the Python environment on each machine first (docs/remote.md)"
    add("--install", action="store_true", help=install)
    sync = "copy the data to each machine first (default folder: --data_dir of the trials)"
    add("--sync_data", nargs="?", const="", metavar="DIR", help=sync)
    accept = "trust new ssh host keys; a changed key is always refused"
    add("--accept_new_host_keys", action="store_true", help=accept)
    skip = "continue without the machines that fail their check"
    add("--skip_bad_machines", action="store_true", help=skip)
    add("--ssh_config", metavar="FILE", help="ssh configuration file (default: ~/.ssh/config)")


def plan_from_folder(engine: Engine, args: Namespace) -> None:
    """Plan a search of a folder, write it as files, and go on with these."""
    request = Request(
        data_dir=Path(args.data_dir).expanduser(),
        options=args.options,
        max_seconds=limits_of(args).max_seconds,
        preset=args.preset,
        concurrency=args.concurrency,
        max_trials=args.max_trials,
        refit=args.refit != "no",
    )
    fixed = read_request(request)
    check_folder(request.data_dir, fixed.base)
    answers = try_first(options_of(request), args.concurrency or concurrency_for(0))
    facts = answers.facts[0]
    gpus = answers.gpus if facts["device"] != "cpu" else 0
    prospect = Prospect(
        fixed=fixed,
        trial_s=tryout.seconds_of_trial(facts),
        concurrency=args.concurrency or concurrency_for(gpus),
        mode=facts["mode"],
    )
    schedule, place = schedule_of(prospect, request), new_place(request.data_dir)
    prospect = within_bounds(prospect, schedule, request)
    config = write_files(engine, request, prospect, schedule, place)
    print("\n".join(lines_of(prospect, schedule, place)), flush=True)
    args.config, args.max_duration = str(config), f"{schedule.total:g}s"
    args.vote_dir = args.vote_dir or str(place / "ensemble")
    args.refit = args.refit or ("yes" if schedule.refit else "no")
    args.no_probe, args.reserve = True, schedule.refit


def try_first(options: Sequence[str], at_once: int) -> tryout.Answers:
    """Try a batch with the options of all trials; what is wrong is raised, the rest printed."""
    command = parse_command(shlex.join(["python3", "train.py", *options]), ROOT)
    inherited = outside_trials(os.environ)
    with passing_words("looking at the data, and trying a batch ..."):
        item = tryout.Item("the first configuration", {}, steps=True)
        trial = tryout.start(command, ROOT, [item], threads_each(at_once), inherited)
        answers = trial.finish()
    for problem in tryout.problems_of(answers, "data_dir", "data_dir"):
        if problem.fatal:
            raise UserError(str(problem))
        print(note(problem, terminal_width() - 1))
    return answers


def within_bounds(prospect: Prospect, schedule: Schedule, request: Request) -> Prospect:
    """Find out which networks are above the bounds, and say which are left out."""
    shapes = shapes_to_try(prospect, schedule)
    if not shapes:
        return prospect
    command = parse_command(shlex.join(["python3", "train.py", *options_of(request)]), ROOT)
    items = [
        tryout.Item("a network", shape, steps=not number) for number, shape in enumerate(shapes)
    ]
    with passing_words("measuring the networks ..."):
        threads = threads_each(prospect.concurrency)
        answers = tryout.start(command, ROOT, items, threads, outside_trials(os.environ)).finish()
    above = [shapes[number] for number in answers.above]
    prospect = replace(prospect, above=above)
    if not portfolio_of(prospect, schedule).first:
        problem = next(iter(tryout.problems_of(answers, "data_dir", "data_dir")))
        raise UserError(str(problem))
    if above:
        words = [" at ".join(map(str, shape.values())) for shape in above]
        print(f"left out, above the bounds: {', '.join(words).replace('timm:', '')}", flush=True)
    return prospect


def link_here(name: str, target: Path) -> None:
    """Let a name in this folder lead to the newest search; what is no link of ours stays."""
    link = Path(name)
    if link.is_symlink():
        link.unlink()
    with contextlib.suppress(OSError):  # something of that name is there, or links are not
        link.symlink_to(target)


def preflight(engine: Engine, args: Namespace) -> Plan | None:
    """Check everything that can be checked before anything starts; None where something is wrong.

    A single problem is raised, several are listed.
    """
    path, width = Path(args.config), terminal_width() - 1
    limits = limits_of(args)
    reach = reach_machines(engine, args)
    with passing_words(f"checking {path} ..."):
        findings = examine.examine(
            engine,
            path,
            limits,
            port=args.port,
            guarded=not args.no_guard,
            probe=not args.no_probe,
            reach=reach,
            warm_start=args.warm_start,
            inherited=outside_trials(os.environ),
        )
    if len(findings.errors) == 1:
        raise UserError(str(findings.errors[0]))
    if findings.errors:
        heading = f"error: {path}: {len(findings.errors)} things are wrong"
        print(listed(findings.errors, heading, width), file=sys.stderr)
        return None
    for each in findings.notes:
        print(note(each, width))
    if findings.estimate:
        print(findings.estimate, flush=True)
    links = [] if args.no_guard else reach.links
    return findings.draft.plan(links, maximize=findings.aim[1] == "max")


def reach_machines(engine: Engine, args: Namespace) -> Reach:
    """Connect to the machines of a search, and set them up where the command line says so."""
    path, wants = Path(args.config), args.install or args.sync_data is not None
    reach = machines.reach(
        engine,
        path,
        accept_new_host_keys=args.accept_new_host_keys,
        ssh_config=args.ssh_config,
        interactive=has_terminal(),
        skip_bad=args.skip_bad_machines,
    )
    if wants and not reach.machines and not reach.problems:
        args.data = data_for_nodes(engine, args)
        return reach
    if args.install:
        requirements = Path(__file__).with_name("requirements.txt")
        reach.problems += setup.install(reach.links, requirements)
    if args.sync_data is not None:
        draft, _ = engine.read(path, Limits(), guarded=not args.no_guard)
        local, there = machines.data_folders(draft.outline, path, args.sync_data)
        reach.problems += setup.sync_data(reach.links, local, there)
    return reach


def data_for_nodes(engine: Engine, args: Namespace) -> Path:
    """Return the folder that an engine is to copy to the nodes of a cluster."""
    path = Path(args.config)
    draft, _ = engine.read(path, Limits(), guarded=not args.no_guard)
    if draft.outline.is_local:
        raise UserError(
            f"{path}: names no machines that are reached over ssh; leave --install and "
            "--sync_data out, which set up such"
        )
    if args.install:
        raise UserError(
            f"{path}: --install sets up machines that are reached over ssh; nodes of a cluster "
            "have their packages from their image or environment (docs/clusters.md)"
        )
    local, _ = machines.data_folders(draft.outline, path, args.sync_data)
    if not local.is_dir():
        raise UserError(f"sync_data: {local} is not a folder; give the folder with the data")
    return local.resolve()


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


def limits_of(args: Namespace) -> Limits:
    """Return what the command line says of limits."""
    for name, value in (
        ("max_trials", args.max_trials),
        ("concurrency", args.concurrency),
        ("keep_checkpoints", args.keep_checkpoints),
    ):
        if value is not None and value < 1:
            raise UserError(f"command line: {name} is {value}; it must be at least 1")
    seconds, trial_seconds = (
        seconds_of(text, "command line") if text else None
        for text in (args.max_duration, args.trial_timeout)
    )
    return Limits(args.max_trials, seconds, args.concurrency, trial_seconds, args.bounds)


def begin(engine: Engine, plan: Plan, args: Namespace) -> Search:
    """Start a new search, and write down what it takes to go on with it."""
    folder = plan.outputs.parent
    if not os.access(next(f for f in (folder, *folder.parents) if f.exists()), os.W_OK):
        raise UserError(f"{folder}: cannot be written, where the results are to be")
    print(f"starting the search of {args.config} ...", flush=True)
    note = {
        "config": str(Path(args.config).resolve()),
        "folder": str(Path.cwd()),
        "vote_dir": str(Path(args.vote_dir or "ensemble").absolute()),
        "guarded": not args.no_guard,
        "public": args.public,
        "reserve": reserve_of(args, plan.max_seconds),
    }
    launch = Launch(args.port, not args.no_guard, args.public, args.data)
    return engine.start(plan, launch, note)


def reserve_of(args: Namespace, seconds: float | None) -> float | None:
    """Return the seconds that are kept for training the best again; None where that is not done."""
    if args.refit != "yes":
        return None
    if args.reserve is not None:
        return float(args.reserve)
    return 0.0 if seconds is None else REFIT_SHARE * seconds


def named_search(engine: AnyEngine, search_id: str, config: str | None) -> Search:
    """Return the search of an id, or the newest of a configuration or of this folder."""
    if search_id:
        return find_search(engine, search_id)
    return newest_search(engine, Path(config).resolve() if config else None)


def take_up(
    engine: Engine, search: Search, args: Namespace, began: float
) -> tuple[Search, Plan, Budget]:
    """Go on with a search: watch what runs of it, or start it again."""
    trials = search.trials()
    record = Record(
        plan=search.plan(),
        note=search.note(),
        trials=trials,
        state=search.status().state,
        is_running=search.is_running(),
        seconds_counted=search.seconds_counted(),
    )
    decision = decide(record, limits_of(args), began)
    plan, budget = decision.plan, decision.budget
    if decision.action == "watch":
        if decision.counts:
            search.amend_note(**decision.counts)
        search.change_limits(decision.limits)
        print(f"search {search.id} still runs: watching it", flush=True)
        return search, search.reconnected(plan), budget
    if decision.action == "complete":
        print(f"search {search.id} is complete; a larger {decision.more} goes on with it")
        if record.note.get("reserve") is not None and budget.left_for_trials(began) > 0:
            check_data(search, plan, trials)  # the best may be trained again
        return search, search.reconnected(plan), budget
    check_data(search, plan, trials)
    search.stop()  # what hangs, what is to run with other limits, and what a dead manager left
    search.record(plan)
    if decision.counts:
        search.amend_note(**decision.counts)
    ended = sum(trial.has_ended for trial in trials)
    print(f"resuming search {search.id}: {ended} trials have ended ...", flush=True)
    plan = search.reconnected(plan)
    return engine.resume(search, plan, launch_of(args, record.note)), plan, budget


def check_data(search: Search, plan: Plan, trials: Sequence[TrialRecord]) -> None:
    """Refuse to train more on other data than the search was begun with, where they are here."""
    if not plan.elsewhere:
        with passing_words("checking the data ..."):
            tryout.check_data_of(
                table_of(search, plan), plan, trials, inherited=outside_trials(os.environ)
            )


def launch_of(args: Namespace, note: Mapping[str, Any]) -> Launch:
    """Return how a search is started again: as safe or as open as it was, or as it is asked for."""
    guarded = not args.no_guard and note.get("guarded", True)
    return Launch(args.port, guarded, args.public or note.get("public", False))


def stop_searches(engine: AnyEngine, wanted: str) -> int:
    """Stop one search, or all that search.py started and that run."""
    if wanted == "all":
        searches = [s for s in engine.known_searches() if s.note() and s.is_running()]
    else:
        searches = [find_search(engine, wanted)]
    for search in searches:
        if not search.is_running() and not search.has_leftovers():
            print(f"search {search.id} does not run")
            continue
        print(f"stopping search {search.id}: its trials write what they have ...", flush=True)
        search.stop()
        print(f"search {search.id} is stopped; --resume {search.id} goes on with it")
    if not searches:
        print("no search runs")
    return 0


def see_through(engine: Engine, search: Search, plan: Plan, budget: Budget, args: Namespace) -> int:
    """Follow a search to its end, however it comes, train the best again, and let all vote."""
    note, results = search.note(), table_of(search, plan)
    launch, reserve = launch_of(args, note), note.get("reserve")
    if args.keep_checkpoints is not None:
        search.amend_note(keep_checkpoints=args.keep_checkpoints)
    budget.hold(reserve or 0.0)
    end = follow(search, plan, results, budget, launch)
    uses_all_time = reserve is not None or plan.max_trials is None
    if end.is_regular and uses_all_time:
        end = promote(engine, search, plan, results, budget, launch) or end
    if end.is_regular and reserve is not None:
        budget.hold(0.0)
        end = refit(engine, search, plan, results, budget, launch)
    vote_dir = vote_folder(args.vote_dir, note.get("vote_dir"), search.id)
    report = conclude(
        search, plan, results, end, vote_dir, budget, refits=refits_of(results, search.trials())
    )
    hurried = end.over or budget.closed
    write_report(search, plan, vote_dir, budget.left(steady_time()) if hurried else None)
    search.amend_note(spent=budget.spent(steady_time()))
    if report is not None:
        print("\n".join(answer_lines(report, plan, vote_dir)))
    if end.interrupted:
        print(f"continue with: python search.py --resume {search.id}")
        return 130
    return 0 if report is not None and end.trouble is None else 1


if __name__ == "__main__":
    sys.exit(main())
