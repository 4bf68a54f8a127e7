"""NNI experiments: checked before they start, started, watched, stopped, and read from the disk."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config import COMPONENTS, OWN_FIELDS, Layer, convert, flatten, parse_json, parse_yaml
from harness.errors import UserError, suggest

ENDED = ("SUCCEEDED", "FAILED", "USER_CANCELED", "SYS_CANCELED", "EARLY_STOPPED")
STARTS = 3  # NNI gives its manager about four seconds; on a busy machine that is not always enough

# How many numbers each type of NNI's search space takes, and which of them are values of the field.
SPACE_TYPES = {
    "choice": None, "randint": 2, "uniform": 2, "quniform": 3, "loguniform": 2, "qloguniform": 3,
    "normal": 2, "qnormal": 3, "lognormal": 2, "qlognormal": 3,
}  # fmt: skip
BOUNDED = ("randint", "uniform", "quniform", "loguniform", "qloguniform")


@dataclass
class TrialRecord:
    """A trial as NNI's database has it; times in seconds since the epoch."""

    id: str
    sequence: int
    status: str = "WAITING"
    started: float | None = None
    ended: float | None = None
    scores: list[float] = field(default_factory=list)  # intermediate results, in order
    final: float | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come from it."""
        return self.status in ENDED


@dataclass
class Search:
    """A search that runs: NNI's manager, where it listens and what it writes."""

    experiment: Any  # nni.experiment.Experiment
    folder: Path

    @property
    def id(self) -> str:
        """NNI's experiment id."""
        return self.experiment.id

    @property
    def port(self) -> int:
        """The manager's port on this machine."""
        return self.experiment.port

    def status(self) -> str:
        """NNI's word for it: RUNNING, NO_MORE_TRIAL, DONE, ERROR ..., or GONE without a manager."""
        try:
            return self.experiment.get_status()
        except Exception:  # NNI's client raises whatever requests and json raise
            return "GONE"

    def trials(self) -> list[TrialRecord]:
        """Every trial so far, in the order they were made."""
        return read_trials(self.folder)

    def last_words(self, trial_id: str) -> str:
        """Return the last line that a local trial wrote to its standard error."""
        for path in self.folder.glob(f"environments/*/trials/{trial_id}/trial.stderr"):
            if lines := path.read_text(encoding="utf-8", errors="replace").strip().splitlines():
                return lines[-1]
        return "it left no word"

    def stop(self) -> None:
        """End the trials (SIGINT, and SIGKILL five seconds later) and the manager."""
        self.experiment.stop()


