"""The seam between a search and whatever runs its trials.

An `Engine` checks a plan, starts it, and knows the searches that it has started. A `Search` is one
of them, whether it runs or not. Everything above speaks these words; what an engine calls its own
statuses, files and addresses stays in its own package.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from ballot.config.schema import Config
from ballot.machines.machine import Machine
from ballot.machines.ssh import Link
from ballot.problems import Problem
from ballot.runs.trials import TrialRecord
from ballot.values import Json, Values

WRITE_S = 40.0  # that a trial which is ended has to write what it has (nni/node/trials.js)

# all_started: as many trials as were wanted; exhausted: the tuner knows no new configuration;
# gone: nothing of the engine runs; silent: it runs and does not answer.
SearchState = Literal[
    "starting", "running", "all_started", "exhausted", "stopping", "done", "error", "gone", "silent"
]


@dataclass(frozen=True)
class Status:
    """How a search stands, and the errors that its engine names."""

    state: SearchState
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What a command line says of a search's limits; None leaves one as it is."""

    max_trials: int | None = None
    max_seconds: float | None = None
    concurrency: int | None = None
    trial_seconds: float | None = None
    bounds: tuple[str, ...] = ()  # options of train.py on the size of networks

    def __bool__(self) -> bool:
        """Whether anything is said."""
        return self != Limits()

    @property
    def changes_command(self) -> bool:
        """Whether trials are started with other options."""
        return self.trial_seconds is not None or bool(self.bounds)

    def command(self, command: str) -> str:
        """Return a trial command with the time that a trial may take, and bounds on networks."""
        words = [command]
        if self.trial_seconds is not None:
            words.append(f"--time_limit {self.trial_seconds:g}")
        return " ".join([*words, *map(shlex.quote, self.bounds)])


@dataclass(frozen=True)
class Plan:
    """A search that has been checked and can start, or one that was started earlier."""

    settings: object  # the engine's own form of it; None where the engine has it on record
    command: str
    code: Path  # the folder that trials start in
    outputs: Path
    max_trials: int | None
    max_seconds: float | None
    concurrency: int
    maximize: bool
    may_wait: bool = False  # trials may wait for a GPU or a machine
    links: Sequence[Link] = ()  # to other machines, where the trials run
    elsewhere: bool = False
    halted: frozenset[str] = frozenset()  # trials on record as running, and that do not
    posted: bool = False  # its trials are those that search.py chose, and no tuner is asked

    @property
    def page(self) -> Path:
        """Where the report of the search is: beside its outputs."""
        return self.outputs.parent / "report.html"

    def of_posted(self, trials: Sequence[TrialRecord], new: int, again: Collection[str]) -> Plan:
        """Return the plan of running so many `new` trials, and those `again` that were halted."""
        halted = frozenset(t.id for t in trials if not t.has_ended and t.id not in again)
        return replace(self, max_trials=len(trials) + new, halted=halted, posted=True)


@dataclass(frozen=True)
class Launch:
    """How an engine is to be started."""

    port: int = 8080  # the first one to try
    guarded: bool = True
    public: bool = False
    data: Path | None = None  # a folder to be copied to the nodes of a cluster


class Machines(Protocol):
    """The machines of a search that is watched: their results, and news of them."""

    def news(self) -> list[str]:
        """Return what has become of machines since it was last asked."""

    def bring(self, trials: Sequence[TrialRecord]) -> None:
        """Begin to bring home what has ended."""

    def finish(self, trials: Sequence[TrialRecord], *, over: bool = True) -> list[str]:
        """Bring home the rest; return what could not be."""

    def brought(self) -> int:
        """Return how many runs something came home of."""

    def close(self) -> None:
        """Disconnect."""


@dataclass(frozen=True)
class MachineState:
    """How another machine of a search is: a line for people; `waiting` trials are to go on."""

    name: str
    words: str


class Search(Protocol):
    """A search that was started, whether it runs or not."""

    id: str
    folder: Path  # the engine's records of it
    began: float  # seconds since the epoch

    @property
    def address(self) -> str:
        """Where it can be watched in a browser, while it runs; nothing where it cannot."""

    def is_running(self) -> bool:
        """Whether a process of the engine works for it."""

    def has_leftovers(self) -> bool:
        """Whether processes work for it although its engine is gone."""

    def status(self) -> Status:
        """Return how it stands."""

    def tuner_is_alive(self) -> bool:
        """Whether the process lives that chooses configurations."""

    def verify(self, launch: Launch) -> None:
        """Raise `UserError` where what runs is not as safe as was asked for."""

    def trials(self) -> list[TrialRecord]:
        """Return its trials as they stand, in their order; the same objects at each call."""

    def plan(self) -> Plan:
        """Return its plan as it was recorded; links to other machines are not opened."""

    def reconnected(self, plan: Plan, *, quiet: bool = False) -> Plan:
        """Return the plan with links to the machines of the search."""

    def machines(self, plan: Plan, *, checkpoints: int | None = None) -> Machines | None:
        """Return what brings results home; None for a search on this machine."""

    def machine_states(self) -> list[MachineState]:
        """Return how its other machines are; nothing where it has none."""

    def seconds_counted(self) -> float:
        """Return the seconds that the engine itself has counted."""

    def last_words(self, trial_id: str, lines: int = 1) -> str:
        """Return the last lines that a trial wrote before it ended."""

    def retries(self) -> dict[str, str]:
        """Return the trials that run a second time, with the reason."""

    def tuner_error(self) -> str:
        """Return the error that the tuner wrote last, or nothing."""

    def cancel(self, trial_id: str) -> None:
        """End one trial; it is told so and has some seconds to write."""

    def begin_no_more(self, plan: Plan) -> bool:
        """Let no further trial begin; whether that could be said."""

    def change_limits(self, limits: Limits) -> None:
        """Tell a search that runs of new limits."""

    def record(self, plan: Plan) -> None:
        """Record the limits and the command of a plan, while nothing runs."""

    def stop(self) -> None:
        """End it; its trials write what they have."""

    def kill(self) -> None:
        """End it at once; what the trials have not written is lost."""

    def note(self) -> Json:
        """Return what search.py wrote down of it; nothing where something else started it."""

    def amend_note(self, **facts: object) -> None:
        """Write down something more."""

    def watched(self) -> AbstractContextManager[None]:
        """Hold it against a second search.py that would watch and end it too."""


