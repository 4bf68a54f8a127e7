"""NNI experiments: started, watched, stopped, and read from the disk."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import guard
from harness.errors import UserError
from harness.searches import Search, end_processes, query_database

ENDED = ("SUCCEEDED", "FAILED", "USER_CANCELED", "SYS_CANCELED", "EARLY_STOPPED")
REMOTE = "BALLOT_REMOTE"  # what nni_remote.js is told
STARTS = 3  # NNI gives its manager about four seconds; on a busy machine that is not always enough


@dataclass
class TrialRecord:
    """A trial as NNI's database has it; times in seconds since the epoch."""

    id: str
    sequence: int
    status: str = "WAITING"
    started: float | None = None
    resumed: float | None = None  # when its present process started; later where it was resumed
    ended: float | None = None
    scores: list[float] = field(default_factory=list)  # intermediate results, in order
    final: float | None = None
    parameters: dict[str, Any] = field(default_factory=dict)  # as the tuner gave them
    machine: str | None = None  # another one that it runs on, or ran on last

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come from it."""
        return self.status in ENDED


def with_own_interpreter(command: str) -> str:
    """Let local trials run in this interpreter, whether its environment is active or not."""
    first, _, rest = command.strip().partition(" ")
    if first in ("python", "python3"):
        return f"{shlex.quote(sys.executable)} {rest}".strip()
    return command


def option_of(command: str, flag: str, default: str) -> str:
    """Return the value that the trial command gives to a flag; the last one counts."""
    words, found = shlex.split(command), default
    for word, after in zip(words, [*words[1:], default]):
        name, equals, value = word.partition("=")
        if name.replace("-", "_") == flag.replace("-", "_"):
            found = value if equals else after
    return found


def typed_command(command: str, values: Mapping[str, Any]) -> str:
    """Return a command that trains by hand what a trial of `command` trained with `values`."""
    dropped = {"--resume", "--out_dir", "--run_name", "--time_limit", "--device", *(
        f"--{key}" for key in values)}  # fmt: skip
    words = shlex.split(command)
    scripts = [place for place, word in enumerate(words) if word.endswith(".py")]
    kept, dropping = ["python"], False
    for word in words[scripts[0] if scripts else 1 :]:
        if word.startswith("--"):
            dropping = word.partition("=")[0].replace("-", "_").replace("__", "--", 1) in dropped
        if not dropping:
            kept.append(word)
    for key, value in values.items():
        kept += _flag(key, value)
    return shlex.join(kept)


def _flag(key: str, value: Any) -> list[str]:
    if isinstance(value, bool) and "." not in key:
        return [f"--{key}" if value else f"--no_{key}"]
    if isinstance(value, list) and "." not in key:
        return [f"--{key}", *map(str, value)]
    return [f"--{key}", value if isinstance(value, str) else json.dumps(value)]


def free_port(first: int, in_a_row: int = 1) -> int:
    """Return the first port from `first` on that nothing here listens on, nor on those after it."""
    free = 0
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                free += 1
            except OSError:
                free = 0
        if free == in_a_row:
            return port + 1 - in_a_row
    raise UserError(f"port: none of {first} to {first + 99} is free; choose another with --port")


def start(config: Any, port: int, extra: Mapping[str, str]) -> Search:
    """Start NNI's manager, which outlives this process; try again where it is slow to answer."""
    return _launch(config, None, port, extra)


def resume(search: Search, port: int, extra: Mapping[str, str]) -> Search:
    """Start a manager for a search that has none, from what NNI's database says of it."""
    from nni.experiment.config import ExperimentConfig

    params, _ = search.profile()
    params.pop("searchSpaceFile", None)  # the space is there too, and the file may be gone
    config = ExperimentConfig(**params)
    config.experiment_working_directory = str(search.folder.parent)
    return _launch(config, search.id, port, extra)


def environment(public: bool) -> dict[str, str]:
    """Return what to add to the environment of a manager: the guard, the mended trials, machines.

    nni_remote.js does nothing where no machines are named (harness/remote.py).
    """
    extra = guard.environment(public=public)
    before, after = guard.required("nni_trials.js"), guard.required("nni_remote.js")
    return {**extra, "NODE_OPTIONS": f"{before} {extra['NODE_OPTIONS']} {after}"}


def _launch(config: Any, known: str | None, port: int, extra: Mapping[str, str]) -> Search:
    import logging

    from nni.experiment import Experiment, RunMode

    logging.getLogger("nni").setLevel(logging.CRITICAL)
    root = Path(config.canonical_copy().experiment_working_directory)
    for attempt in range(STARTS):
        experiment = Experiment(config, known)
        experiment._action = "resume" if known else "create"  # NNI's own resume() never detaches
        if REMOTE in extra:  # the tunnels' ends can be reached by others on the machines
            experiment.url_prefix = secrets.token_hex(16)
        folder, began = root / experiment.id, time.time()
        try:
            with _environment(extra):
                experiment.start(free_port(port, 2 if REMOTE in extra else 1),
                                 run_mode=RunMode.Detach)  # fmt: skip
            return Search(experiment.id, folder, experiment.port, experiment._proc.pid,
                          experiment.url_prefix, began)  # fmt: skip
        except KeyboardInterrupt:
            end_processes(experiment.id, folder, 0.0)
            raise
        except Exception as error:  # connection errors, JSON errors, RuntimeError: all of NNI's
            end_processes(experiment.id, folder, 0.0)
            if attempt == STARTS - 1:
                raise UserError(f"NNI: its manager did not start ({error}); see "
                                f"{folder / 'log'}") from None  # fmt: skip
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
    events = query_database(database, "SELECT timestamp, trialJobId, event, sequenceId, data, "
                                      "logPath FROM TrialJobEvent ORDER BY rowid")  # fmt: skip
    metrics = query_database(database, "SELECT trialJobId, parameterId, type, sequence, data FROM "
                                       "MetricData ORDER BY rowid")  # fmt: skip
    trials: dict[str, TrialRecord] = {}  # in the order of the records: clocks of machines differ
    given: dict[str, dict[str, Any]] = {}  # a trial's first parameters, as they were recorded
    for stamp, trial_id, event, sequence, data, place in events:
        # What was posted or imported has no id before it is a trial; a damaged record has less.
        if not (trial_id and isinstance(trial_id, str) and isinstance(stamp, (int, float))):
            continue
        trial = trials.setdefault(trial_id, TrialRecord(trial_id, len(trials)))
        if isinstance(sequence, int):
            trial.sequence = sequence
        if isinstance(data, str) and data:
            given.setdefault(trial_id, _unpack(data))
        if isinstance(place, str) and ":~" in place:  # NNI's address of what a remote trial says
            trial.machine = place.partition(":~")[0]
        _apply(trial, event, stamp / 1000)
    reported: dict[str, str] = {}
    scores: dict[str, dict[int, float]] = {trial_id: {} for trial_id in trials}
    for trial_id, parameter_id, kind, sequence, data in metrics:
        if trial_id in trials and isinstance(sequence, int):
            reported[trial_id] = str(parameter_id)
            score = _score(data)
            if kind == "FINAL":
                trials[trial_id].final = score
            elif score is not None:  # one that runs again says again what it had said
                scores[trial_id][sequence] = score
    for trial_id, trial in trials.items():
        trial.scores = [score for _, score in sorted(scores[trial_id].items())]
        trial.parameters = _really_given(trial_id, given, reported)
    return sorted(trials.values(), key=lambda trial: (trial.sequence, trial.started or 0.0))


def _really_given(
    trial_id: str, given: Mapping[str, dict[str, Any]], reported: Mapping[str, str]
) -> dict[str, Any]:
    """Return a trial's parameters by the number that it reported.

    Without the guard NNI records trials with other trials' parameters (#5726), but the number that
    comes back with a score is right. Numbers start anew when a search is resumed, so that only one
    that is there once says more than the record does.
    """
    own = given.get(trial_id, {})
    number = reported.get(trial_id, "None")
    if number in ("None", "null", str(own.get("parameter_id"))):
        return own.get("parameters") or {}
    same = [each for each in given.values() if str(each.get("parameter_id")) == number]
    return (same[0] if len(same) == 1 else own).get("parameters") or {}


def _apply(trial: TrialRecord, event: str, seconds: float) -> None:
    if event == "RUNNING":
        trial.resumed = seconds
        trial.started = seconds if trial.started is None else trial.started
    if event in ENDED:
        trial.ended = seconds
    if event in (*ENDED, "RUNNING", "WAITING", "UNKNOWN"):
        trial.status = event
    if event == "ADD_RESUMED":
        trial.status = "WAITING"


def _unpack(data: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        value = json.loads(data)
        return value if isinstance(value, dict) else {}
    return {}


def _score(data: str) -> float | None:
    value: Any = data
    for _ in range(2):  # JSON inside JSON
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = json.loads(value)
    if isinstance(value, Mapping):
        value = value.get("default")
    with contextlib.suppress(OverflowError):  # an integer of 400 digits
        return float(value) if isinstance(value, (int, float)) else None
    return None
