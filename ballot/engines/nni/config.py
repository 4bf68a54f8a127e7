"""The configuration of a search: NNI's own file, version 1 or 2, and what NNI makes of it.

Everything here can be said without a manager. What NNI 3.0 takes and then fails on is refused, each
with the reason (docs/preflight.md).
"""

from __future__ import annotations

import copy
import json
import logging
import math
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ballot.config.parsing import parse_json, parse_yaml
from ballot.config.templates.keys import space_in_our_words
from ballot.engines.interface import Outline
from ballot.engines.nni import algorithms
from ballot.engines.nni.algorithms import OURS, is_ours, name_of
from ballot.engines.nni.spelling import plain
from ballot.errors import UserError, suggest
from ballot.names import resolved
from ballot.problems import Problem, as_problem
from ballot.values import Json, Values

WORKING_TUNERS = ("TPE", "Random", "Evolution", "GridSearch")

# Aliases of NNI included; lower case, as NNI compares them.
BROKEN_TUNERS = {
    "hyperband": "fails on its first final result and then runs for ever",
    "bohb": "fails on its first final result and then runs for ever",
    "gp": "fails with today's numpy and scipy",
    "gptuner": "fails with today's numpy and scipy",
    "metis": "fails with today's numpy and scipy",
    "metistuner": "fails with today's numpy and scipy",
    "anneal": "needs hyperopt 0.1.2, which fails on today's Python",
    "tpe_legacy": "needs hyperopt 0.1.2, which fails on today's Python",
    "smac": "needs smac4nni, which cannot be installed any more",
    "dngo": "needs pybnn, which NNI does not install",
    "dngotuner": "needs pybnn, which NNI does not install",
    "ppo": "searches architectures, not options",
    "ppotuner": "searches architectures, not options",
    "networkmorphism": "searches architectures, not options",
    "regularizedevolutiontuner": "searches architectures, not options",
    "batch": "takes no search space but a list of whole configurations",
    "batchtuner": "takes no search space but a list of whole configurations",
    "pbt": "adds load_checkpoint_dir and save_checkpoint_dir to the options, which no trial takes",
    "pbttuner": "adds load_checkpoint_dir and save_checkpoint_dir to the options, "
    "which no trial takes",
}
# What those that mind which way is better take for granted.
DEFAULT_AIM = {
    "tpe": "minimize",
    "evolution": "maximize",
    "medianstop": "maximize",
    "curvefitting": "maximize",
    **dict.fromkeys(map(str.lower, OURS), "maximize"),
}
PLATFORMS = ("local", "remote")
LOWEST = {"trialconcurrency": 1, "maxtrialnumber": 1, "maxtrialnum": 1, "trialgpunumber": 0}
ASSESSORS = ("Medianstop", "Curvefitting")


