"""A configuration of a search on Ray on its way to a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ballot.config.out_dir import outputs_of
from ballot.config.schema import Config
from ballot.config.trial_command import parse_command
from ballot.engines.interface import Limits, MachineCheck, Outline, Plan
from ballot.engines.ray import asked, config, sent
from ballot.engines.ray.asked import Facts
from ballot.engines.ray.config import Resources, Wanted
from ballot.engines.ray.names import MODES
from ballot.engines.ray.search import plan_of
from ballot.errors import UserError
from ballot.machines.ignored import needed_problems
from ballot.machines.machine import Machine
from ballot.machines.ssh import Link
from ballot.problems import Problem, as_problem
from ballot.training.options import LISTS, read_options
from ballot.tuning.asha import ASHA
from ballot.tuning.tpe import TPE, Exhausted
from ballot.values import Json, Values
from ballot.wording import seconds_of, size

ENGINE = "ray"
INSTALL = "pip install -r requirements-extra.txt"
HAVE = {"cpus": ("CPU", "CPUs"), "gpus": ("GPU", "GPUs"), "memory": ("memory", "bytes of memory")}


class NoMachineCheck:
    """Nothing is asked over ssh: the nodes are the cluster's."""

    packages: Sequence[str] = ()
    modules: Sequence[str] = ()
    interpreter_key = "trainingService"
    ignore_file = sent.IGNORE

    def interpreter_of_trials(self, machine: Machine, named: str) -> str:  # noqa: ARG002
        """Return what the trial command names."""
        return named

    def command_problems(self, named: str) -> list[Problem]:  # noqa: ARG002
        """Return nothing."""
        return []

    def link_problems(self, link: Link) -> list[Problem]:  # noqa: ARG002
        """Return nothing."""
        return []

    def package_problems(self, name: str, facts: Values) -> list[Problem]:  # noqa: ARG002
        """Return nothing."""
        return []


@dataclass(frozen=True)
class Settings:
    """What the driver of a search is told, and what is known of its cluster."""

    spec: Json
    facts: Facts | None  # None for a cluster that the driver starts here


