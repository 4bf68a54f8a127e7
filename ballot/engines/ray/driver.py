"""The process that runs a search on Ray: it asks the tuner, starts trials, and keeps the record.

    python -m ballot.engines.ray.driver FOLDER

FOLDER has `spec.json`, which says what is to be done, and gets the record of the trials. What
search.py wants of a search that runs it puts there as files (control.py). A trial whose node was
lost goes on elsewhere; one that crashes runs once more.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ballot.engines.ray import control
from ballot.engines.ray.cluster import Cluster, Ended
from ballot.engines.ray.journal import FILE, Journal, Writer
from ballot.engines.ray.names import MODES, new_id
from ballot.errors import UserError
from ballot.runs.files import read_json
from ballot.runs.trials import TrialRecord, TrialStatus, is_posted
from ballot.tuning.asha import ASHA
from ballot.tuning.tpe import TPE, Exhausted
from ballot.values import Json, Values
from ballot.wording import size

LOOK_S = 0.25
NODES_S = 2.0  # how often the nodes are counted, and the head is tried
WAITS_S = 30.0  # for room, until it is said
MOVES = 10  # nodes that a trial may lose
STAYS_S = 600.0  # a search that is done waits so long for its search.py
SEEN_S = 1.5  # a search.py that watches looks every second, and is to see who stopped it
STOP_S = 60.0  # for all trials to have written and sent what they have
BAD_INPUT = 2  # the exit status of train.py where a second attempt would fail alike

log = logging.getLogger("ballot.engines.ray")


class Runner(Protocol):
    """What the driver needs of a cluster."""

    def submit(self, job: Json) -> None:
        """Start a trial wherever there is room for it."""

    def wait(self, patience: float) -> tuple[list[Json], list[Ended]]:
        """Return news of trials, and ends of attempts."""

    def order(self, trial: str, word: str) -> None:
        """Tell a trial to stop."""

    def withdraw(self, trial: str) -> None:
        """Take back a trial that has not begun."""

    def nodes(self) -> list[Json]:
        """Return the nodes."""


@dataclass
class Task:
    """A trial that was submitted: its present attempt."""

    attempt: int
    since: float  # when it was submitted
    began: bool = False
    ordered: TrialStatus | None = None  # what it ends as, where it was told to
    crashes: int = 0
    moves: int = 0
    said: int = 0  # reports of this attempt
    said_waiting: bool = False


class Driver:
    """One search; `step` does what is due, and knows nothing of processes and of Ray."""

    def __init__(self, folder: Path, spec: Values, runner: Runner) -> None:
        self._folder, self._spec, self._runner = folder, spec, runner
        self._writer = Writer(folder / FILE)
        self._records = {trial.id: trial for trial in self._writer.trials}
        self._tasks: dict[str, Task] = {}
        self._attempts = 0
        self._again = [t.id for t in self._records.values() if not t.has_ended]  # are to go on
        self._limits = {key: spec[key] for key in ("max_trials", "concurrency", "command")}
        self._queue = list(spec.get("posted") or [])
        self._asks = spec.get("posted") is None
        if not self._asks:
            self._again = [each for each in self._again if each in (spec.get("again") or ())]
        self._closed = self._exhausted = self._stopping = False
        self._tuner = tuner_of(spec, self._writer.journal) if self._asks else None
        self._asha = asha_of(spec) if self._asks else None
        self._values = {t.id: t.parameters for t in self._records.values()}
        for trial in self._records.values():
            if self._asha is not None and trial.scores and not is_posted(trial):
                self._asha.report(trial.id, trial.scores)
        self._nodes: dict[str, Json] = {}
        self._watched = 0.0
        self.state = "running"

    def step(self) -> None:
        """Do what is due, and wait a moment for what comes."""
        for wish in control.take(self._folder):
            self._obey(wish)
        if not self._stopping:
            self._begin()
        self._watch()
        news, ends = self._runner.wait(LOOK_S)
        for said in news:
            self._hear(said)
        for end in ends:
            self._end(end)
        if ends and not self._stopping:
            self._begin()  # before anything is written down that can wait
        self.state = self._state()

    def nodes(self) -> list[Json]:
        """Return the nodes that were there at the last look."""
        return list(self._nodes.values())

    def _state(self) -> str:
        if self._stopping:
            return "stopping"
        if self._tasks or self._again:
            return "running" if self._is_wanted() else "all_started"
        if self._closed or not self._is_wanted():
            return "done"
        return "exhausted" if self._exhausted else "running"

    def _is_wanted(self) -> bool:
        if not self._asks:
            return bool(self._queue)
        most = self._limits["max_trials"]
        return not self._closed and (most is None or len(self._records) < most)

    # ------------------------------------------------------------------ what search.py wants

    def _obey(self, wish: Values) -> None:
        what = wish.get("do")
        if what == "stop":
            self.stop()
        elif what == "close":
            self._closed = True
        elif what == "limits":
            self._limits |= {k: v for k, v in wish.items() if k in self._limits and v is not None}
            self._closed = False
        elif what == "cancel":
            self._tell_to_end(str(wish.get("id")), "cancelled")

    def stop(self) -> None:
        """Let all trials write what they have; they go on when the search is resumed."""
        if self._stopping:
            return
        self._stopping, self.state = True, "stopping"
        for trial_id in list(self._tasks):
            self._tell_to_end(trial_id, "waiting")

    def is_empty(self) -> bool:
        """Whether no trial runs or waits for room."""
        return not self._tasks

    def _tell_to_end(self, trial_id: str, status: TrialStatus) -> None:
        task = self._tasks.get(trial_id)
        if task is None or task.ordered is not None:
            return
        task.ordered = status
        if task.began:
            self._runner.order(trial_id, "stop")
            return
        self._runner.withdraw(trial_id)
        self._tasks.pop(trial_id)
        self._write(trial_id, status=status)

    # ------------------------------------------------------------------ trials

    def _begin(self) -> None:
        """Start as many trials as may run at once: first those that are to go on."""
        while len(self._tasks) < int(self._limits["concurrency"]):
            trial = self._records[self._again.pop(0)] if self._again else self._new_trial()
            if trial is None:
                return
            self._submit(trial, Task(0, time.monotonic()))

    def _new_trial(self) -> TrialRecord | None:
        if not self._is_wanted() or self._exhausted:
            return None
        if not self._asks:
            values = self._queue.pop(0)
        else:
            assert self._tuner is not None
            try:
                values = self._tuner.ask()
            except Exhausted:
                self._exhausted = True
                return None
        trial_id, sequence = new_id(5), len(self._records)
        self._write(trial_id, new={"sequence": sequence, "parameters": values})
        self._values[trial_id] = values
        trial = self._writer.journal.record(trial_id)
        self._records[trial_id] = trial
        return trial

    def _submit(self, trial: TrialRecord, task: Task) -> None:
        self._attempts += 1
        task.attempt, task.since, task.began, task.said = self._attempts, time.monotonic(), False, 0
        self._tasks[trial.id] = task
        if trial.status != "waiting":
            self._write(trial.id, status="waiting")
        spec = self._spec
        self._runner.submit(
            {
                "id": trial.id,
                "search": spec["search"],
                "sequence": trial.sequence,
                "attempt": task.attempt,
                "parameters": trial.parameters,
                "searched": spec["searched"],
                "has_gpus": bool(spec["resources"]["gpus"]),
                "threads": max(1, int(spec["resources"]["cpus"])),
                "command": self._limits["command"],
                "is_new": trial.started is None,  # nothing of it is at home
                "data": bool(spec.get("data")),
            }
        )

    def _hear(self, said: Values) -> None:
        task = self._tasks.get(said["trial"])
        if task is None or task.attempt != said["attempt"]:
            return
        if said.get("prepares"):
            task.said_waiting = True  # it has room
            return
        if "copies" in said:
            what = f"the data ({size(said['bytes'])}) are copied to {said['copies']} ..."
            control.say(self._folder, what)
            return
        if said.get("began"):
            task.began = True
            self._write(said["trial"], status="running", machine=said["machine"])
            if task.ordered is not None:
                self._runner.order(said["trial"], "stop")
            return
        task.said += 1
        self._take(said["trial"], said)

    def _take(self, trial_id: str, said: Values) -> None:
        """Take a trial's report: a score of an epoch, or its last one."""
        if "score" in said:
            self._write(trial_id, score=said["score"])
            trial, task = self._records[trial_id], self._tasks[trial_id]
            if self._asha is None or task.ordered is not None or self._stopping:
                return
            if not is_posted(trial) and not self._asha.report(trial_id, trial.scores):
                self._tell_to_end(trial_id, "early_stopped")
        elif "final" in said and self._records[trial_id].final is None:
            self._write(trial_id, final=said["final"], failed=said["failed"])
            if self._tuner is not None:
                score = None if said["failed"] else said["final"]
                self._tuner.tell(self._values[trial_id], "done", score)

    def _end(self, ended: Ended) -> None:
        """Take the end of an attempt: the trial's end, or it goes on once more."""
        task = self._tasks.get(ended.trial)
        if task is None or task.attempt != ended.attempt:
            return
        trial, outcome = self._records[ended.trial], ended.outcome
        if outcome is not None:
            if not task.began:
                self._hear(
                    {
                        "trial": trial.id,
                        "attempt": task.attempt,
                        "began": True,
                        "machine": outcome.get("machine"),
                    }
                )
            for said in outcome["reports"][task.said :]:
                self._take(trial.id, said)
            self._keep_words(trial.id, outcome["words"])
        self._tasks.pop(trial.id)
        if ended.how == "lost" and task.ordered is None:
            self._move(trial, task, ended.why)
        elif self._runs_again(trial, task, ended):
            return
        else:
            self._conclude(trial, task, ended)

    def _move(self, trial: TrialRecord, task: Task, why: str) -> None:
        task.moves += 1
        control.say(self._folder, f"trial {trial.sequence} ({trial.id}) lost its node; it goes on")
        log.warning("trial %s: %s", trial.id, why)
        if self._stopping:
            self._write(trial.id, status="waiting")
        elif task.moves > MOVES:
            self._fail(trial, why)
        else:
            self._submit(trial, task)

    def _fail(self, trial: TrialRecord, why: str) -> None:
        """Give a trial up that lost one node after the other."""
        self._keep_words(trial.id, why)
        self._write(trial.id, status="failed")
        if self._tuner is not None:
            self._tuner.tell(self._values[trial.id], "failed")

    def _runs_again(self, trial: TrialRecord, task: Task, ended: Ended) -> bool:
        """Start a trial that crashed a second time, as any engine of ours does."""
        status = ended.outcome["exit"] if ended.outcome is not None else 1
        if status in (0, BAD_INPUT) or task.ordered is not None or self._stopping:
            return False
        if -status in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            return False  # a person ended it, and means it
        if task.crashes or (trial.final is not None and status > 0):
            return False
        task.crashes += 1
        why = "was killed" if status < 0 else f"crashed (exit {status})"
        why = "crashed: " + ended.why if ended.outcome is None else why
        log.warning("trial %s %s; it runs once more", trial.id, why)
        self._write(trial.id, again=why)
        self._submit(trial, task)
        return True

    def _conclude(self, trial: TrialRecord, task: Task, ended: Ended) -> None:
        """Write down how a trial ended, and tell the tuner where it did not say so itself."""
        status: TrialStatus = "failed"
        if task.ordered is not None:
            status = task.ordered
        elif ended.outcome is not None and ended.outcome["exit"] == 0:
            status = "succeeded"
        if ended.outcome is None and ended.why:
            self._keep_words(trial.id, ended.why)
        self._write(trial.id, status=status)
        if self._tuner is not None and status not in ("succeeded", "waiting"):
            self._tuner.tell(self._values[trial.id], "failed")

    def _keep_words(self, trial_id: str, words: str) -> None:
        if words:
            place = self._folder / "environments"
            place.mkdir(exist_ok=True)
            (place / f"{trial_id}.txt").write_text(words, encoding="utf-8")

    def _write(self, trial_id: str, **change: object) -> None:
        self._writer.write(trial_id, **change)

    # ------------------------------------------------------------------ the cluster

    def _watch(self) -> None:
        """Say what has become of nodes, and which trials wait for room."""
        now = time.monotonic()
        if now - self._watched < NODES_S:
            return
        self._watched, before = now, self._nodes
        self._nodes = {node["id"]: node for node in self._runner.nodes()}
        for key, node in self._nodes.items():
            was = before.get(key)
            if before and was is None and node["alive"]:
                control.say(self._folder, f"{node['name']} has joined the cluster")
            elif was is not None and was["alive"] and not node["alive"]:
                control.say(self._folder, f"{node['name']} is lost; its trials go on elsewhere")
        for trial_id, task in self._tasks.items():
            if not task.began and now - task.since > WAITS_S and not task.said_waiting:
                task.said_waiting = True
                number = self._records[trial_id].sequence
                control.say(self._folder, waiting_line(number, self._spec, self.nodes()))

    def close(self) -> None:
        """Close the record."""
        self._writer.close()