@dataclass(frozen=True)
class Outline:
    """What can be said of a search's configuration before the engine has read all of it."""

    version: int
    content: Values
    platform: str  # local, or where else the trials run
    command: str
    code: Path  # the folder that trials run in
    concurrency: int
    space: Values
    space_source: str

    @property
    def is_local(self) -> bool:
        """Whether trials run on this machine."""
        return self.platform == "local"


class MachineCheck(Protocol):
    """What an engine asks of the other machines of a search, beside what trials need there."""

    packages: Sequence[str]  # distributions that each interpreter it uses must have
    modules: Sequence[str]  # whose presence `package_problems` looks at
    interpreter_key: str  # how the configuration calls a machine's interpreter
    ignore_file: str  # that names what is not sent

    def interpreter_of_trials(self, machine: Machine, named: str) -> str:
        """Return what runs the trials there, where the trial command names `named` or nothing."""

    def command_problems(self, named: str) -> list[Problem]:
        """Return what is wrong with the interpreter that the trial command names."""

    def link_problems(self, link: Link) -> list[Problem]:
        """Return what is wrong with the way to a machine."""

    def package_problems(self, name: str, facts: Values) -> list[Problem]:
        """Return which packages are there, and do not work; all of them are installed."""


class Draft(Protocol):
    """A configuration on its way to a plan: read by its engine, and not yet checked in full."""

    outline: Outline
    limits: Limits

    def environment_problems(self, port: int) -> list[Problem]:
        """Return what this machine lacks for the engine."""

    def complete(self, warm_start: Sequence[str]) -> list[Problem]:
        """Let the engine read the configuration; return what it would not take."""

    @property
    def is_complete(self) -> bool:
        """Whether the engine takes the configuration as far as that can be said."""

    @property
    def max_trials(self) -> int | None:
        """How many trials there are to be."""

    @property
    def max_seconds(self) -> float | None:
        """How long the search may take."""

    @property
    def concurrency(self) -> int:
        """How many trials run at once."""

    @property
    def assigns_gpus(self) -> bool:
        """Whether the engine gives each trial its GPU."""

    def give_aim(self, mode: str) -> None:
        """Let a tuner, and what stops trials, aim at `mode` where nothing else is said."""

    def algorithm_problems(self, mode: str, monitor: str) -> list[Problem]:
        """Return what is wrong with the tuner and what stops trials, which are to aim at `mode`."""

    def resource_problems(self, options: Config | None, gpus: int | None) -> list[Problem]:
        """Return what is wrong with GPUs and with what is sent elsewhere; None: not counted yet."""

    @property
    def machine_check(self) -> MachineCheck:
        """What is asked of other machines for the engine's sake."""

    def uploaded(self) -> Collection[str]:
        """Return the entries of the code folder that are sent to other machines."""

    def startup_notes(self) -> list[Problem]:
        """Say where the tuner's settings waste a small search."""

    def draw(self, number: int) -> list[Json]:
        """Let the tuner draw configurations, as the search would begin."""

    def tuner_name(self) -> str:
        """Return what the configuration calls its tuner."""

    def leave_out(self, places: Sequence[int]) -> None:
        """Take machines out, by their places in the configuration."""

    def plan(self, links: Sequence[Link], *, maximize: bool) -> Plan:
        """Return the plan of what has been checked."""


@dataclass(frozen=True)
class Sketch:
    """A search that search.py has planned itself, to be written as a configuration."""

    name: str
    space_file: str  # beside the configuration
    command: str
    code: Path
    max_seconds: float
    max_trials: int | None
    concurrency: int
    maximize: bool
    first: Sequence[Values]  # configurations that are tried before all others
    stops_early: bool


class Engine(Protocol):
    """What runs the trials of searches."""

    name: str

    def write_config(self, path: Path, sketch: Sketch) -> None:
        """Write a configuration of this engine."""

    def read(self, path: Path, limits: Limits, *, guarded: bool) -> tuple[Draft, list[Problem]]:
        """Read a configuration; a file that is none is a `UserError`."""

    def machines_in(self, path: Path) -> list[Machine]:
        """Return the other machines that a configuration names."""

    def known_searches(self) -> Sequence[Search]:
        """Return every search that it has records of, the newest first."""

    def start(self, plan: Plan, launch: Launch, note: Values) -> Search:
        """Start a new search, and write down what it takes to go on with it."""

    def resume(self, search: Search, plan: Plan, launch: Launch) -> Search:
        """Start again what goes on with a search that has ended."""

    def run_more(
        self,
        search: Search,
        plan: Plan,
        launch: Launch,
        parameters: Sequence[Values],
        again: Sequence[str],
    ) -> Search:
        """Run trials of these parameters, and trials that had begun; no tuner is asked."""


EngineMaker = Callable[[], Engine]