def read_content(path: Path) -> Json:
    """Read the file; what is no configuration at all is a `UserError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"{path}: cannot be read ({reason})") from None
    content = parse_yaml(text, path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no configuration of a search; see config_local.yml")
    return content


def outline(content: Values, path: Path) -> tuple[Outline, list[Problem]]:
    """Return what the file says in either version, and what is missing or cannot be read."""
    content, problems = _whole_numbers(content, path)
    given = {plain(key): value for key, value in content.items()}
    old = "trainingserviceplatform" in given
    trial = given.get("trial") if old else given
    trial = {plain(k): v for k, v in trial.items()} if isinstance(trial, Mapping) else {}
    service = given.get("trainingservice")
    platform = given.get("trainingserviceplatform") if old else None
    if isinstance(service, Mapping):
        platform = service.get("platform")
    problems += _platform_problems(platform, path)
    command = trial.get("command" if old else "trialcommand")
    if not isinstance(command, str) or not command.strip():
        where = "trial: command" if old else "trialCommand"
        problems.append(Problem(str(path), f"has no {where}", "as in python3 train.py"))
        command = ""
    code = trial.get("codedir" if old else "trialcodedirectory") or "."
    code = resolved(Path(path.parent, Path(str(code)).expanduser()), "set trialCodeDirectory")
    if not code.is_dir():
        problems.append(Problem(str(path), f"trial code directory {code} is not there"))
    place = "logDir" if old else "experimentWorkingDirectory"
    problems += _place_problems(place, given.get(place.lower()), path)
    file = given.get("searchspacepath" if old else "searchspacefile")
    space, source, more = _space(given.get("searchspace"), file, path)
    if not given.get("tuner") and not given.get("advisor"):
        problems.append(Problem(str(path), "names no tuner", "set tuner: {name: TPE, ...}"))
    concurrency = given.get("trialconcurrency")
    concurrency = concurrency if isinstance(concurrency, int) and concurrency > 0 else 1
    found = Outline(
        1 if old else 2,
        content,
        str(platform or "local"),
        command,
        code,
        concurrency,
        space,
        source,
    )
    return found, problems + more


def _platform_problems(platform: object, path: Path) -> list[Problem]:
    if platform in PLATFORMS:
        return []
    what = f"trainingService has platform {platform!r}" if platform else "names no platform"
    return [Problem(str(path), what, suggest(str(platform), PLATFORMS).removeprefix("; "))]


def _place_problems(name: str, given: object, path: Path) -> list[Problem]:
    """Say what is wrong with the folder that NNI is to keep its searches in, where one is named."""
    if not isinstance(given, str) or not given:
        return []
    place = Path(path.parent, Path(given).expanduser())
    above = resolved(place, f"set {name} to a folder")
    while not above.exists():
        above = above.parent
    if above.is_dir():
        return []
    return [Problem(str(path), f"{name} {place}: {above} is no folder")]


def _whole_numbers(content: Values, path: Path) -> tuple[Json, list[Problem]]:
    """Replace numbers that NNI only asserts, and say each; true is a number to Python."""
    kept, problems = dict(content), []
    for key, value in content.items():
        low = LOWEST.get(plain(key))
        if low is None or not isinstance(value, int):  # of another type: NNI says so itself
            continue
        if value >= low and not isinstance(value, bool):
            continue
        shown = str(value).lower() if isinstance(value, bool) else value
        problems.append(
            Problem(str(path), f"{key} is {shown}", f"give a whole number from {low} on")
        )
        kept[key] = 1 if plain(key) == "trialconcurrency" else None  # the rest is checked as well
    return kept, problems


def _space(inline: object, file: object, path: Path) -> tuple[Json, str, list[Problem]]:
    source = path if file is None else Path(path.parent, Path(str(file)).expanduser())
    if inline is None and file is None:
        wrong = Problem(
            str(path), "names no search space", "set searchSpaceFile: search_space.json"
        )
        return {}, str(source), [wrong]
    space = inline
    if file is not None:
        try:
            text = source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            return {}, str(source), [Problem(str(source), f"cannot be read ({reason})")]
        is_yaml = source.suffix in (".yml", ".yaml")
        try:
            space = parse_yaml(text, source) if is_yaml else parse_json(text, source)
        except UserError as error:
            return {}, str(source), [Problem(str(source), str(error).partition(": ")[2])]
    if not isinstance(space, dict) or not space:
        what = "holds no search space"
        return {}, str(source), [Problem(str(source), what, "it is an object with a key an option")]
    try:
        return space_in_our_words(space, str(source)), str(source), []
    except UserError as error:
        return space, str(source), [as_problem(error)]


def to_experiment(found: Outline, path: Path) -> tuple[Any, list[Problem]]:
    """Make NNI's own `ExperimentConfig`, or None, and say what NNI does not take.

    A version 1 file is converted by NNI; what it drops on the way is a problem. A value of the
    wrong type is said by NNI itself and then left out, so that the rest can be checked.
    """
    from nni.experiment.config import ExperimentConfig, convert, utils

    content = dict(found.content)
    if found.version == 1:
        content, problems = _converted(content, path, convert)
        if not content:
            return None, problems
    else:
        unknown, problems = _unknown_keys(content, path, ExperimentConfig)
        content = {key: value for key, value in content.items() if key not in unknown}
    utils.set_base_path(path.parent.resolve())
    try:
        config = ExperimentConfig(**content)
    except Exception as error:  # NNI raises whatever its checks of the fields raise
        return None, [*problems, _refusal(path, error)]
    finally:
        utils.unset_base_path()
    if problems and utils.is_missing(config.trial_concurrency):  # as likely misspelt as missing
        config.trial_concurrency = found.concurrency
    problems += _refused_by_nni(config, path)
    for each in utils.fields(config):
        if not utils.is_instance(getattr(config, each.name), each.type):
            missing = utils.is_missing(each.default)
            setattr(config, each.name, None if missing else each.default)
    config.trial_concurrency = config.trial_concurrency or found.concurrency
    config.search_space, config.search_space_file = dict(found.space), None
    return config, problems


def _unknown_keys(content: Values, path: Path, kind: Any) -> tuple[list[str], list[Problem]]:
    names = {plain(name): _camel(name) for name in kind.__dataclass_fields__}
    unknown = [key for key in content if plain(key) not in names]
    hints = [suggest(str(key), names.values()).removeprefix("; ") for key in unknown]
    return unknown, [
        Problem(str(path), f"NNI does not take it: there is no {key!r}", hint)
        for key, hint in zip(unknown, hints)
    ]


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)


def _refusal(path: Path, error: Exception, field: str = "") -> Problem:
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        said = f"{said} is missing"
    said = re.sub(r"^\w*Config: ", "", said)
    if "set use_active_gpu" in said:
        what = "NNI does not take it: trialGpuNumber without useActiveGpu in trainingService"
        return Problem(str(path), what, "leave trialGpuNumber out: a trial takes a GPU by itself")
    if unset := re.fullmatch(r"(\w+) is not set", said):
        said = f"{_camel(unset[1])} is not set"
    elif wrong := re.match(r"type of (\w+) \((.*)\) is not ", said):
        said = f"{_camel(wrong[1])} is {wrong[2]}, which is of the wrong type"
    elif unknown := re.fullmatch(r"_?(\w+)Config does not have field\(s\) (.+)", said):
        said = f"there is no {unknown[2]} in {field or unknown[1].lower()}"
    return Problem(str(path), f"NNI does not take it: {said}")


def _converted(content: Json, path: Path, convert: Any) -> tuple[Json, list[Problem]]:
    """Convert version 1; what NNI would only have logged as not converted is a problem."""
    heard: list[str] = []
    log = logging.getLogger(convert.__name__)
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    propagates, log.propagate, level = log.propagate, False, log.level
    log.setLevel(logging.ERROR)
    try:
        content = convert.to_v2(content)
    except Exception as error:  # KeyError, AssertionError ...: it checks nothing by itself
        return {}, [_refusal(path, error)]
    finally:
        log.removeHandler(handler)
        log.propagate = propagates
        log.setLevel(level)
    problems = [
        Problem(str(path), f"NNI does not take all of it: {line[0].lower() + line[1:]}")
        for line in heard
    ]
    return content, [*problems, *_leave_gpus_to_trials(content, path)]


def _leave_gpus_to_trials(content: dict[str, Any], path: Path) -> list[Problem]:
    """Take out version 1's `gpuNum` of a local search where NNI 3.0 would refuse it."""
    service = content.get("trainingService")
    service = service if isinstance(service, Mapping) else {}
    wanted = content.get("trialGpuNumber")
    if service.get("platform") != "local" or not wanted or service.get("useActiveGpu") is not None:
        return []
    del content["trialGpuNumber"]
    what = f"gpuNum: {wanted} is left to the trials: each takes a free GPU by itself, if there is"
    return [Problem(str(path), f"{what} one", fatal=False)]


