"""A search that runs: shown while it goes on, and stopped however it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import experiment, guard, overview
from harness.errors import UserError
from harness.experiment import TrialRecord, read_trials
from harness.report import try_report
from harness.results import Results
from harness.searches import Search
from harness.watch import Trouble, Watch, overdue

PAGE_S = 60.0  # how often the report is brought up to date


@dataclasses.dataclass(frozen=True)
class Plan:
    """A search that has been checked and can start."""

    config: Any  # nni.experiment.config.ExperimentConfig; None where NNI's database has it
    command: str
    outputs: Path
    max_trials: int | None
    max_seconds: float | None
    concurrency: int
    maximize: bool
    may_wait: bool = False  # trials may wait for a GPU or a machine

    @property
    def page(self) -> Path:
        """Where the report of the search stands: beside its outputs."""
        return self.outputs.parent / "report.html"


@dataclasses.dataclass(frozen=True)
class End:
    """How a search came to its end."""

    trouble: Trouble | None = None
    interrupted: bool = False


def follow(search: Search, plan: Plan, results: Results, *, guarded: bool, public: bool) -> End:
    """Watch a search until it ends, however that comes, and stop what is left of it."""
    trouble, interrupted = None, False
    with sigterm_as_interrupt():
        try:
            if search.manager() is not None:
                if guarded:
                    prove_guard(search, public)
                print(f"search {search.id}: http://127.0.0.1:{search.port} until it ends",
                      flush=True)  # fmt: skip
                trouble = watch(search, plan, results)
        except KeyboardInterrupt:
            interrupted = True
            print("\nstopping: the running trials write what they have ...", flush=True)
        finally:
            stop(search)
    return End(trouble, interrupted)


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


def prove_guard(search: Search, public: bool) -> None:
    """Refuse to go on where the guard did not take hold: NNI alone is open to the network."""
    wrong = guard.self_test(search.port, public=public)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(
            f"{wrong[0]}{more}; the search was stopped, --no_guard runs it all the same"
        )


def watch(search: Search, plan: Plan, results: Results) -> Trouble | None:
    """Show how the search goes until its last trial has ended, or until it cannot go on."""
    eye = Watch(search.id, time.time(), plan.may_wait)
    screen = Screen(plan, search.profile()[1])
    told = set(search.retries())
    limit = float(experiment.option_of(plan.command, "--time_limit", "0")) or None
    last_update, last_page = 0.0, time.time()
    while True:
        status, errors = search.status()
        now, trials = time.time(), read_trials(search.folder)
        if now - last_update > 2:
            results.update(trials)
            last_update = now
        if now - last_page > PAGE_S and any(trial.scores for trial in trials):
            try_report(plan.outputs, plan.page, search=search.id)
            last_page = time.time()
        screen.show(trials, results, now)
        for trial_id, why in search.retries().items():
            if trial_id not in told:
                told.add(trial_id)
                screen.say(f"trial {trial_id} {why}; it runs once more")
        for trial in overdue(trials, limit, signs_of_life(trials, results), now):
            screen.say(f"trial {trial.sequence} ({trial.id}) hangs; it is ended")
            results.reasons[trial.id] = "hung: it was ended long after its time limit"
            search.cancel(trial.id)
        if eye.is_done(status, trials, now):
            return screen.close()
        if status == "STOPPING":  # by nnictl, the portal, or --stop
            screen.close()
            raise KeyboardInterrupt
        trouble = eye.look(status, errors, trials, lambda: search.tuner() is not None, now)
        if trouble is not None and trouble.fatal:
            screen.close()
            return trouble
        if trouble is not None:
            screen.say(f"{trouble.what}; {trouble.remedy}")
        time.sleep(1)


def signs_of_life(trials: list[TrialRecord], results: Results) -> dict[str, float]:
    """Return when each trial last wrote its result, in seconds since the epoch."""
    signs = {}
    for trial in trials:
        with contextlib.suppress(OSError):
            signs[trial.id] = (results.folder_of(trial) / "result.json").stat().st_mtime
    return signs


class Screen:
    """One live line on a terminal, a line for each change in a pipe."""

    def __init__(self, plan: Plan, spent: float) -> None:
        self._plan = plan
        self._began = time.time() - spent
        self._shown: list[str] = []

    def show(self, trials: list[TrialRecord], results: Results, now: float) -> None:
        """Show how it goes."""
        plan, spent = self._plan, now - self._began
        limit = None if plan.max_seconds is None else plan.max_seconds - spent
        left = overview.time_left(trials, plan.max_trials, plan.concurrency, limit, now)
        parts = [overview.count_line(trials, results.rows, plan.max_trials),
                 f"best {overview.best_score(results.rows, plan.maximize)}"]  # fmt: skip
        line = " | ".join([overview.clock(spent), *parts, f"{left} left"])
        if sys.stdout.isatty():
            width = shutil.get_terminal_size((100, 24)).columns
            print(f"\r\x1b[K{line[: width - 1]}", end="", flush=True)
        elif parts != self._shown:
            self._shown = parts
            print(line, flush=True)

    def say(self, text: str) -> None:
        """Say something that stays on the screen."""
        print(("\r\x1b[K" if sys.stdout.isatty() else "") + text, flush=True)

    def close(self) -> None:
        """Leave the live line as it is."""
        if sys.stdout.isatty():
            print(flush=True)
