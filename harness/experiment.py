"""NNI experiments: started, watched, stopped, and read from the disk."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError

ENDED = ("SUCCEEDED", "FAILED", "USER_CANCELED", "SYS_CANCELED", "EARLY_STOPPED")
STARTS = 3  # NNI gives its manager about four seconds; on a busy machine that is not always enough


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
