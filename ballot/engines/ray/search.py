"""A search that runs or ran on Ray: its folder, its record, and its driver if that lives."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ballot.engines.interface import (
    Launch,
    Limits,
    Machines,
    MachineState,
    Plan,
    SearchState,
    Status,
)
from ballot.engines.notes import Noted
from ballot.engines.ray import control
from ballot.engines.ray.journal import FILE, Journal
from ballot.errors import UserError
from ballot.runs.files import read_json, write_json
from ballot.runs.trials import NO_WORD, TrialRecord
from ballot.values import Values

SPEC = "spec.json"
ROOT = Path(".ballot", "ray")  # in the user's home
STOP_S = 90.0
SILENT_S = 60.0  # a driver writes every other second that it lives
LOG = Path("log", "driver.log")
STATES = get_args(SearchState)


class RaySearch(Noted):
    """A search, whether its driver runs or not."""

    def __init__(self, folder: Path) -> None:
        self.id, self.folder = folder.name, folder
        self.began = (folder / SPEC).stat().st_mtime if (folder / SPEC).exists() else time.time()
        with contextlib.suppress(OSError, ValueError):
            self.began = float((folder / "began").read_text())
        self._journal = Journal(folder / FILE)

    @property
    def address(self) -> str:
        """Nowhere: no page is served."""
        return ""

    def is_running(self) -> bool:
        """Whether its driver lives."""
        return control.driver_of(self.folder) is not None

    def has_leftovers(self) -> bool:
        """Whether something works for it without a driver: the cluster ends what does."""
        return False

    def status(self) -> Status:
        """Return how it stands."""
        said = control.state_of(self.folder)
        state: SearchState = said.get("state") or "starting"
        errors = tuple(said.get("errors") or ())
        if not self.is_running():
            return Status("error" if state == "error" else "gone", errors)
        if state not in STATES or state in ("gone", "error"):
            state = "starting"
        if time.time() - float(said.get("at") or time.time()) > SILENT_S and state != "starting":
            state = "silent"
        return Status(state, errors)

    def tuner_is_alive(self) -> bool:
        """Whether the process lives that asks the tuner."""
        return self.is_running()

    def verify(self, launch: Launch) -> None:
        """Check nothing more: the cluster was asked before the start."""

    def trials(self) -> list[TrialRecord]:
        """Return its trials as they stand; what is recorded is read once."""
        trials = self._journal.read()
        if not self.is_running():
            for trial in trials:
                if trial.status == "running":  # its driver was killed, and so it was ended
                    trial.status = "waiting"
        return trials

    def plan(self) -> Plan:
        """Return its plan as it was recorded."""
        return plan_of(self.spec())

    def spec(self) -> dict:
        """Return what its driver is told."""
        spec = read_json(self.folder / SPEC)
        if not spec:
            raise UserError(f"search {self.id}: its record {self.folder / SPEC} is not there")
        return spec

    def reconnected(self, plan: Plan, *, quiet: bool = False) -> Plan:  # noqa: ARG002
        """Return the plan as it is: the driver alone has connections."""
        return plan

    def machines(self, plan: Plan, *, checkpoints: int | None = None) -> Machines | None:  # noqa: ARG002
        """Return what tells of nodes; results come home by themselves."""
        return Nodes(self.folder)

    def machine_states(self) -> list[MachineState]:
        """Return how the nodes were at the last look."""
        nodes = control.state_of(self.folder).get("nodes") or []
        words = {True: "is up", False: "is lost"}
        return [MachineState(node["name"], words[node["alive"]]) for node in nodes]

    def seconds_counted(self) -> float:
        """Return the seconds that its drivers have lived."""
        return float(control.state_of(self.folder).get("seconds") or 0.0)

    def last_words(self, trial_id: str, lines: int = 1) -> str:
        """Return the last lines that a trial wrote before it ended."""
        try:
            text = (self.folder / "environments" / f"{trial_id}.txt").read_text(encoding="utf-8")
        except OSError:
            return NO_WORD
        said = [line for line in text.splitlines() if line.strip()]
        return "\n".join(said[-lines:]) or NO_WORD

    def retries(self) -> dict[str, str]:
        """Return the trials that run a second time, with the reason."""
        self._journal.read()
        return self._journal.again

    def tuner_error(self) -> str:
        """Return the error that the driver ended with, or nothing."""
        return "; ".join(control.state_of(self.folder).get("errors") or ())

    def cancel(self, trial_id: str) -> None:
        """End one trial; it is told so and has some seconds to write."""
        control.ask(self.folder, "cancel", id=trial_id)

    def begin_no_more(self, plan: Plan) -> bool:  # noqa: ARG002
        """Let no further trial begin."""
        control.ask(self.folder, "close")
        return True

    def change_limits(self, limits: Limits) -> None:
        """Tell a search that runs of new limits."""
        if limits:
            spec = self.spec()
            command = limits.command(spec["command"]) if limits.changes_command else None
            facts = dataclasses.asdict(limits)
            self._amend_spec(**facts, command=command)
            control.ask(self.folder, "limits", **facts, command=command)

    def record(self, plan: Plan) -> None:
        """Record the limits and the command of a plan, while nothing runs."""
        self._amend_spec(
            max_trials=plan.max_trials,
            max_seconds=plan.max_seconds,
            concurrency=plan.concurrency,
            command=plan.command,
        )

    def _amend_spec(self, **facts: object) -> None:
        spec = self.spec()
        write_json(
            self.folder / SPEC,
            spec | {k: v for k, v in facts.items() if k in spec and v is not None},
        )

    def stop(self, patience: float = STOP_S) -> None:
        """End it; its trials write what they have, and send it home."""
        if not self.is_running():
            return
        control.ask(self.folder, "stop")
        deadline = time.monotonic() + patience
        while self.is_running():
            if time.monotonic() > deadline:
                self.kill()
                return
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once; the cluster ends the trials."""
        if pid := control.driver_of(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while self.is_running():
            time.sleep(0.05)


class Nodes:
    """News of the nodes and of trials that wait, as the driver writes them down."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        _, self._place = control.news_after(folder, 0)

    def news(self) -> list[str]:
        """Return what has happened since it was last asked."""
        lines, self._place = control.news_after(self._folder, self._place)
        return lines

    def bring(self, trials: Sequence[TrialRecord]) -> None:
        """Do nothing: trials send their results."""

    def finish(self, trials: Sequence[TrialRecord], *, over: bool = True) -> list[str]:  # noqa: ARG002
        """Return nothing: what trials could send is here."""
        return []

    def brought(self) -> int:
        """Return how many runs were fetched: none."""
        return 0

    def close(self) -> None:
        """Close nothing."""


def plan_of(spec: Values) -> Plan:
    """Return the plan of a search from what its driver is told."""
    return Plan(
        settings=None,
        command=spec["command"],
        code=Path(spec["code"]),
        outputs=Path(spec["outputs"]),
        max_trials=spec["max_trials"],
        max_seconds=spec["max_seconds"],
        concurrency=spec["concurrency"],
        maximize=spec["maximize"],
        may_wait=True,
        elsewhere=True,
    )


def known_searches() -> list[RaySearch]:
    """Return every search of this user on Ray, the newest first."""
    root = Path.home() / ROOT
    folders = [path.parent for path in root.glob(f"*/{SPEC}")] if root.is_dir() else []
    return sorted(map(RaySearch, folders), key=lambda search: search.began, reverse=True)