def load_experiment(path: Path) -> Any:
    """Read an NNI configuration, version 1 or 2, into NNI's own `ExperimentConfig`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None
    content = parse_yaml(text, path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no configuration of a search; see config_local.yml")
    from nni.experiment.config import ExperimentConfig, convert, utils

    utils.set_base_path(path.parent.resolve())
    try:
        if "trainingServicePlatform" in content:
            content = convert.to_v2(content)
        config = ExperimentConfig(**content)
    except Exception as error:  # NNI raises whatever its checks of the fields raise
        raise UserError(f"{path}: NNI does not take it ({error or type(error).__name__})") from None
    finally:
        utils.unset_base_path()
    return config


def read_search_space(config: Any, path: Path) -> dict[str, Any]:
    """Return the search space that the configuration holds or names."""
    if config.search_space is not None:
        return config.search_space
    if config.search_space_file is None:
        raise UserError(f"{path}: names no search space; set searchSpaceFile: search_space.json")
    file = Path(path.parent, config.search_space_file)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    space = parse_yaml(text, file) if file.suffix in (".yml", ".yaml") else parse_json(text, file)
    if not isinstance(space, dict) or not space:
        raise UserError(f"{file}: holds no search space; it is an object with a key an option")
    return space


def check_search_space(space: Mapping[str, Any], source: str) -> None:
    """Check every key, type and value against `Config`, nested choices too."""
    for key, spec in space.items():
        if not isinstance(spec, Mapping) or "_type" not in spec or "_value" not in spec:
            raise UserError(f'{source}: {key} needs {{"_type": "choice", "_value": [...]}}')
        kind, values = spec["_type"], spec["_value"]
        if kind not in SPACE_TYPES:
            raise UserError(f"{source}: {key} has type {kind!r}{suggest(kind, SPACE_TYPES)}")
        _check_values(key, kind, values, source)
        candidates = values if kind == "choice" else values[:2] if kind in BOUNDED else values[:1]
        for value in candidates:
            _check_candidate(key, value, source)


def _check_values(key: str, kind: str, values: Any, source: str) -> None:
    wanted = SPACE_TYPES[kind]
    if not isinstance(values, list) or not values or (wanted and len(values) != wanted):
        raise UserError(
            f"{source}: {key} ({kind}) takes {wanted or 'one or more'} values in a list"
        )
    if kind == "choice":
        return
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise UserError(f"{source}: {key} ({kind}) takes numbers, not {values}")
    if kind in BOUNDED and values[0] >= values[1]:
        raise UserError(
            f"{source}: {key} goes from {values[0]} to {values[1]}; put the lower first"
        )
    if "log" in kind and kind in BOUNDED and values[0] <= 0:
        raise UserError(f"{source}: {key} ({kind}) must start above 0")


def _check_candidate(key: str, value: Any, source: str) -> None:
    if isinstance(value, Mapping) and "_name" in value and key in COMPONENTS:
        for inner, spec in value.items():
            own = inner in OWN_FIELDS.get(key, ())
            if isinstance(spec, Mapping):
                check_search_space({inner if own else f"{key}_args.{inner}": spec}, source)
        return
    for name, part in flatten(Layer(source, {key: value})):
        if "." not in name:
            convert(name, part, source)


def check_trial_command(command: str, source: str) -> None:
    """Refuse a command that NNI cannot end: its kill reaches only the direct process."""
    if re.search(r"&&|\|\||[;|&]", command):
        raise UserError(f"{source}: trialCommand {command!r} is several commands, of which NNI "
                        "would end only the shell; give one, as in python3 train.py")  # fmt: skip


def with_own_interpreter(command: str) -> str:
    """Let local trials run in this interpreter, whether its environment is active or not."""
    first, _, rest = command.strip().partition(" ")
    if first in ("python", "python3"):
        return f"{shlex.quote(sys.executable)} {rest}".strip()
    return command


def option_of(command: str, flag: str, default: str) -> str:
    """Return the value that the trial command gives to a flag."""
    words = shlex.split(command)
    for word, after in zip(words, [*words[1:], default]):
        name, equals, value = word.partition("=")
        if name.replace("-", "_") == flag.replace("-", "_"):
            return value if equals else after
    return default


def free_port(first: int) -> int:
    """Return the first port from `first` on that nothing on this machine listens on."""
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise UserError(f"port: none of {first} to {first + 99} is free; choose another with --port")


def start(config: Any, port: int, environment: Mapping[str, str]) -> Search:
    """Start NNI's manager, which outlives this process; try again where it is slow to answer."""
    import logging

    from nni.experiment import Experiment, RunMode

    logging.getLogger("nni").setLevel(logging.ERROR)
    for attempt in range(STARTS):
        experiment = Experiment(config)
        try:
            with _environment(environment):
                experiment.start(free_port(port), run_mode=RunMode.Detach)
            folder = Path(config.canonical_copy().experiment_working_directory, experiment.id)
            return Search(experiment, folder)
        except Exception as error:  # connection errors, JSON errors, RuntimeError: all of NNI's
            if attempt == STARTS - 1:
                raise UserError(f"NNI: its manager did not start ({error}); see "
                                f"~/nni-experiments/{experiment.id}/log") from None  # fmt: skip
            time.sleep(2)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _environment(extra: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(extra)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def read_trials(folder: Path) -> list[TrialRecord]:
    """Read the trials from an experiment's database, while it runs or long after."""
    database = folder / "db" / "nni.sqlite"
    if not database.exists():
        return []
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as db:
        try:
            events = db.execute("SELECT timestamp, trialJobId, event, sequenceId FROM "
                                "TrialJobEvent ORDER BY timestamp").fetchall()  # fmt: skip
            metrics = db.execute("SELECT trialJobId, type, data FROM MetricData "
                                 "ORDER BY timestamp").fetchall()  # fmt: skip
        except sqlite3.OperationalError:  # being made, or locked for a moment
            return []
    trials: dict[str, TrialRecord] = {}
    for stamp, trial_id, event, sequence in events:
        trial = trials.setdefault(trial_id, TrialRecord(trial_id, len(trials)))
        if sequence is not None:
            trial.sequence = sequence
        _apply(trial, event, stamp / 1000)
    for trial_id, kind, data in metrics:
        if trial_id in trials:
            score = _score(data)
            if kind == "FINAL":
                trials[trial_id].final = score
            elif score is not None:
                trials[trial_id].scores.append(score)
    return sorted(trials.values(), key=lambda trial: trial.sequence)


def _apply(trial: TrialRecord, event: str, seconds: float) -> None:
    if event == "RUNNING" and trial.started is None:
        trial.started = seconds
    if event in ENDED:
        trial.ended = seconds
    if event in (*ENDED, "RUNNING", "WAITING", "UNKNOWN"):
        trial.status = event


def _score(data: str) -> float | None:
    value: Any = data
    for _ in range(2):  # JSON inside JSON
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = json.loads(value)
    if isinstance(value, Mapping):
        value = value.get("default")
    return float(value) if isinstance(value, (int, float)) else None