def _refused_by_nni(config: Any, path: Path) -> list[Problem]:
    """Let NNI check every field as it will at the start; what is checked elsewhere is filled in."""
    import warnings

    from nni.experiment.config import LocalConfig
    from nni.experiment.config.training_service import TrainingServiceConfig

    trial = copy.deepcopy(config)
    trial.use_annotation, trial.max_experiment_duration = False, None
    trial.search_space_file, trial.trial_code_directory = None, "."
    trial.search_space = {"x": {"_type": "choice", "_value": [1]}}
    trial.trial_command = trial.trial_command or "python3 train.py"
    if not isinstance(trial.training_service, TrainingServiceConfig):
        trial.training_service = LocalConfig()  # its platform is checked with the outline
    log = logging.getLogger("nni.experiment.config")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _refusals(trial, path)
    finally:
        log.setLevel(level)


def _refusals(trial: Any, path: Path) -> list[Problem]:
    """Return what NNI refuses, one thing after the other; each is filled in to find the next."""
    from nni.experiment.config import AlgorithmConfig

    problems: list[Problem] = []
    for name in ("tuner", "assessor", "advisor"):
        if isinstance(getattr(trial, name), dict):  # NNI left it so because it does not take it
            try:
                AlgorithmConfig.__base__(**getattr(trial, name))
            except Exception as error:
                problems.append(_refusal(path, error, name))
            setattr(trial, name, None)
    if trial.tuner is None and trial.advisor is None:
        trial.tuner = AlgorithmConfig(name="TPE")
    while len(problems) < len(vars(trial)):
        try:
            trial.canonical_copy()
            break
        except Exception as error:  # ValueError, AssertionError, TypeError
            problems.append(_refusal(path, error))
            if not _mended(trial, str(error)):  # it says one thing at a time
                break
    return problems


