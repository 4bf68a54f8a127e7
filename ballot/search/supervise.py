"""A search that runs: shown while it goes on, and stopped however it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Collection, Iterator

from ballot import wording
from ballot.config import trial_command
from ballot.engines.interface import Launch, Machines, Plan, Search
from ballot.report.page import try_report
from ballot.runs.disk import Pruner, shortage
from ballot.runs.results import OVER, Results
from ballot.runs.trials import TrialRecord
from ballot.search.screen import Pace, Screen
from ballot.search.time_budget import Budget
from ballot.search.trouble import End, Watch, overdue
from ballot.steady import steady_time

LOOK_S = 1.0  # between two looks at a search
PAGE_S = 60.0  # how often the report is brought up to date
UPDATE_S = 2.0  # and the table
NOTE_S = 5.0  # and what is known of the time


def follow(
    search: Search,
    plan: Plan,
    results: Results,
    budget: Budget,
    launch: Launch,
    *,
    every: float = LOOK_S,
) -> End:
    """Watch a search until it ends, however that comes, and stop what is left of it."""
    end, machines = End(), search.machines(plan)
    with sigterm_as_interrupt():
        try:
            if search.is_running():
                search.verify(launch)
                where = f": {search.address} until it ends" if search.address else " runs"
                print(f"search {search.id}{where}", flush=True)
                end = watch(search, plan, results, budget, machines, every=every)
        except KeyboardInterrupt:
            end = End(interrupted=True)
            print("\nstopping: the running trials write what they have ...", flush=True)
        finally:
            stop(search)
            if budget.closed and not plan.posted:
                # For whatever goes on with it: the time that was really given.
                search.record(dataclasses.replace(plan, max_seconds=budget.limit))
            search.amend_note(spent=budget.spent(steady_time()), reasons=results.reasons)
    if machines is not None:
        print("bringing the results home ...", flush=True)
        print("".join(f"{line}\n" for line in bring_home(search, machines)), end="")
    return end


def bring_home(search: Search, machines: Machines) -> list[str]:
    """Bring the results home that are not; return what could not be, and how it can."""
    try:
        return machines.finish(search.trials())
    except KeyboardInterrupt:
        return [f"interrupted; bring the rest later: python collect.py {search.id}"]


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let a SIGTERM end the search as Ctrl-C does: trials write what they have, and vote."""

    def interrupt(_signum: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop(search: Search) -> None:
    """Stop a search; a second Ctrl-C does not wait for the trials."""
    try:
        search.stop()
    except KeyboardInterrupt:
        print("\nended at once: trials keep what they wrote after their last epoch", flush=True)
        search.kill()


def watch(
    search: Search,
    plan: Plan,
    results: Results,
    budget: Budget,
    machines: Machines | None = None,
    *,
    every: float = LOOK_S,
) -> End:
    """Show how the search goes until its last trial has ended, or until it cannot go on."""
    eye = Watch(search.id, steady_time(), plan.may_wait)
    screen = Screen(plan, budget)
    chores = Chores(search, plan, results, budget, screen, machines)
    while True:
        status = search.status()
        now, trials = steady_time(), alive(search.trials(), plan.halted)
        chores.do(trials, now)
        screen.show(trials, results, now)
        if eye.is_done(status.state, trials, now):
            screen.close()
            return End()
        if status.state == "stopping":  # by nnictl, the portal, or --stop
            screen.close()
            raise KeyboardInterrupt
        if budget.left_for_trials(steady_time()) <= 0:
            running = [trial.id for trial in trials if not trial.has_ended]
            results.reasons.update(dict.fromkeys(running, OVER))
            do = "trial writes what it has" if len(running) == 1 else "trials write what they have"
            screen.say(f"{OVER}: {len(running)} {do} ...")
            return End(over=True)
        trouble = eye.look(status, trials, search.tuner_is_alive, now)
        if trouble is not None and trouble.fatal:
            screen.close()
            return End(trouble)
        if trouble is not None:
            screen.say(f"{trouble.what}; {trouble.remedy}")
        time.sleep(every)


class Chores:
    """What is to be done beside watching: files brought up to date, hanging trials, the time."""

    def __init__(
        self,
        search: Search,
        plan: Plan,
        results: Results,
        budget: Budget,
        screen: Screen,
        machines: Machines | None = None,
    ) -> None:
        self._search, self._plan, self._results = search, plan, results
        self._budget, self._screen, self._machines = budget, screen, machines
        self._told = set(search.retries())
        self._trial_limit = (
            float(trial_command.option_of(plan.command, "--time_limit", "0")) or None
        )
        self._began = steady_time()
        self._table, self._note = Pace(UPDATE_S), Pace(NOTE_S)
        self._page = Pace(PAGE_S, steady_time())
        keep = search.note().get("keep_checkpoints")
        self._pruner = None if keep is None else Pruner(keep, maximize=plan.maximize)
        self._ended, self._short = 0, False
        # When each trial last wrote its result, by the system's clock, and when that was seen.
        self._signs: dict[str, tuple[float, float]] = {}

    def do(self, trials: list[TrialRecord], now: float) -> None:
        """Do what is due."""
        for trial in trials:
            if trial.status == "running" and (trial.resumed or 0.0) > self._began:
                self._results.reasons.pop(trial.id, None)  # why it was ended is past
        if self._table.is_due(now):
            with self._table:
                self._results.update(trials)
        if self._note.is_due(now):
            with self._note:
                self._search.amend_note(began=self._budget.began, spent=self._budget.spent(now))
                if self._budget.limit is not None:
                    self._budget.look([self._results.folder_of(trial) for trial in trials])
        if self._machines is not None:
            self._machines.bring(trials)
            for line in self._machines.news():
                self._screen.say(line)
        self._keep_time(trials, now)
        self._end_what_hangs(trials, now)
        self._keep_house(trials)
        if (
            self._page.is_due(now)
            and any(trial.scores for trial in trials)
            and self._budget.left_for_trials(now) > 2 * self._page.took + 1
        ):
            with self._page:
                try_report(self._plan.outputs, self._plan.page, search=self._search.id)

    def _keep_house(self, trials: list[TrialRecord]) -> None:
        """Remove checkpoints that nobody wants, and say in time that the disk will be full."""
        if sum(trial.has_ended for trial in trials) == self._ended:
            return
        ended = [self._results.folder_of(trial) for trial in trials if trial.has_ended]
        self._ended, most = len(ended), self._plan.max_trials
        if self._pruner is not None:
            self._pruner.prune(ended)
        said = shortage(self._plan.outputs, ended, None if most is None else most - len(ended))
        if said and not self._short:
            self._screen.say(f"warning: {said}")
        self._short = bool(said)

    def _keep_time(self, trials: list[TrialRecord], now: float) -> None:
        """Let no trial begin that would be cut before it is of use."""
        budget, most = self._budget, self._plan.max_trials
        if self._plan.posted or budget.closed or len(trials) == most:
            return
        if not budget.is_too_late(trials, now):
            return
        if not self._search.begin_no_more(self._plan):
            return  # it is asked again in a second
        budget.closed = True
        left = wording.clock(budget.left_for_trials(now))
        self._screen.say(f"no further trial is begun: the {left} left are less than half of one")

    def _end_what_hangs(self, trials: list[TrialRecord], now: float) -> None:
        for trial_id, why in self._search.retries().items():
            if trial_id not in self._told:
                self._told.add(trial_id)
                self._screen.say(f"trial {trial_id} {why}; it runs once more")
        for trial_id, sign in signs_of_life(trials, self._results).items():
            if self._signs.get(trial_id, (None, now))[0] != sign:
                self._signs[trial_id] = sign, now
        seen = {trial_id: at for trial_id, (_, at) in self._signs.items()}
        for trial in overdue(trials, self._trial_limit, seen, now):
            self._screen.say(f"trial {trial.sequence} ({trial.id}) hangs; it is ended")
            self._results.reasons[trial.id] = "hung: it was ended long after its time limit"
            self._search.cancel(trial.id)


def alive(trials: list[TrialRecord], halted: Collection[str]) -> list[TrialRecord]:
    """Mark the trials as ended that an earlier part of the search left behind."""
    for trial in trials:
        if trial.id in halted:
            trial.status = "cancelled"
    return trials


def signs_of_life(trials: list[TrialRecord], results: Results) -> dict[str, float]:
    """Return when each trial that runs last wrote its result, by the system's clock."""
    signs = {}
    for trial in (trial for trial in trials if trial.status == "running"):
        with contextlib.suppress(OSError):
            signs[trial.id] = (results.folder_of(trial) / "result.json").stat().st_mtime
    return signs
