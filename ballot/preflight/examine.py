"""Everything that is wrong with a search, found before anything starts (docs/preflight.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ballot.config.layers import merge
from ballot.config.schema import Config, parse_monitor
from ballot.config.search_space import ROWS, count, find_problems, keys_of
from ballot.config.trial_command import TrialCommand, command_problems, parse_command
from ballot.cpus import count_cores, threads_each, threads_told
from ballot.engines.interface import Draft, Engine, Limits, Outline
from ballot.errors import UserError
from ballot.preflight import machines, tryout
from ballot.preflight.machines import Reach
from ballot.preflight.tryout import Answers, Tryout
from ballot.problems import Problem, as_problem
from ballot.training.options import PLACES, Options, own_problems, read_options
from ballot.values import Layer, Values

DRAWN = 16  # configurations that the tuner draws to see whether trials take them


@dataclass
class Findings:
    """A search's configuration as its engine read it, and what was found."""

    path: Path
    draft: Draft
    aim: tuple[str, str] = ("val_acc", "max")  # what is searched for, and which way
    problems: list[Problem] = field(default_factory=list)
    estimate: str = ""

    @property
    def outline(self) -> Outline:
        """What can be said of the configuration before the engine has read all of it."""
        return self.draft.outline

    def drop_repeated(self) -> None:
        """Keep one of the problems that say the same."""
        self.problems = list({(p.where, p.what): p for p in self.problems}.values())

    @property
    def errors(self) -> list[Problem]:
        """What must be mended before the search can start."""
        return [problem for problem in self.problems if problem.fatal]

    @property
    def notes(self) -> list[Problem]:
        """What is worth knowing."""
        return [problem for problem in self.problems if not problem.fatal]


def examine(
    engine: Engine,
    path: Path,
    limits: Limits,
    *,
    port: int = 8080,
    guarded: bool = True,
    probe: bool = True,
    reach: Reach | None = None,
    warm_start: Sequence[str] = (),
    inherited: Mapping[str, str] | None = None,
) -> Findings:
    """Check all that can be checked of a search without starting it.

    `limits` is the command line's, `warm_start` has folders of earlier runs, `inherited` is the
    environment of trials. The engine, a trial's interpreter and machines are asked at once.
    """
    draft, problems = engine.read(path, limits, guarded=guarded)
    findings, outline = Findings(path, draft, problems=problems), draft.outline
    options = _check_words(findings, limits)
    missing = draft.environment_problems(port)
    findings.problems += missing
    with ExitStack() as stack:
        trial = _try(findings, options, inherited) if probe and outline.is_local else None
        if trial is not None:
            stack.callback(trial.end)
        asked = stack.enter_context(ThreadPoolExecutor(1)).submit(
            machines.examine, reach or Reach(), draft, options.config
        )
        stack.push(lambda kind, *_: reach.close() if kind and reach else None)  # on Ctrl-C
        if not any(problem.where == engine.name for problem in missing):  # it is installed
            findings.problems += draft.complete(warm_start)
        answers = trial.finish() if trial else None
        problems, findings.estimate = asked.result()
        findings.problems += problems
    _conclude(findings, options, answers, probe=probe)
    if reach is not None and draft.is_complete:
        findings.problems = machines.leave_out(draft, reach, findings.problems)
    findings.drop_repeated()
    return findings


def _check_words(findings: Findings, limits: Limits) -> Options:
    """Check the trial command, its options and the search space against them."""
    outline, where = findings.outline, str(findings.path)
    command, wrong = TrialCommand(outline.command), command_problems(outline.command, where)
    if not wrong:
        command = parse_command(limits.command(outline.command), outline.code)
    findings.problems += wrong
    ours = command.script >= 0
    findings.problems += [
        as_problem(error)
        for error in find_problems(outline.space, outline.space_source, ours=bool(wrong) or ours)
    ]
    if not ours:
        if outline.command and not wrong:
            findings.problems += _foreign(outline, where)
        return Options()
    options, problems = read_options(command, outline.code, where)
    findings.problems += problems
    if options.config is not None:
        findings.problems += own_problems(options.config, where)
        if outline.is_local:
            findings.problems += data_problems(options.config, outline.code, where)
        else:
            findings.problems += machines.command_problems(findings.draft, options.config, where)
    return options


def _foreign(told: Outline, where: str) -> list[Problem]:
    script = re.search(r"(?:^|\s|/)(train\.py)\b", told.command)
    if script and not (told.code / "train.py").exists():
        what = f"the folder of the code, {told.code}, has no train.py"
        return [Problem(where, what, "name the project's folder")]
    what = "the trial command runs another script, whose options are not checked"
    return [Problem(where, what, fatal=False)]


def data_problems(config: Config, code: Path, where: str) -> list[Problem]:
    """Return the folders and files of a trial that are not there."""
    found = []
    for key, file in (
        *((key, getattr(config, key)) for key in PLACES),
        *(("plugins", file) for file in config.plugins),
    ):
        if file is not None and not Path(code, Path(file).expanduser()).exists():
            found.append(Problem(where, f"{key}: {file} is not there, seen from {code}"))
    return found