def waiting_line(number: int, spec: Values, nodes: list[Json]) -> str:
    """Say what a trial waits for, and what there is."""
    has = [f"{n['name']}: {resources_line(n['has'])}" for n in nodes if n["alive"]]
    return f"trial {number} waits for room: it asks for {spec['asked']}; there is {'; '.join(has)}"


def resources_line(has: Mapping[str, float]) -> str:
    """Say what a node has."""
    parts = [f"{has.get(key, 0):g} {key}s" for key in ("CPU", "GPU") if has.get(key, 0)]
    return ", ".join(parts) or "no CPUs"


def tuner_of(spec: Values, journal: Journal) -> TPE:
    """Make the tuner, and tell it what has become of the trials so far."""
    arguments = dict(spec["tuner"])
    tuner = TPE(
        spec["space"],
        mode=MODES[arguments.get("optimize_mode", "maximize")],
        seed=arguments.get("seed"),
        max_trials=arguments.get("max_trials") or spec["max_trials"],
        defaults=spec["defaults"] if arguments.get("defaults", True) else None,
        first=arguments.get("first") or [],
        warm_start=[Path(spec["code"], Path(f).expanduser()) for f in spec["warm_start"]],
        tpe_args=arguments.get("tpe_args"),
    )
    for trial in journal.read():
        if is_posted(trial):  # its configuration is known from the trial that it repeats
            continue
        if not trial.has_ended:
            tuner.add(trial.parameters, "running")
        elif trial.id in journal.failed or trial.final is None:
            tuner.add(trial.parameters, "failed")
        else:
            stopped = trial.status in ("early_stopped", "cancelled")
            tuner.add(trial.parameters, "stopped" if stopped else "done", trial.final)
    return tuner


