"""Everything that is wrong with a search, found before anything starts (docs/preflight.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ballot.config.layers import Layer, merge
from ballot.config.schema import Config, parse_monitor
from ballot.config.search_space import ROWS, count, find_problems, keys_of
from ballot.config.trial_command import (
    Options,
    TrialCommand,
    command_problems,
    own_problems,
    parse_command,
    read_options,
)
from ballot.cpus import threads_each
from ballot.engines.nni.algorithms import add_warm_start, name_of
from ballot.engines.nni.checks import (
    count_gpus,
    gpu_problems,
    port_problems,
    upload_problems,
    version_problems,
)
from ballot.engines.nni.config import (
    Outline,
    algorithm_problems,
    give_aim,
    outline,
    read_content,
    samples,
    seconds_of,
    startup_notes,
    to_experiment,
)
from ballot.errors import UserError
from ballot.preflight import machines, tryout
from ballot.preflight.machines import Reach
from ballot.preflight.tryout import Answers, Tryout
from ballot.problems import Problem, as_problem

DRAWN = 16  # configurations that the tuner draws to see whether trials take them


@dataclass
class Found:
    """A search's configuration as NNI takes it (None where it does not), and what was found."""

    path: Path
    told: Outline
    config: Any = None  # nni.experiment.config.ExperimentConfig
    aim: tuple[str, str] = ("val_acc", "max")  # what is searched for, and which way
    problems: list[Problem] = field(default_factory=list)
    estimate: str = ""

    @property
    def errors(self) -> list[Problem]:
        """What must be mended before the search can start."""
        return [problem for problem in self.problems if problem.fatal]

    @property
    def notes(self) -> list[Problem]:
        """What is worth knowing."""
        return [problem for problem in self.problems if not problem.fatal]


def examine(
    path: Path,
    limits: Callable[[str], Mapping[str, Any]],
    *,
    port: int = 8080,
    guarded: bool = True,
    probe: bool = True,
    reach: Reach | None = None,
    warm_start: Sequence[str] = (),
) -> Found:
    """Check all that can be checked of a search without starting it.

    `limits` returns, for a trial command, what the command line says instead of the file, by NNI's
    names; `warm_start` has the folders of earlier runs. While NNI is imported here, the trial's
    interpreter tries configurations, and the machines of `reach` are asked.
    """
    content = read_content(path)
    told, problems = outline(content, path)
    changed = {_snake(key): value for key, value in limits(told.command).items()}
    command = TrialCommand(told.command)
    if not command_problems(told.command, str(path)):
        command = parse_command(changed.get("trial_command", told.command), told.code)
    found = Found(path, told, problems=problems)
    at_once = changed.get("trial_concurrency", told.concurrency)
    options = _check_words(found, command)
    found.problems += version_problems() + port_problems(port, told.platform)
    with ExitStack() as stack:
        trial = None
        if probe and told.platform == "local" and options.config is not None:
            trial = _try(found, options, at_once)
            if trial is not None:
                stack.callback(trial.end)
        asked = stack.enter_context(ThreadPoolExecutor(1)).submit(
            machines.examine, reach or Reach(), told, options.config, guarded
        )
        stack.push(lambda kind, *_: reach.close() if kind and reach else None)  # on Ctrl-C
        if _has_nni(found):
            _check_nni(found, changed, guarded)
        if found.config is not None:
            found.problems += add_warm_start(found.config, warm_start, told.code, path)
        answers = trial.finish() if trial else None
        problems, found.estimate = asked.result()
        found.problems += problems
    _conclude(found, options, answers, guarded)
    if reach is not None and found.config is not None:
        found.problems = machines.leave_out(found.config, reach, found.problems)
    found.problems = list({(p.where, p.what): p for p in found.problems}.values())
    return found


def _snake(name: str) -> str:
    return re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name)