def _mended(trial: Any, said: str) -> bool:
    """Give the field that NNI spoke of a value that it takes."""
    found = re.match(r"ExperimentConfig: (?:type of )?(\w+) (?:\(|is not set)", said)
    if not found or found[1] not in trial.__dataclass_fields__ or found[1] == "training_service":
        return False
    setattr(trial, found[1], {"trial_concurrency": 1, "trial_code_directory": "."}.get(found[1]))
    return True


def give_aim(config: Any, mode: str) -> None:
    """Let a tuner and an assessor that have not been told which way is better aim at `mode`."""
    for algorithm in filter(None, (config.tuner, config.advisor, config.assessor)):
        name, args = name_of(algorithm).lower(), algorithm.class_args or {}
        minds = name in DEFAULT_AIM and name != "curvefitting"
        if minds and "optimize_mode" not in args and DEFAULT_AIM[name] != mode:
            algorithm.class_args = {**args, "optimize_mode": mode}


def algorithm_problems(config: Any, mode: str, monitor: str, path: Path) -> list[Problem]:
    """Return what is wrong with the tuner and the assessor, which shall aim at `mode`."""
    tuner = config.tuner or config.advisor
    problems = []
    if tuner is not None and tuner.name is not None:
        problems += _tuner_name(tuner.name, path)
    if config.assessor is not None and config.assessor.name is not None:
        names = [name.lower() for name in ASSESSORS]
        if config.assessor.name.lower() not in names:
            hint = suggest(config.assessor.name, ASSESSORS).removeprefix("; ")
            problems.append(Problem(str(path), f"no assessor {config.assessor.name!r}", hint))
    named = (("tuners", tuner), ("assessors", config.assessor))
    for kind, algorithm in named:
        if algorithm is not None and algorithm.name is None:
            problems += algorithms.class_problems(kind, algorithm, path)
    if problems:
        return problems
    for kind, algorithm in named:
        if algorithm is not None:
            wrong = _aim(algorithm, mode, monitor, kind[:-1], path)
            problems += wrong or _class_problems(kind, algorithm, path)
    return problems


def _tuner_name(name: str, path: Path) -> list[Problem]:
    if name.lower() in [working.lower() for working in WORKING_TUNERS]:
        return []
    if reason := BROKEN_TUNERS.get(name.lower()):
        remedy = f"use {', '.join(WORKING_TUNERS[:-1])} or {WORKING_TUNERS[-1]}"
        return [Problem(str(path), f"the tuner {name} {reason}", remedy)]
    return [Problem(str(path), f"no tuner {name!r}", suggest(name, WORKING_TUNERS)[2:])]


def _aim(algorithm: Any, mode: str, monitor: str, whose: str, path: Path) -> list[Problem]:
    given = (algorithm.class_args or {}).get("optimize_mode")
    default = DEFAULT_AIM.get(name_of(algorithm).lower())
    if given is not None and given not in ("minimize", "maximize"):
        what = f"the {whose}'s optimize_mode is {given!r}"
        return [Problem(str(path), what, "it is maximize or minimize")]
    aims = given or default
    if not mode or aims in (mode, None) or (default is None and algorithm.name is not None):
        return []
    if algorithm.name and algorithm.name.lower() == "curvefitting":
        what = f"Curvefitting takes more for better, but less of {monitor} is"
        return [Problem(str(path), what, "use Medianstop with optimize_mode: minimize")]
    said = given or f"not set, which {'NNI' if algorithm.name else 'it'} takes for {default}"
    what = f"the {whose}'s optimize_mode is {said}, but the trials report {monitor}"
    return [Problem(str(path), what, f"set it to {mode}")]