def asha_of(spec: Values) -> ASHA | None:
    """Make what stops trials early, where the configuration has it."""
    arguments = spec["assessor"]
    if arguments is None:
        return None
    return ASHA(
        mode=MODES[arguments.get("optimize_mode", "maximize")],
        epochs=spec["epochs"],
        start_step=arguments.get("start_step"),
        reduction_factor=arguments.get("reduction_factor", 3),
        min_trials=arguments.get("min_trials", 2),
    )


# ---------------------------------------------------------------------- the process


def main(argv: list[str] | None = None) -> int:
    """Run a search until it is told to stop."""
    folder = Path((sys.argv[1:] if argv is None else argv)[0])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with control.held(folder) as mine:
        if not mine:
            log.error("another process runs this search")
            return 2
        spec, board = read_json(folder / "spec.json"), control.Board(folder)
        board.write("starting")
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # that of a terminal is search.py's
        try:
            run(folder, spec, board)
        except UserError as error:
            board.write("error", errors=[str(error)])
            return 2
        except Exception as error:
            log.exception("the driver of the search ends")
            board.write("error", errors=[f"the driver failed: {type(error).__name__}: {error}"])
            return 1
    return 0


def run(folder: Path, spec: Values, board: control.Board) -> None:
    """Connect, and do what is due until it is told to stop."""
    Path(spec["outputs"]).mkdir(parents=True, exist_ok=True)
    cluster = Cluster(spec)
    watch_head(cluster.head(), board)
    driver = Driver(folder, spec, cluster)
    signal.signal(signal.SIGTERM, lambda *_: driver.stop())
    stopped_at: float | None = None
    done_at: float | None = None
    was_done = False
    try:
        while True:
            driver.step()
            board.write(driver.state, nodes=driver.nodes())
            now = time.monotonic()
            if driver.state == "stopping":
                stopped_at = stopped_at or now
                seen = was_done or now - stopped_at > SEEN_S
                if (driver.is_empty() and seen) or now - stopped_at > STOP_S:
                    break
            was_done = driver.state == "done"
            done_at = (done_at or now) if was_done else None
            if done_at is not None and now - done_at > STAYS_S:
                break
    finally:
        board.write("done" if driver.state == "done" else "gone", nodes=driver.nodes())
        driver.close()
        cluster.close()


def watch_head(address: str, board: control.Board) -> None:
    """End this process where the head of the cluster is gone: Ray itself waits for a minute."""
    host, _, port = address.rpartition(":")

    def watch() -> None:
        failures = 0
        while True:
            time.sleep(NODES_S)
            try:
                socket.create_connection((host, int(port)), 5).close()
                failures = 0
            except OSError:
                failures += 1
            if failures >= 3:
                what = f"the head of the cluster at {address} does not answer any more"
                board.write("error", errors=[what])
                log.error(what)
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
