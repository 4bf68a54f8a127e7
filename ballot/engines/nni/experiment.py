"""A search that NNI runs or ran: found in NNI's list, watched, and ended."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # comes with NNI

from ballot.engines.interface import WRITE_S, Launch, Limits, Machines, MachineState, Plan, Status
from ballot.engines.nni import guard, logs, profile, remote
from ballot.engines.nni.database import Records, database_of
from ballot.engines.nni.listed import Listed
from ballot.engines.nni.portal import FAILURES
from ballot.engines.nni.processes import (
    await_end,
    belonging,
    end_processes,
    kill,
)
from ballot.engines.notes import Noted
from ballot.errors import UserError
from ballot.runs.files import json_or_empty
from ballot.runs.trials import TrialRecord

STOP_S = 90.0  # NNI gives itself 60 s to shut down


@dataclass
class NniSearch(Listed, Noted):
    """A search, whether its manager runs or not."""

    _records: Records | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, listed: Listed) -> NniSearch:
        """Return the search of an entry of NNI's list."""
        return cls(**vars(listed))

    @property
    def address(self) -> str:
        """The page of its portal, while it runs."""
        return self.portal.url if self.is_running() else ""

    def has_leftovers(self) -> bool:
        """Whether processes work for it although its manager is gone."""
        return bool(belonging(self.id, self.folder))

    def status(self) -> Status:
        """Return how it stands."""
        if not self.is_running():
            return Status("gone")
        return self.portal.status() or Status("silent" if self.is_running() else "gone")

    def tuner_is_alive(self) -> bool:
        """Whether the process lives in which NNI runs the tuner."""
        manager = self.manager()
        with contextlib.suppress(psutil.Error):
            # NNI starts it through a shell, which stays or not.
            for child in manager.children(recursive=True) if manager else []:
                if "--exp_params" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    return True
        return False

    def verify(self, launch: Launch) -> None:
        """Refuse to go on where the guard did not take hold: NNI alone is open to the network."""
        if not launch.guarded:
            return
        elsewhere = self.plan().elsewhere
        wrong = guard.self_test(self.port or 0, self.prefix, public=launch.public, remote=elsewhere)
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise UserError(
                f"{wrong[0]}{more}; the search was stopped, --no_guard runs it all the same"
            )

    def trials(self) -> list[TrialRecord]:
        """Return its trials; every record of NNI's database is read once."""
        self._records = self._records or Records(self.folder)
        return self._records.read()

    def plan(self) -> Plan:
        """Return its plan as NNI's database has it."""
        params, _ = profile.read_profile(self.folder)
        plan = profile.plan_of(params, self.id)
        limit = self.note().get("max_duration")  # NNI was told another one: no more trials
        return profile.with_time(plan, float(limit)) if limit else plan

    def reconnected(self, plan: Plan, *, quiet: bool = False) -> Plan:
        """Return the plan with links to the machines of the search."""
        if not plan.elsewhere:
            return plan
        params, _ = profile.read_profile(self.folder)
        links = remote.links_again(self.note(), params, quiet=quiet)
        return dataclasses.replace(plan, links=links)

    def machines(self, plan: Plan, *, checkpoints: int | None = None) -> Machines | None:
        """Return what brings results home; a search on this machine has none."""
        if not plan.links:
            return None
        keep = self.note().get("keep_checkpoints") if checkpoints is None else checkpoints
        return remote.Fleet(self.id, self.folder, plan, checkpoints=1 if keep is None else keep)

    def machine_states(self) -> list[MachineState]:
        """Return how its other machines are."""
        return [MachineState(each.name, each.words) for each in remote.machine_states(self.folder)]

    def seconds_counted(self) -> float:
        """Return the seconds that NNI's managers have counted."""
        return profile.read_profile(self.folder)[1]

    def last_words(self, trial_id: str, lines: int = 1) -> str:
        """Return the last lines that a trial wrote before it ended."""
        return logs.last_words(self.folder, trial_id, lines)

    def retries(self) -> dict[str, str]:
        """Return the trials that run a second time, with the reason."""
        return logs.retries(self.folder)

    def tuner_error(self) -> str:
        """Return the error that the tuner wrote last, or nothing."""
        return logs.tuner_error(self.folder)

    def cancel(self, trial_id: str) -> None:
        """End one trial; it is told so and has some seconds to write."""
        self.portal.cancel(trial_id)

    def begin_no_more(self, plan: Plan) -> bool:
        """Let no further trial begin, by a time that is over; whether NNI took it."""
        self.amend_note(max_duration=plan.max_seconds)  # which NNI forgets now
        try:
            self.portal.change(Limits(max_seconds=1))
        except FAILURES:
            return False
        return True

    def change_limits(self, limits: Limits) -> None:
        """Tell a running manager of new limits."""
        self.portal.change(limits)

    def record(self, plan: Plan) -> None:
        """Record the limits and the command of a plan for the next manager."""
        params, _ = profile.read_profile(self.folder)
        profile.write_profile(self.folder, profile.with_plan(params, plan))
        if self.note():
            self.amend_note(max_duration=None)

    def stop(self, patience: float = STOP_S) -> None:
        """End the trials, which write what they have, and the manager, and all they left."""
        manager = self.manager()
        if manager is not None:
            try:
                self.portal.ask("DELETE", "experiment")
                await_end(manager, patience)
            except FAILURES:  # it hangs, and will listen to a kill only; its trials go first,
                # since a report to one that is gone crashes them.
                end_processes(self.id, self.folder, WRITE_S)
            kill(manager)
        end_processes(self.id, self.folder, WRITE_S)

    def kill(self) -> None:
        """End everything at once; what the trials have not written is lost."""
        if manager := self.manager():
            kill(manager)
        end_processes(self.id, self.folder, 0.0)


def known_searches() -> list[NniSearch]:
    """Return every search in NNI's list of this user, the newest first."""
    entries = json_or_empty(Path.home() / "nni-experiments" / ".experiment")
    searches = [
        NniSearch(
            key,
            Path(entry["logDir"], key),
            entry.get("port"),
            entry.get("pid"),
            entry.get("prefixUrl"),
            entry.get("startTime", 0) / 1000,
        )
        for key, entry in entries.items()
        if entry.get("logDir")
    ]
    searches = [search for search in searches if database_of(search.folder).exists()]
    return sorted(searches, key=lambda search: search.began, reverse=True)
