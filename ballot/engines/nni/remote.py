"""A search on other machines: what its manager is told of them, and what becomes of them."""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ballot.config.out_dir import out_dir_of
from ballot.engines.interface import WRITE_S, Plan
from ballot.engines.nni import logs
from ballot.engines.nni.machine_list import NO_KEY, machines_of
from ballot.engines.nni.sent import on_machine
from ballot.errors import UserError
from ballot.machines.fetch import RUNNING, Collector, Script, Source
from ballot.machines.machine import Machine
from ballot.machines.sent import facts
from ballot.machines.ssh import Link, has_terminal, open_links, shell_word
from ballot.runs.trials import TrialRecord
from ballot.values import Json, Values

# On the machines, beside what NNI keeps of the search, so that both go with one folder.
ON_MACHINE = Script(Path(on_machine.__file__))
REMOTE = "BALLOT_REMOTE"  # what node/remote.js is told
OUT_DIR = '"$HOME/nni-experiments/$NNI_EXP_ID/outputs"'


def with_out_dir(command: str) -> str:
    """Let trials write where a later start on the same machine finds what they wrote."""
    if any(
        word.partition("=")[0].replace("-", "_") == "__out_dir" for word in shlex.split(command)
    ):
        return command
    return f"{command} --out_dir {OUT_DIR}"


def prepare(config: Any, links: Sequence[Link]) -> None:
    """Change NNI's configuration to what goes through the tunnels."""
    config.nni_manager_ip = "127.0.0.1"
    config.trial_command = with_out_dir(config.trial_command)
    for entry in config.training_service.machine_list:
        # NNI insists on a file, which ssh does not need where an agent or an alias has the key.
        if not entry.ssh_key_file or not Path(entry.ssh_key_file).expanduser().is_file():
            entry.ssh_key_file = NO_KEY
    assert len(config.training_service.machine_list) == len(links)


def environment(plan: Plan) -> dict[str, str]:
    """Return what remote.js is told: the machines, in the order of the configuration.

    Where trials write to a place of their machine, also where checkpoints of them are kept here.
    """
    if not plan.links:
        return {}
    out_dir = out_dir_of(plan.command, plan.code)
    kept = str(plan.outputs / RUNNING) if out_dir.startswith(("/", "~/", "$")) else None
    slots = slots_of(count_gpus(plan.links), plan.concurrency)
    machines = [
        {
            "name": link.name,
            "ssh": link.ssh_words(),
            "slots": number,
            "python": shell_word(link.machine.interpreter),
            "agent": link.agent.socket if link.agent else None,
        }
        for link, number in zip(plan.links, slots)
    ]
    return {REMOTE: json.dumps({"machines": machines, "outDir": out_dir, "running": kept})}


def count_gpus(links: Sequence[Link]) -> list[int]:
    """Return how many GPUs each machine has; 0 where it does not say."""
    source = Path(facts.__file__).read_text(encoding="utf-8")

    def count(link: Link) -> int:
        with suppress(UserError):
            return int(link.python(f"{source}\nprint(len(find_gpus()))"))
        return 0

    with ThreadPoolExecutor(max(1, len(links))) as pool:
        return list(pool.map(count, links))


def slots_of(gpus: Sequence[int], concurrency: int) -> list[int]:
    """Divide the trials at once among machines: one a GPU or machine, then more in proportion."""
    weights = [max(1, number) for number in gpus]
    slots = list(weights)
    while sum(slots) < concurrency:
        least = min(range(len(slots)), key=lambda place: slots[place] / weights[place])
        slots[least] += 1
    return slots


def links_again(note: Values, params: Values, *, quiet: bool = False) -> list[Link]:
    """Return links to the machines of a search that was started earlier, open where that is so.

    There are none where NNI ran it as it ships.
    """
    if not note.get("guarded", True):
        return []
    known = [Machine(**each) for each in note.get("machines", ())] or machines_of(params)
    links = [Link(machine, ssh_options=note.get("ssh_options", ())) for machine in known]
    for error in open_links(links, interactive=has_terminal()):
        if error is not None and not quiet:
            print(f"{error}; it is tried again while the search runs", flush=True)
    return links


