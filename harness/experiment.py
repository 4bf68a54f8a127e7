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
    """Start NNI's manager; try again where it is slow to answer.

    It outlives this process once its folder has a `search.json` (harness/nni_trials.js).
    """
    return _launch(config, None, port, {**extra, "BALLOT_STARTER": str(os.getpid())})


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
    return Records(folder).read()


class Records:
    """The trials of an experiment's database, of which every record is read once.

    A search that is watched asks each second, and has hundreds of thousands of records in the end.
    """

    def __init__(self, folder: Path) -> None:
        self._database = folder / "db" / "nni.sqlite"
        self._last = {"TrialJobEvent": 0, "MetricData": 0}  # numbers of the rows read last
        # In the order of the records: clocks of machines differ.
        self._trials: dict[str, TrialRecord] = {}
        self._given: dict[str, dict[str, Any]] = {}  # first parameters, as they were recorded
        self._same: dict[str, list[dict[str, Any]]] = {}  # the same by the number of the parameters
        self._reported: dict[str, str] = {}  # the number that came back with a trial's last score
        self._scores: dict[str, dict[int, float]] = {}
        self._odd: set[str] = set()  # trials that were recorded with other trials' parameters

    def read(self) -> list[TrialRecord]:
        """Return the trials as they stand now, in their order; they are the same objects again."""
        # Scores first: a trial's first event stands before them, and is read after them.
        metrics = self._new("MetricData", "trialJobId, parameterId, type, sequence, data")
        events = self._new("TrialJobEvent", "timestamp, trialJobId, event, sequenceId, data, "
                                            "logPath")  # fmt: skip
        changed = {trial_id for event in events if (trial_id := self._take_event(*event))}
        changed |= {trial_id for metric in metrics if (trial_id := self._take_metric(*metric))}
        for trial_id in changed:
            found = self._scores.get(trial_id, {})
            self._trials[trial_id].scores = [score for _, score in sorted(found.items())]
        for trial_id in changed | self._odd:
            self._trials[trial_id].parameters = self._really_given(trial_id)
        return sorted(self._trials.values(), key=lambda trial: (trial.sequence,
                                                                trial.started or 0.0))  # fmt: skip

    def _new(self, table: str, columns: str) -> list[tuple]:
        query = f"SELECT rowid, {columns} FROM {table} WHERE rowid > {self._last[table]}"
        rows = query_database(self._database, f"{query} ORDER BY rowid")
        if rows:
            self._last[table] = rows[-1][0]
        return [row[1:] for row in rows]

    def _take_event(
        self, stamp: Any, trial_id: Any, event: str, sequence: Any, data: Any, place: Any
    ) -> str | None:
        # What was posted or imported has no id before it is a trial; a damaged record has less.
        if not (trial_id and isinstance(trial_id, str) and isinstance(stamp, (int, float))):
            return None
        trial = self._trials.setdefault(trial_id, TrialRecord(trial_id, len(self._trials)))
        if isinstance(sequence, int):
            trial.sequence = sequence
        if isinstance(data, str) and data and trial_id not in self._given:
            given = self._given[trial_id] = _unpack(data)
            self._same.setdefault(str(given.get("parameter_id")), []).append(given)
        if isinstance(place, str) and ":~" in place:  # NNI's address of what a remote trial says
            trial.machine = place.partition(":~")[0]
        _apply(trial, event, stamp / 1000)
        return trial_id

    def _take_metric(
        self, trial_id: Any, parameter_id: Any, kind: str, sequence: Any, data: str
    ) -> str | None:
        if trial_id not in self._trials or not isinstance(sequence, int):
            return None
        self._reported[trial_id] = str(parameter_id)
        score = _score(data)
        if kind == "FINAL":
            self._trials[trial_id].final = score
        elif score is not None:  # one that runs again says again what it had said
            self._scores.setdefault(trial_id, {})[sequence] = score
        return trial_id

    def _really_given(self, trial_id: str) -> dict[str, Any]:
        """Return a trial's parameters by the number that it reported.

        Without the guard NNI records trials with other trials' parameters (#5726), but the number
        that comes back with a score is right. Numbers start anew when a search is resumed, so that
        only one that is there once says more than the record does.
        """
        own = self._given.get(trial_id, {})
        number = self._reported.get(trial_id, "None")
        if number in ("None", "null", str(own.get("parameter_id"))):
            return own.get("parameters") or {}
        self._odd.add(trial_id)  # another of that number may come
        same = self._same.get(number, [])
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