class RayDraft:
    """What is made of a configuration, and what the command line changes of it."""

    def __init__(self, path: Path, outline: Outline, limits: Limits) -> None:
        self.path, self.outline, self.limits = path, outline, limits
        self._wanted: Wanted | None = None
        self._seconds: float | None = None
        self._warm_start: list[str] = []
        self._aim: dict[str, str] = {}
        self._facts: Facts | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the configuration was read."""
        return self._wanted is not None

    @property
    def wanted(self) -> Wanted:
        """What the file says."""
        return self._wanted or Wanted()

    @property
    def max_trials(self) -> int | None:
        """How many trials there are to be."""
        return self.limits.max_trials or self.wanted.max_trials

    @property
    def max_seconds(self) -> float | None:
        """How long the search may take."""
        return self._seconds

    @property
    def concurrency(self) -> int:
        """How many trials run at once."""
        return self.limits.concurrency or self.outline.concurrency

    @property
    def assigns_gpus(self) -> bool:
        """Whether each trial is given its GPU."""
        return bool(self.wanted.resources.gpus)

    def environment_problems(self, port: int) -> list[Problem]:  # noqa: ARG002
        """Return what this machine lacks for Ray."""
        version = asked.installed()
        if version is None:
            return [Problem(ENGINE, "is not installed", INSTALL)]
        return []

    def complete(self, warm_start: Sequence[str]) -> list[Problem]:
        """Read the rest of the configuration, and ask the cluster what it is."""
        found, problems = config.wanted(self.outline.content, self.path)
        self._wanted = found
        self._seconds = self.limits.max_seconds
        if self._seconds is None and found.duration is not None:
            try:
                self._seconds = seconds_of(found.duration, str(self.path))
            except UserError as error:
                problems.append(as_problem(error))
        given = found.arguments.get("tuner", {}).get("warm_start") or []
        self._warm_start = [given] if isinstance(given, str) else list(given)
        if warm_start:
            self._warm_start = [str(Path(f).expanduser().absolute()) for f in warm_start]
        for folder in self._warm_start:
            if not Path(self.outline.code, Path(folder).expanduser()).is_dir():
                problems.append(Problem(str(self.path), f"warm_start: {folder} is not there"))
        return problems

    def give_aim(self, mode: str) -> None:
        """Let the tuner, and what stops trials, aim at `mode` where nothing else is said."""
        self._aim = {"optimize_mode": mode}

    def arguments(self, kind: str) -> Json | None:
        """Return the arguments of the tuner, or of what stops trials."""
        given = self.wanted.arguments.get(kind)
        return None if given is None else {**self._aim, **given}

    def algorithm_problems(self, mode: str, monitor: str) -> list[Problem]:
        """Return what is wrong with the tuner and what stops trials, which are to aim at `mode`."""
        where, problems = str(self.path), []
        for kind in ("tuner", "assessor"):
            arguments = self.arguments(kind)
            if arguments is None:
                continue
            aims = arguments.get("optimize_mode", "maximize")
            if mode and aims != mode:
                what = f"the {kind}'s optimize_mode is {aims}, but the trials report {monitor}"
                problems.append(Problem(where, what, f"set it to {mode}"))
                continue
            try:
                self._tuner() if kind == "tuner" else self._asha(arguments)
            except (UserError, TypeError, ValueError) as error:
                what = f"the {kind} does not take its classArgs: {error}"
                problems.append(Problem(where, what))
        return problems

    def _asha(self, arguments: Values) -> ASHA:
        named = {key: value for key, value in arguments.items() if key != "optimize_mode"}
        return ASHA(mode=MODES[arguments.get("optimize_mode", "maximize")], **named)

    def _tuner(self) -> TPE:
        arguments = self.arguments("tuner") or {}
        return TPE(
            self.outline.space,
            mode=MODES[arguments.get("optimize_mode", "maximize")],
            seed=arguments.get("seed"),
            max_trials=arguments.get("max_trials") or self.max_trials,
            first=arguments.get("first") or [],
            tpe_args=arguments.get("tpe_args"),
        )

    def resource_problems(self, options: Config | None, gpus: int | None) -> list[Problem]:  # noqa: ARG002
        """Return what is wrong with the cluster, with what a trial asks for, and what is sent."""
        where, resources = str(self.path), self.wanted.resources
        problems = self._code_problems(where)
        if resources.address == "local":
            return problems
        problems += [] if options is None else self.file_problems(options)
        try:
            self._facts = asked.ask_cluster(resources.address)
        except UserError as error:
            return [*problems, as_problem(error)]
        if self._facts.open:
            what = "the cluster lets in whoever reaches its ports: it has no token"
            remedy = "start it with RAY_AUTH_MODE=token; --public starts the search all the same"
            problems.append(Problem(ENGINE, what, remedy, fatal=False))
        for folder in self._facts.shared:
            what = f"several nodes unpack the code into {folder}, each over that of the others"
            remedy = "start each of them with a --temp-dir of its own"
            problems.append(Problem(ENGINE, what, remedy, fatal=False))
        return problems + room_problems(self._facts, resources, where)

    def _code_problems(self, where: str) -> list[Problem]:
        code, problems = self.outline.code, []
        if not (code / "ballot").is_dir():
            what = f"the folder of the code, {code}, has no ballot/, which the nodes need"
            problems.append(Problem(where, what, "name the project's folder"))
        problems += needed_problems(code, sent.IGNORE)
        total = sum(bytes_ for _, bytes_ in sent.sizes(code).values())
        if total > sent.LIMIT:
            largest = max(sent.sizes(code).items(), key=lambda item: item[1][1])
            what = f"{size(total)} would be sent to the nodes, and Ray takes {size(sent.LIMIT)}"
            remedy = f"name what trials do not need in {sent.IGNORE}, as {largest[0]}"
            problems.append(Problem(str(code), what, remedy))
        return problems

    def file_problems(self, options: Config) -> list[Problem]:
        """Return the lists of rows on this machine that the nodes of a cluster are not sent."""
        found: list[Problem] = []
        if self.wanted.resources.address == "local":
            return found
        code = self.outline.code.resolve()
        for key in LISTS:
            path = Path(getattr(options, key) or "").expanduser()
            if not (path.is_absolute() and path.is_file()):
                continue
            what = f"{key}: {path} is not sent to the nodes"
            remedy = f"copy it into {code} and name it from there, as in --{key} {path.name}"
            if path.resolve().is_relative_to(code):  # the folder has another name on a node
                inside = path.resolve().relative_to(code)
                what = f"{key}: {path} has another name on the nodes"
                remedy = f"name it from {code}, as in --{key} {inside}"
            found.append(Problem(str(self.path), what, remedy))
        return found

    @property
    def machine_check(self) -> MachineCheck:
        """What is asked of machines over ssh: nothing."""
        return NoMachineCheck()

    def uploaded(self) -> Collection[str]:
        """Return the entries of the code folder that are sent to the nodes."""
        return sent.sizes(self.outline.code)

    def startup_notes(self) -> list[Problem]:
        """Say where the tuner's settings waste a small search."""
        return []

    def draw(self, number: int) -> list[Json]:
        """Let the tuner draw configurations."""
        tuner, drawn = self._tuner(), []
        for _ in range(number):
            try:
                drawn.append(dict(tuner.ask()))
            except Exhausted:
                break
        return drawn

    def tuner_name(self) -> str:
        """Return what the configuration calls its tuner."""
        return config.NAMES["tuner"]

    def leave_out(self, places: Sequence[int]) -> None:
        """Take nothing out: the machines are the cluster's."""

    def plan(self, links: Sequence[Link], *, maximize: bool) -> Plan:
        """Return the plan of what has been checked."""
        outline = self.outline
        command = self.limits.command(outline.command)
        options, _ = read_options(parse_command(command, outline.code), outline.code, "")
        given = options.config
        epochs = None
        if given is not None:
            epochs = given.epochs * (1 if given.fold is not None else given.folds)
        outputs = outputs_of(command, outline.code)
        spec: Json = {
            "command": command,
            "code": str(outline.code),
            "outputs": str(outputs),
            "max_trials": self.max_trials,
            "max_seconds": self.max_seconds,
            "concurrency": self.concurrency,
            "maximize": maximize,
            "resources": dataclasses.asdict(self.wanted.resources),
            "asked": self.wanted.resources.words,
            "space": outline.space,
            "searched": list(outline.space),
            "tuner": self.arguments("tuner") or {},
            "assessor": self.arguments("assessor"),
            "defaults": None if given is None else dataclasses.asdict(given),
            "epochs": epochs,
            "warm_start": self._warm_start,
        }
        return dataclasses.replace(plan_of(spec), settings=Settings(spec, self._facts), links=links)


def room_problems(facts: Facts, wanted: Resources, where: str) -> list[Problem]:
    """Return what a trial asks for and no node has."""
    found = []
    for name, (key, words) in HAVE.items():
        asks = getattr(wanted, name)
        most = max((node.get(key, 0.0) for node in facts.nodes), default=0.0)
        if asks and asks > most:
            what = f"a trial asks for {asks:g} {words}, and the most that a node has is {most:g}"
            found.append(Problem(where, what, "ask for less, or add such a node"))
    fits = [node for node in facts.nodes if _fits(node, wanted)]
    if not found and not fits:
        what = f"no node has all that a trial asks for: {wanted.words}"
        found.append(Problem(where, what, "ask for less, or add such a node"))
    return found


def _fits(node: Mapping[str, float], wanted: Resources) -> bool:
    return all((getattr(wanted, n) or 0) <= node.get(key, 0.0) for n, (key, _) in HAVE.items())