def note_of(links: Sequence[Link]) -> Json:
    """Return what the search is to remember of its machines; no secret is in it."""
    return {
        "machines": [dataclasses.asdict(link.machine) for link in links],
        "ssh_options": list(links[0].ssh_options) if links else [],
    }


class Fleet:
    """The machines of a search that is watched: their results, and news of them."""

    def __init__(self, search_id: str, folder: Path, plan: Plan, *, checkpoints: int) -> None:
        self.links = list(plan.links)
        out_dir = out_dir_of(plan.command, plan.code)
        source = Source(search_id, self.links, out_dir, plan.outputs, folder, ON_MACHINE)
        self.collector = Collector(source, checkpoints=checkpoints, maximize=plan.maximize)
        self._folder = folder
        self._search_id = search_id
        self._told: dict[str, str] = {}
        self._moved: list[str] = logs.moves(folder)

    def news(self) -> list[str]:
        """Return what has become of machines since it was last asked."""
        lines = []
        for state in machine_states(self._folder):
            before = self._told.get(state.name, "coming")
            self._told[state.name] = state.state
            if state.state != before and not (before == "coming" and state.state == "up"):
                lines.append(said_of(state))
        moved = [line for line in logs.moves(self._folder) if line not in self._moved]
        self._moved += moved
        return [*lines, *moved]

    def bring(self, trials: Sequence[TrialRecord]) -> None:
        """Begin to bring home what has ended."""
        self.collector.update(trials)

    def finish(self, trials: Sequence[TrialRecord], *, over: bool = True) -> list[str]:
        """Bring home the rest; return what could not be, and end what runs there by itself."""
        if over:
            sweep(self.links, self._search_id)
        lines = self.collector.finish(trials, over=over)
        if lines:
            lines.append(f"bring it later: python collect.py {self._search_id}")
        return lines

    def brought(self) -> int:
        """Return how many runs something came home of."""
        return len(set(self.collector.brought))

    def close(self) -> None:
        """Disconnect."""
        for link in self.links:
            link.close()


def said_of(state: MachineState) -> str:
    """Say what a change of a machine means for its trials."""
    if state.state == "out":
        return (
            f"{state.name} is out ({state.why}); it is tried again every 15 s, and its trials "
            "go on there, or elsewhere after a minute"
        )
    if state.state == "silent":
        return f"{state.name} does not answer; its trials go on there, and are waited for"
    return f"{state.name} is back"


def sweep(links: Iterable[Link], search_id: str) -> None:
    """End what a search left on machines, as its manager would have done.

    A machine that does not answer does so when it is used again.
    """

    def one(link: Link) -> None:
        with suppress(UserError, OSError):
            link.open()
            ON_MACHINE.ask(link, "sweep", search_id, None, WRITE_S)

    links = list(links)
    with ThreadPoolExecutor(max(1, len(links))) as pool:
        list(pool.map(one, links))


@dataclass(frozen=True)
class MachineState:
    """What NNI's manager knows of another machine: up, silent, out or coming."""

    name: str
    state: str
    since: float  # seconds since the epoch
    why: str = ""

    @property
    def words(self) -> str:
        """How it is, in words."""
        words = {"out": "is out", "silent": "does not answer", "coming": "is being set up"}
        why = f", {self.why}" if self.why else ""
        when = time.strftime("%H:%M", time.localtime(self.since))
        return f"{words[self.state]} (since {when}{why})" if self.state in words else "is up"


def machine_states(folder: Path) -> list[MachineState]:
    """Read what fleet.js writes down beside NNI's database; nothing where it has not."""
    try:
        said = json.loads((folder / "machines.json").read_text(encoding="utf-8"))
        return [
            MachineState(each["name"], each["state"], each["since"] / 1000, each["why"])
            for each in said
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []
