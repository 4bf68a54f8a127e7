"""An engine for tests: it runs trials in this process, a step of each at every look at its status.

No thread, no process and no clock of its own: what `follow` does with a search is seen in
milliseconds. A trial is a generator that yields a score for each epoch, or None where it hangs.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from ballot.engines.interface import Launch, Limits, MachineState, Plan, Status
from ballot.engines.notes import Noted
from ballot.errors import UserError
from ballot.runs.trials import NO_WORD, TrialRecord
from ballot.search.resume import changed

Trial = Callable[[TrialRecord, "InProcessSearch"], Iterator[float | None]]


class InProcessSearch(Noted):
    """One search: its records are these objects, and its tuner a list of configurations."""

    address = ""

    def __init__(self, search_id: str, plan: Plan, trial: Trial, queue: list[dict]) -> None:
        self.id = search_id
        self.began = time.time()
        self.folder = plan.outputs.parent / "searches" / search_id
        self.folder.mkdir(parents=True)
        self.tuner_lives = True
        self.is_closed = False  # no further trial begins
        self.stops = lambda _record: False  # whether a trial is stopped early that has reported
        self.state = "gone"
        self._plan = plan
        self._trial = trial
        self._queue = queue
        self._records: list[TrialRecord] = []
        self._steps: dict[str, Iterator[float | None]] = {}
        self._words: dict[str, str] = {}

    def is_running(self) -> bool:
        return self.state != "gone"

    def has_leftovers(self) -> bool:
        return False

    def status(self) -> Status:
        if self.is_running():
            self._begin()
            for record in [r for r in self._records if r.id in self._steps]:
                self._step(record)
            self.state = self._state()
        return Status(self.state)

    def _begin(self) -> None:
        waiting = [r for r in self._records if r.status == "waiting"]
        while len(self._steps) < self._plan.concurrency and not self.is_closed:
            if waiting:
                record = waiting.pop(0)
            elif self._queue and self._is_wanted():
                number = len(self._records)
                record = TrialRecord(f"t{number}", number, parameters=self._queue.pop(0))
                self._records.append(record)
            else:
                return
            record.status, record.resumed = "running", time.time()
            record.started = record.started or record.resumed
            self._steps[record.id] = self._trial(record, self)

    def _is_wanted(self) -> bool:
        return self._plan.max_trials is None or len(self._records) < self._plan.max_trials

    def _step(self, record: TrialRecord) -> None:
        try:
            score = next(self._steps[record.id])
        except StopIteration as end:
            self._end(record, "succeeded")
            record.final = end.value
        except Exception as error:
            self._words[record.id] = f"{type(error).__name__}: {error}"
            self._end(record, "failed")
        else:
            if score is not None:
                record.scores.append(score)
                if self.stops(record):
                    self._end(record, "early_stopped")

    def _end(self, record: TrialRecord, status: str) -> None:
        self._steps.pop(record.id).close()
        record.status, record.ended = status, time.time()

    def _state(self) -> str:
        if self._steps:
            return "running" if self._is_wanted() else "all_started"
        if self.is_closed or not self._is_wanted():
            return "done"
        return "running" if self._queue else "exhausted"

    def tuner_is_alive(self) -> bool:
        return self.tuner_lives

    def verify(self, launch: Launch) -> None:
        pass

    def trials(self) -> list[TrialRecord]:
        return self._records

    def plan(self) -> Plan:
        return self._plan

    def reconnected(self, plan: Plan, *, quiet: bool = False) -> Plan:  # noqa: ARG002
        return plan

    def machines(self, plan: Plan, *, checkpoints: int | None = None) -> None:  # noqa: ARG002
        return None

    def machine_states(self) -> list[MachineState]:
        return []

    def seconds_counted(self) -> float:
        return 0.0

    def last_words(self, trial_id: str, lines: int = 1) -> str:  # noqa: ARG002
        return self._words.get(trial_id, NO_WORD)

    def retries(self) -> dict[str, str]:
        return {}

    def tuner_error(self) -> str:
        return "" if self.tuner_lives else "ValueError: of the tuner"

    def cancel(self, trial_id: str) -> None:
        self._end(next(r for r in self._records if r.id == trial_id), "cancelled")

    def begin_no_more(self, plan: Plan) -> bool:  # noqa: ARG002
        self.is_closed = True
        return True

    def change_limits(self, limits: Limits) -> None:
        self._plan = changed(self._plan, limits)

    def record(self, plan: Plan) -> None:
        self._plan = plan

    def stop(self) -> None:
        for record in [r for r in self._records if r.id in self._steps]:
            self._end(record, "waiting")  # it goes on with a search that is resumed
            record.ended = None
        self.state = "gone"

    def kill(self) -> None:
        self._steps.clear()
        self.state = "gone"


class InProcessEngine:
    """Searches by the list of configurations that a test gives."""

    name = "in_process"

    def __init__(self, trial: Trial, configurations: Sequence[Mapping]) -> None:
        self._trial = trial
        self._configurations = configurations
        self._searches: list[InProcessSearch] = []

    def read(self, path, limits, *, guarded):  # noqa: ARG002
        raise UserError(f"{path}: this engine has no configuration files; make a Plan")

    def write_config(self, path, sketch):
        path.write_text(sketch.command)

    def machines_in(self, path):  # noqa: ARG002
        return []

    def known_searches(self) -> list[InProcessSearch]:
        return self._searches[::-1]

    def start(self, plan: Plan, launch: Launch, note: Mapping) -> InProcessSearch:  # noqa: ARG002
        number = len(self._searches)
        queue = [dict(values) for values in self._configurations]
        search = InProcessSearch(f"s{number}", plan, self._trial, queue)
        search.write_note(**note)
        search.state = "running"
        self._searches.append(search)
        return search

    def resume(self, search, plan, launch):  # noqa: ARG002
        search.record(plan)
        search.is_closed = False
        search.state = "running"
        return search

    def run_more(self, search, plan, launch, parameters, again):
        search._queue = [dict(values) for values in parameters]
        for record in search.trials():
            if record.status == "waiting" and record.id not in again:
                record.status = "cancelled"
        return self.resume(search, plan, launch)
