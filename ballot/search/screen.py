"""The live line of a search."""

from __future__ import annotations

import sys

from ballot import wording
from ballot.engines.interface import Plan
from ballot.runs.results import Results
from ballot.runs.trials import TrialRecord
from ballot.search import status
from ballot.search.time_budget import Budget
from ballot.steady import steady_time
from ballot.wording import terminal_width


class Pace:
    """Something that is done every so often, and takes a tenth of the time at most.

    It is a context: what is done within is measured.
    """

    def __init__(self, every: float, last: float = 0.0) -> None:
        self.every, self.took = every, 0.0  # seconds
        self._last = last  # when it was done; since the epoch

    def is_due(self, now: float) -> bool:
        """Whether it is time again."""
        return now - self._last > max(self.every, 10 * self.took)

    def __enter__(self) -> None:
        self._last = steady_time()

    def __exit__(self, *_: object) -> None:
        self.took = steady_time() - self._last
        self._last += self.took


class Screen:
    """One live line on a terminal, a line for each change in a pipe."""

    def __init__(self, plan: Plan, budget: Budget) -> None:
        self._plan = plan
        self._budget = budget
        self._shown: list[str] = []

    def show(self, trials: list[TrialRecord], results: Results, now: float) -> None:
        """Show how it goes."""
        plan, budget = self._plan, self._budget
        limit = None if budget.limit is None else budget.left(now)
        left = status.time_left(trials, plan.max_trials, plan.concurrency, limit, now)
        parts = [
            status.count_line(trials, results.rows, plan.max_trials),
            f"best {status.best_score(results.rows, plan.maximize)}",
        ]
        line = " | ".join([wording.clock(budget.spent(now)), *parts, f"{left} left"])
        if sys.stdout.isatty():
            width = terminal_width()
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