def _class_problems(kind: str, algorithm: Any, path: Path) -> list[Problem]:
    """Make the tuner or assessor as its process will; one of a user's own is left to NNI."""
    if algorithm.name is None and not is_ours(algorithm):
        return []
    whose = kind.removesuffix("s")
    try:
        make_algorithm(kind, algorithm)
    except (
        Exception
    ) as error:  # SchemaError, TypeError, ValueError: whatever its arguments are to it
        said = " ".join(str(error).split()) or type(error).__name__
        said = re.sub(r"^\w+\.__(init|new)__\(\) ", "", said)
        what = f"the {whose} {name_of(algorithm)} does not take its classArgs: {said}"
        return [Problem(str(path), what)]
    return []


def make_algorithm(kind: str, algorithm: Any) -> Any:
    """Return the object of a tuner or assessor of NNI's or ours, its arguments checked."""
    import importlib

    from nni.tools.package_utils import tuner_factory

    for loud in ("nni", "ballot.tuning"):  # they announce their seeds
        logging.getLogger(loud).setLevel(logging.CRITICAL)
    if is_ours(algorithm):
        return algorithms.make(algorithm)
    arguments = dict(algorithm.class_args or {})
    checker = tuner_factory.create_validator_instance(kind, algorithm.name)
    if checker is not None and arguments:
        checker.validate_class_args(**arguments)
    module, name = tuner_factory.get_builtin_module_class_name(kind, algorithm.name)
    return getattr(importlib.import_module(module), name)(**arguments)


def samples(config: Any, space: Values, number: int) -> list[Json]:
    """Let a tuner of NNI's own, or ours, draw from the space, as the search would begin."""
    if config.tuner is None or (config.tuner.name is None and not is_ours(config.tuner)):
        return []
    import nni

    tuner = make_algorithm("tuners", config.tuner)
    tuner.update_search_space(copy.deepcopy(dict(space)))
    drawn = []
    for parameter_id in range(number):
        try:
            drawn.append(tuner.generate_parameters(parameter_id))
        except nni.NoMoreTrialError:
            break
    return drawn


def startup_notes(config: Any, path: Path) -> list[Problem]:
    """Say where TPE's defaults waste a small search."""
    tuner = config.tuner
    if tuner is None or name_of(tuner).lower() not in ("tpe", algorithms.TUNER.lower()):
        return []
    arguments = (tuner.class_args or {}).get("tpe_args") or {}
    usual = 0 if is_ours(tuner) else 20
    random, trials = arguments.get("n_startup_jobs", usual), config.max_trial_number
    found = []
    if trials and random >= trials:
        what = f"all {trials} trials are random: TPE begins after {random}"
        found.append(
            Problem(
                str(path),
                what,
                f"set tpe_args: {{n_startup_jobs: {max(1, math.ceil(trials / 3))}}}",
                fatal=False,
            )
        )
    return found


# NNI packs what `ignore`, the package that reads .nniignore, lets through (common/tarball.js).
_WALK = """
const fs = require('fs'), path = require('path');
const [root, ignore] = process.argv.slice(1);
let ig;
try { ig = require(ignore)().add(fs.readFileSync(path.join(root, '.nniignore'), 'utf8')); } catch {}
const found = {};
let files = 0;
function walk(dir, top) {
    for (const entry of fs.readdirSync(path.join(root, dir))) {
        const relative = path.join(dir, entry), stats = fs.lstatSync(path.join(root, relative));
        if (ig && ig.ignores(relative + (stats.isDirectory() ? path.sep : ''))) continue;
        if (stats.isDirectory()) { walk(relative, top || entry + '/'); continue; }
        const sum = found[top || entry] ||= [0, 0];
        sum[0] += 1; sum[1] += stats.size;
        if (++files > 100000) return;
    }
}
walk('', '');
console.log(JSON.stringify(found));
"""


def uploaded(code: Path) -> dict[str, tuple[int, int]]:
    """Count what NNI would send to other machines: files and bytes of each entry of the folder."""
    import nni_node

    home = Path(nni_node.__path__[0])
    command = [home / "node", "-e", _WALK, code, home / "node_modules" / "ignore"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout) if done.returncode == 0 else {}
