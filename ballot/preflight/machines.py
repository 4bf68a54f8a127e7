"""What is wrong with the machines of a search, found over ssh before anything starts."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ballot import walking
from ballot.config.schema import Config
from ballot.config.trial_command import option_of, parse_command
from ballot.engines.interface import Draft, Engine, MachineCheck, Outline
from ballot.errors import UserError
from ballot.installed import PYTHON_RANGE, PYTHONS
from ballot.machines.machine import Machine
from ballot.machines.sent import facts
from ballot.machines.ssh import Link, on_all, open_links
from ballot.problems import Problem, as_problem
from ballot.training.options import PLACES, read_options
from ballot.values import Json, Values
from ballot.wording import plural, size

FOR_TRIALS = ("torch", "torchvision", "numpy", "scikit-learn", "pillow")
LOW, FULL = 5e9, 200e6  # bytes of free disk: worth a word, and too few for a run folder
CLOCK_S = 60.0
FACTS_S = 180.0  # a listing of a million files on a slow disk, torch's first import
GREETING = "ballot"
INSTALL = "--install makes an environment with everything"
KNOCK = """
import socket
with socket.create_connection(("127.0.0.1", args[0]), 10) as door:
    print(json.dumps(door.recv(99).decode()))
"""


@dataclass
class Reach:
    """The machines of a search: the links that stand, and what was wrong with the others."""

    machines: list[Machine] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    skip_bad: bool = False  # go on with those that nothing is wrong with

    def close(self) -> None:
        """Disconnect."""
        for link in self.links:
            link.close()


def reach(
    engine: Engine,
    path: Path,
    *,
    accept_new_host_keys: bool = False,
    ssh_config: str | None = None,
    interactive: bool = False,
    skip_bad: bool = False,
) -> Reach:
    """Open a link to each machine of a configuration; a search on this machine has none."""
    try:
        machines = engine.machines_in(path)
    except UserError as error:
        return Reach(problems=[as_problem(error)])
    if not machines:
        return Reach()
    options = [] if ssh_config is None else ["-F", str(Path(ssh_config).expanduser().absolute())]
    if options and not Path(options[1]).is_file():
        raise UserError(f"command line: ssh_config {ssh_config} is not there")
    links = [Link(machine, accept_new_host_keys, options) for machine in machines]
    errors = open_links(links, interactive)
    problems = [as_problem(error) for error in errors if error is not None]
    problems += [Problem(link.name, news, fatal=False) for link in links for news in link.news]
    standing = [link for link, error in zip(links, errors) if error is None]
    return Reach(machines, standing, problems, skip_bad)


def data_folders(outline: Outline, path: Path, wanted: str) -> tuple[Path, str]:
    """Return the folder of the data here, which `wanted` may name, and on the machines."""
    command = parse_command(outline.command, outline.code)
    options, _ = read_options(command, outline.code, str(path))
    there = needs_of(outline.command, options.config).data
    if not there:
        raise UserError(
            f"{path}: the trial command names no folder of data on the machines; as in "
            "--data_dir $HOME/data/digits"
        )
    own = wanted or (options.config and options.config.data_dir) or ""
    return Path(outline.code, Path(own).expanduser()), there


def examine(found: Reach, draft: Draft, config: Config | None) -> tuple[list[Problem], str]:
    """Return what is wrong with the machines, and a line on what each one has."""
    if not found.links:
        return found.problems, ""
    outline, check = draft.outline, draft.machine_check
    local = config.data_dir if config is not None else None
    local = str(Path(outline.code, Path(local).expanduser())) if local else ""
    needs = needs_of(outline.command, config)
    problems, known = examine_machines(found.links, needs, check, local)
    problems += check.command_problems(needs.interpreter)
    lines = [summary(name, said) for name, said in known.items()]
    return [*found.problems, *problems], "\n".join(lines)


@dataclass(frozen=True)
class Needs:
    """What trials need of every machine."""

    interpreter: str  # as the trial command names it: $HOME and ~ are the machine's own
    paths: Mapping[str, str]  # files and folders by the option that names them
    data: str


def needs_of(command: str, config: Config | None) -> Needs:
    """Read them from the trial command; relative paths are in the folder that is sent."""
    paths = {}
    for key in PLACES if config is not None else ():
        path = option_of(command, f"--{key}", str(getattr(config, key) or ""))
        if _is_theirs(path):
            paths[key] = path
    return Needs(trial_interpreter(command), paths, paths.get("data_dir", ""))


def _is_theirs(path: str) -> bool:
    return path.startswith(("/", "~", "$"))


def trial_interpreter(command: str) -> str:
    """Return the interpreter that a trial command runs, as it stands there, or nothing."""
    with contextlib.suppress(ValueError):  # of quotation marks, which is said elsewhere
        words = shlex.split(command)
        return next((w for w in words if re.fullmatch(r"python[\d.]*", Path(w).name)), "")
    return ""


def command_problems(draft: Draft, config: Config, where: str) -> list[Problem]:
    """Return what is wrong with a trial command for other machines, without asking them."""
    code = draft.outline.code
    found = []
    theirs = needs_of(draft.outline.command, config).paths
    sent: Collection[str] | None = None
    for key, file in (
        *((key, getattr(config, key)) for key in PLACES),
        *(("plugins", file) for file in config.plugins),
    ):
        if file is None or key in theirs or (key == "plugins" and _is_theirs(file)):
            continue
        sent = draft.uploaded() if sent is None else sent
        top = Path(file).parts[0]
        remedy = f"give its place there, as in --{key} $HOME/{Path(file).name}"
        if not (code / file).exists():
            found.append(Problem(where, f"{key}: {file} is not there, seen from {code}"))
        elif Path(os.path.normpath(file)).parts[0] == "..":
            what = f"{key}: {file} is outside {code}, which is all that is sent to the machines"
            found.append(Problem(where, what, remedy))
        elif sent and not {top, f"{top}/"} & set(sent):
            ignore_file = draft.machine_check.ignore_file
            what = f"{key}: {file} is not sent to the machines, because {ignore_file} names it"
            found.append(Problem(where, what, remedy))
    return found


def examine_machines(
    links: Sequence[Link], needs: Needs, check: MachineCheck, local_data: str = ""
) -> tuple[list[Problem], dict[str, Values]]:
    """Check all machines at once; return problems, and what each machine said of itself."""
    answers = on_all(links, lambda link: _examine(link, needs, check))
    problems = [problem for found, _ in answers for problem in found]
    known = {link.name: facts for link, (_, facts) in zip(links, answers) if facts}
    if needs.data:
        listings = {name: facts["data"] for name, facts in known.items()}
        problems += data_problems(listings, needs.data, local_data)
    return problems + differences(known), known


def _examine(link: Link, needs: Needs, check: MachineCheck) -> tuple[list[Problem], Values]:
    engines = link.machine.interpreter
    trials = check.interpreter_of_trials(link.machine, needs.interpreter)
    problems: list[Problem] = []
    said: Values = {}
    wanted = [*check.packages, *FOR_TRIALS]
    modules, paths = list(check.modules), list(needs.paths.values())
    try:
        problems += check.link_problems(link)
        before = time.time()
        said = ask(link, trials, "the trial command", wanted, modules, paths, needs.data)
        answered = (before + time.time()) / 2
        problems += facts_problems(link.name, said, needs, check, answered)
        problems += tunnel_problems(link, trials)
        if Path(engines).parent != Path(trials).parent:
            key = check.interpreter_key
            told = ask(link, engines, key, list(check.packages), modules, [], "")
            problems += version_problems(link.name, told, check.packages, check)
    except UserError as error:
        problems.append(as_problem(error))
    return problems, said


def ask(link: Link, interpreter: str, place: str, *args: object) -> Json:
    """Return `facts(*args)` as an interpreter of a machine says; `place` is where it is named."""
    files = (walking.__file__, facts.__file__)
    texts = [Path(file).read_text(encoding="utf-8") for file in files]
    source = "\n".join([*texts, "print(json.dumps(facts(*args)))"])
    try:
        return link.python(source, *args, interpreter=interpreter, timeout=FACTS_S)
    except UserError as error:
        if "there is no interpreter" not in str(error):
            raise
        raise UserError(
            f"{error}, which {place} names; --install makes one in ~/.ballot/venv, or "
            f"correct {place}"
        ) from None


def facts_problems(
    name: str, said: Values, needs: Needs, check: MachineCheck, now: float
) -> list[Problem]:
    """Turn what a machine said of itself into problems; `now` is our clock as it answered."""
    found = version_problems(name, said, [*check.packages, *FOR_TRIALS], check)
    free = said["free"]
    if free < FULL:
        what = f"its disk is full: {size(free)} are free in {said['home']}"
        found.append(Problem(name, what, "make room there"))
    elif said["unwritable"]:
        what = f"nothing can be written in {' and '.join(said['unwritable'])}"
        found.append(Problem(name, what, "look at its disk, quota and permissions"))
    elif free < LOW:
        what = f"only {size(free)} of disk are free in {said['home']}"
        found.append(
            Problem(name, what, "a run folder with its checkpoints takes up to 1 GB", fatal=False)
        )
    for key, path in needs.paths.items():
        if path in said["missing"]:
            remedy = "--sync_data copies it there" if key == "data_dir" else "copy it there"
            found.append(Problem(name, f"{key}: {path} is not there", remedy))
    if abs(said["time"] - now) > CLOCK_S:
        way = "ahead" if said["time"] > now else "behind"
        what = f"its clock is {abs(said['time'] - now):.0f} s {way}"
        found.append(Problem(name, what, "set up NTP there", fatal=False))
    return found + _gpu_problems(name, said)


def _gpu_problems(name: str, said: Values) -> list[Problem]:
    gpus = said["gpus"]
    if gpus and said["cuda"] is False:
        what = (
            f"has {plural(len(gpus), 'GPU')}, but its torch "
            f"{said['packages'].get('torch')} cannot use any"
        )
        return [Problem(name, what, "install a torch for its driver, or update the driver", False)]
    if gpus and all(total - used < total / 2 for _, total, used in gpus):
        what = f"its GPUs are in use: at most {size(max(t - u for _, t, u in gpus))} are free"
        return [Problem(name, what, "nvidia-smi shows there who uses them", fatal=False)]
    return []


def version_problems(
    name: str, said: Values, wanted: Sequence[str], check: MachineCheck
) -> list[Problem]:
    """Return what an interpreter lacks."""
    have, python = said["packages"], tuple(said["python"][:2])
    if not PYTHONS[0] <= python < PYTHONS[1]:
        what = f"its Python {python[0]}.{python[1]} is not one of {PYTHON_RANGE}"
        return [Problem(name, what, "install another one there")]
    missing = [package for package in wanted if not have.get(package)]
    if missing:
        what = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed there"
        return [Problem(name, what, INSTALL)]
    return check.package_problems(name, said)


def data_problems(
    listings: Mapping[str, Sequence[object] | None], path: str, local: str
) -> list[Problem]:
    """Compare the data of the machines, which must be the same, and ours, which may be others."""
    there = {name: found for name, found in listings.items() if found}
    if not there:
        return []
    digest = Counter(listing[2] for listing in there.values()).most_common(1)[0][0]
    usual = next(name for name, listing in there.items() if listing[2] == digest)
    found = []
    for name, listing in there.items():
        if listing[2] != digest:
            what = f"the data in {path} are not those of {usual}: {_told(listing, there[usual])}"
            found.append(
                Problem(
                    name, what, "--sync_data copies what is missing; delete there what is too much"
                )
            )
    mine = facts.listing_digest(facts.expand(local)) if local else None
    if not found and mine and mine[2] != digest:
        what = f"the data in {path} are not those in {local} here: {_told(there[usual], mine)}"
        found.append(Problem(usual, what, "--sync_data copies what differs", fatal=False))
    return found


def _told(one: Sequence[Any], other: Sequence[Any]) -> str:
    """Say how two listings differ."""
    if one[:2] == other[:2]:
        return f"as many files and bytes ({one[0]:,}, {size(one[1])}), by other names or sizes"
    return f"{one[0]:,} files ({one[1]:,} bytes) instead of {other[0]:,} ({other[1]:,})"


def differences(known: Mapping[str, Values]) -> list[Problem]:
    """Say where machines have different versions of what computes."""
    found = []
    for package in ("torch", "torchvision", "numpy"):
        have = {name: facts["packages"].get(package) for name, facts in known.items()}
        if len(set(have.values()) - {None}) > 1:
            what = ", ".join(f"{version} on {name}" for name, version in have.items())
            what = f"is not the same everywhere ({what})"
            remedy = "the same values then give slightly other scores"
            found.append(Problem(package, what, remedy, fatal=False))
    return found


def summary(name: str, said: Values) -> str:
    """Say in a line what a machine has."""
    gpus = Counter(gpu[0] for gpu in said["gpus"])
    least = min((total - used for _, total, used in said["gpus"]), default=0)
    cards = ", ".join(f"{count} x {gpu}" for gpu, count in gpus.items())
    cards = f"{cards} ({size(least)} free)" if cards else "no GPU"
    python = ".".join(map(str, said["python"][:2]))
    return (
        f"{name}: {cards}, {size(said['free'])} of disk free, Python {python}, "
        f"torch {said['packages'].get('torch')}"
    )


def tunnel_problems(link: Link, interpreter: str) -> list[Problem]:
    """Lead a port there to us, and let a program there knock at it."""
    with _greeter() as own, link.way_back(own) as port:
        if port is None:
            return [
                Problem(
                    link.name,
                    "its sshd leads no port back to this machine",
                    "it needs: AllowTcpForwarding remote",
                )
            ]
        with contextlib.suppress(UserError):
            if link.python(KNOCK, port, interpreter=interpreter, timeout=30) == GREETING:
                return []
    return [
        Problem(
            link.name,
            "cannot reach this machine through a tunnel",
            "look for what filters the loopback there",
        )
    ]


@contextlib.contextmanager
def _greeter() -> Iterator[int]:
    """Greet whoever connects to a port of ours, and return it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            with contextlib.suppress(OSError):
                while True:
                    guest, _ = server.accept()
                    with guest:
                        guest.sendall(GREETING.encode())

        threading.Thread(target=greet, daemon=True).start()
        try:
            yield server.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)


def leave_out(draft: Draft, found: Reach, problems: Sequence[Problem]) -> list[Problem]:
    """Take bad machines out of a configuration where that is wanted and others remain.

    Returns the problems that are left to say.
    """
    names = {machine.name for machine in found.machines}
    bad = {problem.where for problem in problems if problem.fatal} & names
    if not found.skip_bad or bad == names:
        return list(problems)
    draft.leave_out([place for place, m in enumerate(found.machines) if m.name in bad])
    for link in found.links:
        if link.name in bad:
            link.close()
    found.links = [link for link in found.links if link.name not in bad]
    return [
        replace(p, remedy="it is left out", fatal=False) if p.where in bad else p for p in problems
    ]