def _check_words(found: Found, command: TrialCommand) -> Options:
    """Check the trial command, its options and the search space against them."""
    told, where = found.told, str(found.path)
    wrong = command_problems(told.command, where)
    found.problems += wrong
    ours = command.script >= 0
    names_script = bool(wrong) or ours
    found.problems += [
        as_problem(error)
        for error in find_problems(told.space, told.space_source, ours=names_script)
    ]
    if not ours:
        if told.command and not wrong:
            found.problems += _foreign(told, where)
        return Options()
    options, problems = read_options(command, told.code, where)
    found.problems += problems
    if options.config is not None:
        found.problems += own_problems(options.config, where)
        if told.platform == "local":
            found.problems += data_problems(options.config, told.code, where)
        else:
            found.problems += machines.command_problems(told, options.config, where)
    return options


def _foreign(told: Outline, where: str) -> list[Problem]:
    script = re.search(r"(?:^|\s|/)(train\.py)\b", told.command)
    if script and not (told.code / "train.py").exists():
        what = f"trialCodeDirectory {told.code} has no train.py"
        return [Problem(where, what, "name the project's folder")]
    what = "the trial command runs another script, whose options are not checked"
    return [Problem(where, what, fatal=False)]


def data_problems(config: Config, code: Path, where: str) -> list[Problem]:
    """Return the folders and files of a trial that are not there."""
    found = []
    for key, file in (
        ("data_dir", config.data_dir),
        ("init_from", config.init_from),
        *(("plugins", file) for file in config.plugins),
    ):
        if file is not None and not Path(code, Path(file).expanduser()).exists():
            found.append(Problem(where, f"{key}: {file} is not there, seen from {code}"))
    return found


def _has_nni(found: Found) -> bool:
    return not any(problem.where == "nni" for problem in found.problems)


def _try(found: Found, options: Options, at_once: int) -> Tryout | None:
    """Begin to try what is valid of the search space; None where the command does not run."""
    told = found.told
    if options.config is None or options.command is None:
        return None
    valid = {
        key: spec
        for key, spec in told.space.items()
        if not find_problems({key: spec}, told.space_source)
    }
    missing = data_problems(options.config, told.code, "")
    items = tryout.what_to_try(valid, train=not missing)
    try:
        return tryout.start(options.command, told.code, items, threads_each(at_once))
    except OSError as error:
        what = f"a trial does not start: {options.command.words[0]}: {error.strerror}"
        found.problems.append(Problem(str(found.path), what, "correct trialCommand"))
        return None


def _check_nni(found: Found, changed: Mapping[str, Any], guarded: bool) -> None:
    """Let NNI read the configuration, and check what it would take and then fail on."""
    path, told = found.path, found.told
    if guarded and told.platform == "remote":
        told = replace(told, content=machines.filled_in(told.content, path.parent))
    config, problems = to_experiment(told, path)
    found.problems += problems
    if found.told.version == 1:
        what = "is written for NNI before version 2.0 and was converted"
        found.problems.append(Problem(str(path), what, fatal=False))
    if config is None:
        return
    limit = changed.get("max_experiment_duration", config.max_experiment_duration)
    try:
        limit = None if limit is None else f"{seconds_of(limit, str(path)):g}s"
    except UserError as error:
        found.problems.append(as_problem(error))
        limit = None
    for name, value in {**changed, "max_experiment_duration": limit}.items():
        setattr(config, name, value)
    if config.use_annotation:
        what, remedy = "useAnnotation is not supported", "leave it out and set searchSpaceFile"
        found.problems.append(Problem(str(path), what, remedy))
    if getattr(config.training_service, "reuse_mode", False) is True and guarded:
        what = "reuseMode: true runs code of NNI's that the guard does not cover"
        found.problems.append(Problem(str(path), what, "leave it out: it is slower, too"))
    found.config = config


