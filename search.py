"""Search: check the configuration, let NNI try it, watch, then let the trials vote."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
import time
from pathlib import Path

from harness import experiment, guard, nni_config
from harness.artifacts import read_result
from harness.config import Parser
from harness.errors import UserError
from harness.errors import guard as guarded
from harness.experiment import Search, TrialRecord
from harness.poll import VoteOptions
from harness.space import check_search_space
from harness.tally import run_vote
from harness.tally_table import format_table


@dataclasses.dataclass(frozen=True)
class Plan:
    """A search that has been checked and can start."""

    config: object  # nni.experiment.config.ExperimentConfig
    outputs: Path
    max_trials: int | None
    max_seconds: float | None
    concurrency: int
    maximize: bool


@guarded
def main(argv: list[str] | None = None) -> int:
    """Run a search from its configuration to its vote."""
    args = build_parser().parse_args(argv)
    plan = preflight(args)
    if args.check:
        print(f"{args.config}: nothing is wrong with it")
        return 0
    print(f"starting NNI for {args.config} ...", flush=True)
    environment = threads_for(plan.concurrency)
    if not args.no_guard:
        environment |= guard.environment(public=args.public)
    search = experiment.start(plan.config, args.port, environment)
    interrupted = False
    try:
        if not args.no_guard:
            prove_guard(search, args.public)
        print(f"search {search.id}: http://127.0.0.1:{search.port} until it ends", flush=True)
        watch(search, plan)
    except KeyboardInterrupt:
        interrupted = True
        print("\nstopping: the running trials write what they have ...", flush=True)
    finally:
        search.stop()
    status = conclude(search, plan, Path(args.vote_dir))
    return 130 if interrupted else status


def build_parser() -> Parser:
    """Make the command line."""
    parser = Parser(prog="search.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="NNI configuration, as config_local.yml")
    add("--max_trials", type=int, metavar="N", help="trials in all, instead of the configuration's")
    add("--max_duration", metavar="TIME", help="time in all, such as 90s, 30m or 2h")
    add("--concurrency", type=int, metavar="K", help="trials at once")
    add("--port", type=int, default=8080, help="first port to try for NNI (default: 8080)")
    add("--vote_dir", default="ensemble", help="folder of the vote (default: ensemble)")
    add("--public", action="store_true", help="let other machines reach the portal")
    add("--no_guard", action="store_true", help="run NNI as it ships (docs/nni.md)")
    add("--check", action="store_true", help="check the configuration and stop")
    return parser


def preflight(args: object) -> Plan:
    """Check everything that can be checked before anything starts."""
    path = Path(args.config)
    config = nni_config.load_experiment(path)
    space = nni_config.read_search_space(config, path)
    check_search_space(space, str(config.search_space_file or path))
    nni_config.check_trial_command(config.trial_command, str(path))
    for name, value in (("max_trials", args.max_trials), ("concurrency", args.concurrency)):
        if value is not None and value < 1:
            raise UserError(f"command line: {name} is {value}; it must be at least 1")
    if args.max_trials:
        config.max_trial_number = args.max_trials
    if args.max_duration:
        seconds_of(args.max_duration, "command line")
        config.max_experiment_duration = args.max_duration
    if args.concurrency:
        config.trial_concurrency = args.concurrency
    local = config.training_service.platform == "local"
    if local:
        config.trial_command = experiment.with_own_interpreter(config.trial_command)
    code = Path(path.parent, config.trial_code_directory or ".").resolve()
    outputs = code / experiment.option_of(config.trial_command, "--out_dir", "outputs")
    limit = config.max_experiment_duration
    return Plan(config, outputs, config.max_trial_number,
                seconds_of(limit, str(path)) if limit else None, config.trial_concurrency,
                is_maximized(config, path))  # fmt: skip


def seconds_of(text: str | int, source: str) -> float:
    """Read a duration such as 90, 90s, 30m, 2h or 1d as seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", str(text).strip())
    if not found or float(found[1]) <= 0:
        raise UserError(f"{source}: {text!r} is no duration; as in 90s, 30m or 2h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def is_maximized(config: object, path: Path) -> bool:
    """Return which way the tuner goes; NNI's own default, minimize, is never what one means."""
    tuner = config.tuner
    if tuner is None:
        raise UserError(f"{path}: names no tuner; set tuner: {{name: TPE, ...}}")
    mode = (tuner.class_args or {}).get("optimize_mode")
    monitor = experiment.option_of(config.trial_command, "--monitor", "val_acc")
    wanted = "minimize" if "loss" in monitor or monitor.startswith("min ") else "maximize"
    if mode is not None and mode not in ("minimize", "maximize"):
        raise UserError(f"{path}: optimize_mode is {mode!r}; it is maximize or minimize")
    if (mode or "minimize") != wanted:
        said = mode or "not set, which NNI takes for minimize"
        raise UserError(f"{path}: optimize_mode is {said}, but the trials report {monitor}; "
                        f"set it to {wanted}")  # fmt: skip
    return wanted == "maximize"


def threads_for(concurrency: int) -> dict[str, str]:
    """Divide the cores among the trials: more threads than cores slow all of them down."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // concurrency))}


def prove_guard(search: Search, public: bool) -> None:
    """Refuse to go on where the guard did not take hold: NNI alone is open to the network."""
    wrong = guard.self_test(search.port, public=public)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(
            f"{wrong[0]}{more}; the search was stopped, --no_guard runs it all the same"
        )


def watch(search: Search, plan: Plan) -> None:
    """Show how the search goes until its last trial has ended."""
    began = time.time()
    shown = ""
    while True:
        status = search.status()
        trials = search.trials()
        line = progress_line(trials, plan, began, time.time())
        if sys.stdout.isatty():
            width = os.get_terminal_size().columns
            print(f"\r\x1b[K{line[: width - 1]}", end="", flush=True)
        elif line.split("|")[1:3] != shown:
            shown = line.split("|")[1:3]
            print(line, flush=True)
        if status in ("DONE", "STOPPED", "ERROR", "GONE"):
            break
        time.sleep(1)
    print()
    if status in ("ERROR", "GONE"):
        print(f"NNI ended with {status}; see {search.folder / 'log'}", file=sys.stderr)


def progress_line(trials: list[TrialRecord], plan: Plan, began: float, now: float) -> str:
    """Return trials done, running, best score and time left in one line."""
    done = [trial for trial in trials if trial.has_ended]
    running = [trial for trial in trials if trial.status == "RUNNING"]
    scores = [
        score for trial in trials for score in [*trial.scores, trial.final] if score is not None
    ]
    best = (max if plan.maximize else min)(scores, default=None)
    left = time_left(trials, plan, began, now)
    return (f"{clock(now - began)} | {len(done)}/{plan.max_trials or '?'} trials done, "
            f"{len(running)} running | best {'-' if best is None else format(best, '.4f')} | "
            f"{left} left")  # fmt: skip


def time_left(trials: list[TrialRecord], plan: Plan, began: float, now: float) -> str:
    """Estimate the time left from the mean time of the trials that have ended."""
    limit = None if plan.max_seconds is None else began + plan.max_seconds - now
    times = [trial.ended - trial.started for trial in trials if trial.ended and trial.started]
    if not times or not plan.max_trials:
        return "unknown time" if limit is None else f"at most {clock(limit)}"
    mean = sum(times) / len(times)
    spent = sum(min(mean, now - trial.started) for trial in trials
                if trial.started and not trial.ended)  # fmt: skip
    work = (plan.max_trials - len(times)) * mean - spent
    left = work / min(plan.concurrency, plan.max_trials)
    return f"about {clock(left if limit is None else min(left, limit))}"


def clock(seconds: float) -> str:
    """Write a time as 1:05 or 2:03:04."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def conclude(search: Search, plan: Plan, vote_dir: Path) -> int:
    """Let the trials vote, and say where everything is."""
    ballots = sorted(plan.outputs.glob(f"{search.id}-*.csv"))
    trials = search.trials()
    for trial in trials:
        say_failure(trial, plan.outputs, search)
    if not ballots:
        print(f"no trial of {search.id} left a ballot; the trials' own words are in "
              f"{search.folder / 'environments'}", file=sys.stderr)  # fmt: skip
        return 1
    report = run_vote(ballots, VoteOptions(out_dir=str(vote_dir)))
    print(format_table(report, shutil.get_terminal_size((100, 24)).columns))
    return 0


def say_failure(trial: TrialRecord, outputs: Path, search: Search) -> None:
    """Name a trial that did not end well, and why."""
    result = read_result(outputs / f"{search.id}-{trial.sequence:03d}-{trial.id}")
    if result.get("status") == "failed":
        print(f"trial {trial.sequence} ({trial.id}) failed: {result['reason']}")
    elif trial.status == "FAILED":
        print(f"trial {trial.sequence} ({trial.id}) failed: {search.last_words(trial.id)}")


if __name__ == "__main__":
    sys.exit(main())