def _try(
    findings: Findings, options: Options, inherited: Mapping[str, str] | None
) -> Tryout | None:
    """Begin to try what is valid of the search space; None where the command does not run."""
    outline = findings.outline
    if options.config is None or options.command is None:
        return None
    valid = {
        key: spec
        for key, spec in outline.space.items()
        if not find_problems({key: spec}, outline.space_source)
    }
    missing = data_problems(options.config, outline.code, "")
    items = tryout.what_to_try(valid, train=not missing)
    threads = threads_each(findings.draft.concurrency)
    try:
        return tryout.start(options.command, outline.code, items, threads, inherited)
    except OSError as error:
        what = f"a trial does not start: {options.command.words[0]}: {error.strerror}"
        remedy = "correct the trial command"
        findings.problems.append(Problem(str(findings.path), what, remedy))
        return None


def _conclude(
    findings: Findings, options: Options, answers: Answers | None, *, probe: bool
) -> None:
    """Add what only the engine and the trial together can tell."""
    draft, outline, where = findings.draft, findings.outline, str(findings.path)
    if answers is not None:
        findings.problems += tryout.problems_of(answers, where, outline.space_source)
    findings.aim = (answers.aim if answers else None) or _guess_aim(options.config)
    if not draft.is_complete:
        return
    monitor, way = findings.aim
    mode = "maximize" if way == "max" else "minimize"
    known = options.config is not None  # of another's script nobody knows what it reports
    if any("monitor" in layer.values for layer in options.layers):
        draft.give_aim(mode)  # once is enough
    algorithms = draft.algorithm_problems(mode if known else "", monitor)
    findings.problems += algorithms
    gpus = answers.gpus if answers and answers.measured else None
    findings.problems += draft.resource_problems(options.config, gpus)
    if outline.is_local:
        findings.problems += thread_notes(draft.concurrency, where)
    findings.problems += space_notes(draft, options)
    if not algorithms and not find_problems(outline.space, "", ours=False):
        findings.problems += draw_problems(draft, options)
    if answers is not None and not findings.errors:
        at_once = _at_once(draft, options.config, answers.gpus)
        findings.estimate = tryout.estimate(answers, draft.max_trials, at_once, draft.max_seconds)
        findings.problems += tryout.memory_notes(answers, at_once, where)
        if options.config is not None:
            source = outline.space_source
            findings.problems += tryout.unmeasured_notes(answers, options.config, source)
        findings.problems += tryout.capacity_notes(answers, at_once, where)
    if probe:
        _say_what_is_not_tried(findings, options)


def _say_what_is_not_tried(findings: Findings, options: Options) -> None:
    outline = findings.outline
    if not outline.is_local and options.config is not None and not findings.errors:
        source = outline.space_source
        findings.problems += tryout.elsewhere_notes(outline.space, options.config, source)


def _guess_aim(config: Config | None) -> tuple[str, str]:
    monitor = config.monitor if config is not None else "val_acc"
    try:
        return parse_monitor(monitor, "loss" in monitor)
    except UserError:
        return monitor, "max"


def _at_once(draft: Draft, options: Config | None, gpus: int) -> int:
    if gpus and not draft.assigns_gpus and options and options.device == "auto":
        return min(draft.concurrency, gpus * options.trials_per_gpu)
    return draft.concurrency


def thread_notes(at_once: int, where: str) -> list[Problem]:
    """Warn of more threads than cores, with which all trials at once are slower."""
    told, share = threads_told(), threads_each(at_once)
    if told is None or told <= share:
        return []
    what = (
        f"OMP_NUM_THREADS={told} gives {at_once} trials at once {told * at_once} threads on "
        f"{count_cores()} cores"
    )
    return [Problem(where, what, f"unset it, or set it to {share}", fatal=False)]


def space_notes(draft: Draft, options: Options) -> list[Problem]:
    """Say what of the search space is hardly meant so."""
    space, source = draft.outline.space, draft.outline.space_source
    notes = draft.startup_notes()
    if find_problems(space, source, ours=False):
        return notes
    number, trials = count(space), draft.max_trials
    if trials and number < trials:
        what = f"holds {number:.0f} configurations, so that the search ends before {trials} trials"
        notes.append(Problem(source, what, fatal=False))
    if trials is None and draft.max_seconds is None and number == float("inf"):
        what = "nothing ends this search but Ctrl-C"
        remedy = "set --max_trials or --max_duration"
        notes.append(Problem(source, what, remedy, fatal=False))
    searched = set(keys_of(space))
    for key in sorted(searched & {k for layer in options.layers[-1:] for k in layer.values}):
        what = f"{key} is in the trial command and in the search space"
        notes.append(Problem(source, what, "the search space wins", fatal=False))
    if rows := sorted(searched & set(ROWS)):
        what = f"{', '.join(rows)} is searched: trials are scored on other rows, as on other exams"
        notes.append(Problem(source, what, fatal=False))
    return notes


def draw_problems(draft: Draft, options: Options) -> list[Problem]:
    """Let the tuner draw configurations, and check that a trial would take each."""
    source = draft.outline.space_source
    try:
        drawn = draft.draw(DRAWN)
    except Exception as error:  # whatever tuners make of a space they were not made for
        reason = " ".join(str(error).split()) or type(error).__name__
        what = f"the tuner {draft.tuner_name()} cannot draw from it: {reason}"
        return [Problem(source, what)]
    if options.config is None:
        return []
    return [as_problem(text) for text in _refused(drawn, options.layers, source)]


def _refused(drawn: Iterable[Values], layers: list[Layer], source: str) -> list[str]:
    found: dict[str, None] = {}
    for values in drawn:
        try:
            merge([*layers, Layer(source, values)])
        except UserError as error:
            found[str(error)] = None
    return list(found)
