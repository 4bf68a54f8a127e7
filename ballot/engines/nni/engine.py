"""NNI as an engine of searches: it checks, starts, takes up again, and lists them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ballot.cpus import threads_each, threads_told
from ballot.engines.interface import Draft, Launch, Limits, Plan, Search, Sketch
from ballot.engines.nni import config, manager, remote
from ballot.engines.nni.algorithms import ASSESSOR, TUNER
from ballot.engines.nni.draft import NniDraft
from ballot.engines.nni.experiment import NniSearch, known_searches
from ballot.engines.nni.machine_list import machines_of
from ballot.engines.nni.portal import FAILURES
from ballot.engines.planned import write_planned
from ballot.errors import UserError
from ballot.machines.machine import Machine
from ballot.problems import Problem
from ballot.values import Values

READY_S = 120.0  # for NNI and its tuner to be there


class NniEngine:
    """The default: NNI on this machine, its trials here or on machines reached by ssh."""

    name = "nni"

    def write_config(self, path: Path, sketch: Sketch) -> None:
        """Write a configuration of NNI."""
        code = {"codeDirectory": str(sketch.code)}
        write_planned(
            path,
            sketch,
            tuner={"className": TUNER, **code},
            assessor={"className": ASSESSOR, **code},
            service={"platform": "local"},
        )

    def read(self, path: Path, limits: Limits, *, guarded: bool) -> tuple[Draft, list[Problem]]:
        """Read a configuration in either of NNI's versions; a file that is none is an error."""
        outline, problems = config.outline(config.read_content(path), path)
        return NniDraft(path, outline, limits, guarded=guarded), problems

    def machines_in(self, path: Path) -> list[Machine]:
        """Return the other machines that a configuration names; none where trials run here."""
        content = config.read_content(path)
        outline, _ = config.outline(content, path)
        return [] if outline.is_local else machines_of(content, path.parent)

    def known_searches(self) -> Sequence[NniSearch]:
        """Return every search in NNI's list of this user, the newest first."""
        return known_searches()

    def start(self, plan: Plan, launch: Launch, note: Values) -> NniSearch:
        """Start a manager for a new search, and write down what it takes to go on with it."""
        listed = manager.start(plan.settings, launch.port, environment(plan, launch))
        search = NniSearch.of(listed)
        search.write_note(**note, **remote.note_of(plan.links))
        return search

    def resume(self, search: Search, plan: Plan, launch: Launch) -> NniSearch:
        """Start a manager that goes on with a search, from NNI's record of it."""
        return NniSearch.of(manager.resume(search, launch.port, environment(plan, launch)))

    def run_more(
        self,
        search: Search,
        plan: Plan,
        launch: Launch,
        parameters: Sequence[Values],
        again: Sequence[str],
    ) -> NniSearch:
        """Run trials under a manager that asks no tuner (node/trials.js)."""
        extra = environment(plan, launch)
        extra |= {"BALLOT_TRIALS": str(plan.max_trials), "BALLOT_AGAIN": ",".join(again)}
        running = NniSearch.of(manager.resume(search, launch.port, extra))
        try:
            post(running, parameters)
        except BaseException:
            running.stop()
            raise
        return running


def environment(plan: Plan, launch: Launch) -> dict[str, str]:
    """Return what NNI's manager, and with it every trial, has in its environment."""
    guard = manager.environment(launch.public) if launch.guarded else {}
    return threads_for(plan.concurrency) | guard | remote.environment(plan)


def threads_for(concurrency: int) -> dict[str, str]:
    """Divide the cores among the trials: more threads than cores slow all of them down."""
    if threads_told() is not None:
        return {}
    return {"OMP_NUM_THREADS": str(threads_each(concurrency))}


def post(search: NniSearch, parameters: Sequence[Values]) -> None:
    """Hand trials to a manager as soon as it takes them."""
    deadline = time.monotonic() + READY_S
    while (status := search.status()).state in ("starting", "silent"):
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    if status.state not in ("running", "all_started"):
        why = "; ".join(status.errors) or status.state
        raise UserError(f"NNI: its manager takes no trials ({why}); see {search.folder / 'log'}")
    for each in parameters:
        try:
            search.portal.ask("POST", "trial-jobs", each)
        except FAILURES as error:
            raise UserError(f"NNI: its manager did not take a trial ({error})") from None