def _conclude(found: Found, options: Options, answers: Answers | None, guarded: bool) -> None:
    """Add what only NNI and the trial together can tell."""
    told, where = found.told, str(found.path)
    if answers is not None:
        found.problems += tryout.problems_of(answers, where, told.space_source)
    found.aim = (answers.aim if answers else None) or _guess_aim(options.config)
    config = found.config
    if config is None:
        return
    monitor, way = found.aim
    mode = "maximize" if way == "max" else "minimize"
    known = options.config is not None  # of another's script nobody knows what it reports
    if any("monitor" in layer.values for layer in options.layers):
        give_aim(config, mode)  # once is enough
    algorithms = algorithm_problems(config, mode if known else "", monitor, found.path)
    found.problems += algorithms
    gpus = answers.gpus if answers and answers.measured else count_gpus()
    local = told.platform == "local"
    if local:
        found.problems += gpu_problems(config, options.config, gpus, where, guarded=guarded)
    else:
        found.problems += upload_problems(told.code)
    found.problems += space_notes(config, options, told)
    if not algorithms and not find_problems(told.space, "", ours=False):
        found.problems += draw_problems(config, options, told)
    if answers is not None and not found.errors:
        limit = config.max_experiment_duration
        seconds = None if limit is None else seconds_of(limit, where)
        at_once = _at_once(config, options.config, answers.gpus)
        trials = config.max_trial_number
        found.estimate = tryout.estimate(answers, trials, at_once, seconds)
        found.problems += tryout.memory_notes(answers, at_once, where)
        found.problems += tryout.capacity_notes(answers, at_once, where)


def _guess_aim(config: Config | None) -> tuple[str, str]:
    monitor = config.monitor if config is not None else "val_acc"
    try:
        return parse_monitor(monitor, "loss" in monitor)
    except UserError:
        return monitor, "max"


def _at_once(config: Any, options: Config | None, gpus: int) -> int:
    wanted = config.trial_concurrency
    if gpus and config.trial_gpu_number is None and options and options.device == "auto":
        return min(wanted, gpus * options.trials_per_gpu)
    return wanted


def space_notes(config: Any, options: Options, told: Outline) -> list[Problem]:
    """Say what of the search space is hardly meant so."""
    where, source = str(told.space_source), told.space_source
    found = startup_notes(config, Path(source))
    if find_problems(told.space, source, ours=False):
        return found
    number, trials = count(told.space), config.max_trial_number
    if trials and number < trials:
        what = f"holds {number:.0f} configurations, so that the search ends before {trials} trials"
        found.append(Problem(source, what, fatal=False))
    if trials is None and config.max_experiment_duration is None and number == float("inf"):
        what = "nothing ends this search but Ctrl-C"
        found.append(Problem(where, what, "set maxTrialNumber or maxExperimentDuration", False))
    searched = set(keys_of(told.space))
    for key in sorted(searched & {k for layer in options.layers[-1:] for k in layer.values}):
        what = f"{key} is in trialCommand and in the search space"
        found.append(Problem(source, what, "the search space wins", fatal=False))
    if rows := sorted(searched & set(ROWS)):
        what = f"{', '.join(rows)} is searched: trials are scored on other rows, as on other exams"
        found.append(Problem(source, what, fatal=False))
    return found


def draw_problems(config: Any, options: Options, told: Outline) -> list[Problem]:
    """Let the tuner draw configurations, and check that a trial would take each."""
    try:
        drawn = samples(config, told.space, DRAWN)
    except Exception as error:  # whatever NNI's tuners make of a space they were not made for
        said = " ".join(str(error).split()) or type(error).__name__
        what = f"the tuner {name_of(config.tuner)} cannot draw from it: {said}"
        return [Problem(told.space_source, what)]
    if options.config is None:
        return []
    return [as_problem(text) for text in _refused(drawn, options.layers, told.space_source)]


def _refused(drawn: Iterable[Mapping[str, Any]], layers: list[Layer], source: str) -> list[str]:
    found: dict[str, None] = {}
    for values in drawn:
        try:
            merge([*layers, Layer(source, values)])
        except UserError as error:
            found[str(error)] = None
    return list(found)
