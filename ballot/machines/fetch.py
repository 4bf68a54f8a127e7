"""Results come home: run folders and ballots from the machines that made them.

A file is fetched into `.collect/` beside the runs, under the name of its content, and goes on there
where it was interrupted; it takes its place once its SHA-256 is right. A run's `result.json` comes
last, so that a run that has one here is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ballot.errors import CannotWrite, UserError
from ballot.machines.ssh import Link, shell_word
from ballot.runs.folder import read_result
from ballot.runs.trials import TrialRecord
from ballot.values import Values
from ballot.wording import plural

AGAIN_S = 30.0  # until a machine that did not answer is asked again
LIST_S = 120.0  # to hash large checkpoints on a busy disk
KEEP_S = 60.0  # at least, between two visits for the checkpoints of what runs
SHARE = 10  # a visit may take this part of the time
QUICK_S = 10.0  # a failure that comes that soon is worth a second attempt
STAGE = ".collect"
RUNNING = f"{STAGE}/running"  # runs that have not ended, for another machine to go on with
LAST = "result.json"  # the file that says that the others are there
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]*")
PIECE = 1 << 20


@dataclass(frozen=True)
class Script:
    """A program that is sent to machines as text: functions of the standard library alone.

    It has `runs(search, out_dir)`, `manifest(folder, checkpoints)`, `words(search, trial)` and
    `send(folder, wanted)`.
    """

    path: Path

    def with_line(self, line: str) -> str:
        """Return the program with a line that calls something of it."""
        return f"{self.path.read_text(encoding='utf-8')}\n{line}\n"

    def ask(self, link: Link, function: str, *args: object) -> Any:
        """Call a function of it on a machine."""
        program = self.with_line(f"print(json.dumps({function}(*args)))")
        return link.python(program, *args, timeout=LIST_S)


@dataclass(frozen=True)
class Source:
    """Where the trials of a search run, and where they put their results."""

    search_id: str
    links: Sequence[Link]
    out_dir: str  # on the machines, as the trial command has it
    outputs: Path  # here
    logs: Path  # the engine's folder of the search here
    script: Script  # that is sent to the machines


class Collector:
    """Brings home what has ended, a thread a machine, without ever holding up who asks."""

    def __init__(self, source: Source, *, checkpoints: int = 1, maximize: bool = True) -> None:
        self.source = source
        self.brought: list[str] = []  # runs of which something came home
        self._checkpoints, self._maximize = checkpoints, maximize
        self._weighty: set[str] = set()  # runs whose weights came now
        self._over = False  # nothing runs any more: what has not ended was killed
        self._busy: dict[str, threading.Thread] = {}
        self._failed: dict[str, float] = {}  # when a machine last failed
        self._took: dict[str, float] = {}  # how long it took to fail
        self._keep_at: dict[str, float] = {}  # when the next checkpoints of a machine are due
        self._why: dict[str, str] = {}  # machine or run -> what was wrong with it
        self._seen: dict[str, bool] = {}  # runs that are here as they are there -> with checkpoints

    def update(self, trials: Sequence[TrialRecord]) -> None:
        """Begin to bring home what has ended and is not here."""
        now, best = time.monotonic(), self._best(trials)
        for link, wanted in self._todo(trials).items():
            busy = self._busy.get(link.name)
            late = now - self._failed.get(link.name, -AGAIN_S) < AGAIN_S
            if not late and not (busy is not None and busy.is_alive()):
                self._start(link, self._visit, wanted, best)
        if not self._over:
            self._keep_running(trials, now)

    def _start(self, link: Link, what: Callable[..., None], *args: object) -> None:
        def visit() -> None:
            began = time.monotonic()
            try:
                link.open()
                what(link, *args)
                self._why.pop(link.name, None)
            except (UserError, OSError) as error:
                self._why[link.name] = str(error).removeprefix(f"{link.name}: ")
                self._failed[link.name] = time.monotonic()
                self._took[link.name] = time.monotonic() - began
                link.close()  # the next attempt connects anew

        self._busy[link.name] = threading.Thread(target=visit, daemon=True)
        self._busy[link.name].start()

    def _keep_running(self, trials: Sequence[TrialRecord], now: float) -> None:
        """Begin to keep checkpoints of what runs, for another machine should this one be lost."""
        running: dict[Link, list[str]] = defaultdict(list)
        for trial in trials:
            if trial.status == "running" and trial.scores:
                for link in links_of(trial, self.source.links):
                    running[link].append(self._run_of(trial))
        for link, wanted in running.items():
            busy = self._busy.get(link.name)
            due = self._keep_at.setdefault(link.name, now + KEEP_S)
            if now >= due and not (busy is not None and busy.is_alive()):
                self._start(link, self._keep, wanted)

    def _keep(self, link: Link, wanted: Sequence[str]) -> None:
        began = time.monotonic()
        here = self.source.script.ask(link, "runs", self.source.search_id, self.source.out_dir)
        for run in wanted:
            if run in here:
                with suppress(DamagedError):  # it has just been written anew
                    bring_run(
                        link,
                        self.source.script,
                        run,
                        here[run]["folder"],
                        self.source.outputs / RUNNING,
                        "all",
                    )
        now = time.monotonic()
        self._keep_at[link.name] = now + max(KEEP_S, SHARE * (now - began))

    def finish(self, trials: Sequence[TrialRecord], *, over: bool = True) -> list[str]:
        """Bring home all that can be; return what could not, a line a machine."""
        self._over = over
        for _ in range(3):  # what was under way, then the rest, then what failed for a moment
            for thread in list(self._busy.values()):
                thread.join()
            for name in [name for name in self._failed if self._took[name] < QUICK_S]:
                self._failed.pop(name)
            self.update(trials)
        for thread in list(self._busy.values()):
            thread.join()
        self._drop_surpassed(trials)
        if over:
            self._drop_running()
        left = {
            link: [t for t in wanted if not self._looks_whole(t)]
            for link, wanted in self._todo(trials).items()
        }
        return [self._missing(link, wanted) for link, wanted in left.items() if wanted]

    def _drop_running(self) -> None:
        """Remove the checkpoints of runs that have all ended."""
        for path in (self.source.outputs / RUNNING).glob(f"{self.source.search_id}-*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:  # a ballot
                path.unlink(missing_ok=True)
        for folder in (self.source.outputs / RUNNING, self.source.outputs / STAGE):
            with suppress(OSError):  # another search's are there
                folder.rmdir()

    def _drop_surpassed(self, trials: Sequence[TrialRecord]) -> None:
        """Remove the weights that were among the best when they were brought, and are no longer."""
        best = {self._run_of(trial) for trial in trials if trial.id in self._best(trials)}
        for run in self._weighty - best:
            for path in (self.source.outputs / run).rglob("best.pt"):
                path.unlink()
        self._weighty &= best

    def _missing(self, link: Link, wanted: Sequence[TrialRecord]) -> str:
        reasons = [self._why[run] for t in wanted if (run := self._run_of(t)) in self._why]
        why = self._why.get(link.name) or (reasons[0] if reasons else "it did not answer")
        return f"{plural(len(wanted), 'trial')} of {link.name} could not be brought home ({why})"

    def _run_of(self, trial: TrialRecord) -> str:
        return f"{self.source.search_id}-{trial.sequence:03d}-{trial.id}"

    def _todo(self, trials: Sequence[TrialRecord]) -> dict[Link, list[TrialRecord]]:
        """Return the ended trials that are not known to be here, by the machine that has them."""
        todo: dict[Link, list[TrialRecord]] = defaultdict(list)
        best = self._best(trials)
        for trial in trials:
            seen = self._seen.get(self._run_of(trial))
            if (trial.has_ended or self._over) and (
                not seen and (seen is None or trial.id in best)
            ):
                for link in links_of(trial, self.source.links):
                    todo[link].append(trial)
        return todo

    def _looks_whole(self, trial: TrialRecord) -> bool:
        """Whether a run came home earlier, and has not gone on since."""
        said = read_result(self.source.outputs / self._run_of(trial)).get("status")
        return said in ("done", "failed") or (said == "stopped" and trial.status != "succeeded")

    def _best(self, trials: Sequence[TrialRecord]) -> set[str]:
        """Return the ids of the trials whose checkpoints are wanted."""
        scored = [
            (t.final, t.id) for t in trials if t.final is not None and t.status == "succeeded"
        ]
        scored.sort(key=lambda pair: pair[0], reverse=self._maximize)
        return {trial_id for _, trial_id in scored[: max(0, self._checkpoints)]}

    def _visit(self, link: Link, wanted: Sequence[TrialRecord], best: set[str]) -> None:
        here = self.source.script.ask(link, "runs", self.source.search_id, self.source.out_dir)
        for trial in wanted:
            self._fetch(link, trial, here.get(self._run_of(trial)), trial.id in best)

    def _fetch(
        self, link: Link, trial: TrialRecord, found: Values | None, checkpoint: bool
    ) -> None:
        run, several = self._run_of(trial), len(links_of(trial, self.source.links)) > 1
        if found is None and several:
            return  # it is on another one
        if found is None or found["status"] != "done":
            self._bring_words(link, trial)
        if found is not None:
            try:
                which = "best" if checkpoint else ""
                came = bring_run(
                    link, self.source.script, run, str(found["folder"]), self.source.outputs, which
                )
            except DamagedError as error:
                self._why[run] = str(error)
                return
            if came:
                self.brought.append(run)
            if any(name.endswith("best.pt") for name in came):
                self._weighty.add(run)
        self._why.pop(run, None)
        self._seen[run] = checkpoint

    def _bring_words(self, link: Link, trial: TrialRecord) -> None:
        """Put what a trial said where the engine has it of local trials."""
        for name, text in self.source.script.ask(
            link, "words", self.source.search_id, trial.id
        ).items():
            environment, _, file = name.partition("/")
            if not all(map(PART.fullmatch, (environment, file))):
                raise UserError(f"{link.name}: sent {name!r}, which is not a file of a trial")
            folder = self.source.logs / "environments" / environment / "trials" / trial.id
            folder.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text, encoding="utf-8")


class DamagedError(UserError):
    """A file that did not arrive as it was sent."""


def links_of(trial: TrialRecord, links: Sequence[Link]) -> list[Link]:
    """Return the machine of a trial; where the engine alone named it, all that it may be."""
    if trial.machine is None:
        return []
    exact = [link for link in links if link.name == trial.machine]
    return exact or [link for link in links if link.machine.host == trial.machine]


def bring_run(
    link: Link, script: Script, run: str, folder: str, outputs: Path, which: str
) -> list[str]:
    """Bring a run home: what differs from what is here, verified; return the files.

    `which` says of the checkpoints whether the best, all or none of them come.
    """
    sizes = checked_names(script.ask(link, "manifest", folder, which), run, link.name)
    wanted = {
        name: facts for name, facts in sizes.items() if not is_same(outputs / run / name, *facts)
    }
    if not wanted:
        return []
    with staging(outputs, run) as stage:
        for attempt in range(3):
            missing = {
                name: facts
                for name, facts in wanted.items()
                if not is_same(part_of(stage, name, facts[1]), *facts)
            }
            if not missing:
                break
            if attempt == 2:
                raise DamagedError(f"{next(iter(missing))} does not arrive as it is there")
            transfer(link, script, folder, missing, stage)
        for name in sorted(wanted, key=lambda name: (name == LAST, name)):
            target = outputs / run / name
            target.parent.mkdir(parents=True, exist_ok=True)
            part_of(stage, name, wanted[name][1]).replace(target)
    return list(wanted)


def part_of(stage: Path, name: str, digest: str) -> Path:
    """Return where a file with this content arrives; another content is another part."""
    return stage / hashlib.sha256(f"{name} {digest}".encode()).hexdigest()


def checked_names(manifest: Any, run: str, machine: str) -> dict[str, tuple[int, str]]:
    """Return a machine's manifest if every name in it stays in the run's folder."""
    found = {}
    for name, facts in manifest.items():
        parts = PurePosixPath(name).parts
        inside = parts and "/".join(parts) == name and all(map(PART.fullmatch, parts))
        if not (inside or name == f"../{run}.csv"):
            raise UserError(f"{machine}: sent {name!r}, which is not a file of {run}")
        size, digest = facts
        if not isinstance(size, int) or not re.fullmatch(r"[0-9a-f]{64}", str(digest)):
            raise UserError(f"{machine}: sent an invalid size or hash for {name} in {run}")
        found[name] = (size, digest)
    return found


def is_same(path: Path, size: int, digest: str) -> bool:
    """Whether a file is here with this content."""
    try:
        if path.stat().st_size != size:
            return False
        with path.open("rb") as file:
            found = hashlib.sha256()
            while piece := file.read(PIECE):
                found.update(piece)
    except OSError:
        return False
    return found.hexdigest() == digest


@contextmanager
def staging(outputs: Path, run: str) -> Iterator[Path]:
    """Make the folder in which the files of a run arrive, for one process at a time."""
    stage = outputs / STAGE / run
    lock = locked(stage)
    try:
        yield stage
        for path in stage.iterdir():  # parts of what has changed since
            path.unlink()
        for folder in (stage, stage.parent):
            with suppress(OSError):  # others still use it
                folder.rmdir()
    finally:
        os.close(lock)


def locked(stage: Path) -> int:
    """Make a folder, wait for its lock, and return the descriptor that holds it."""
    while True:
        with suppress(FileNotFoundError):  # who had the lock removed the folder, perhaps its parent
            stage.mkdir(parents=True, exist_ok=True)
            lock = os.open(stage, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if stage.exists() and os.path.samestat(os.fstat(lock), stage.stat()):
                return lock
            os.close(lock)


def transfer(
    link: Link, script: Script, folder: str, wanted: Mapping[str, tuple[int, str]], stage: Path
) -> None:
    """Fetch files into the stage, each from where it was interrupted."""
    offsets: list[tuple[str, int]] = []
    for name, (size, digest) in wanted.items():
        part = part_of(stage, name, digest)
        there = part.stat().st_size if part.exists() else 0
        if there >= size:  # whole, and not what it should be
            part.unlink(missing_ok=True)
            there = 0
        offsets.append((name, there))
    program = script.with_line(f"send(*json.loads({json.dumps([folder, offsets])!r}))")
    with link.spawn(
        f"exec {shell_word(link.machine.interpreter)} -",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        try:
            process.stdin.write(program.encode())
            process.stdin.close()
            for name, offset in offsets:
                receive(process.stdout.read, part_of(stage, name, wanted[name][1]), offset)
        except CannotWrite:  # on this machine: the connection is well
            process.kill()
            raise
        except (OSError, EOFError):
            process.kill()
            said = process.stderr.read().decode("utf-8", "replace").strip()
            why = said.splitlines()[-1] if said else "the connection broke off"
            raise UserError(f"{link.name}: {why}") from None
        except BaseException:
            process.kill()
            raise


def receive(read: Callable[[int], bytes], part: Path, offset: int) -> None:
    """Add what comes to a part of a file; `EOFError` where less comes than was announced."""
    left = int.from_bytes(exactly(read, 8), "big")
    try:
        with part.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            while left > 0:
                piece = read(min(PIECE, left))
                if not piece:
                    raise EOFError
                file.write(piece)
                left -= len(piece)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        why = error.strerror or error
        raise CannotWrite(f"{part.parent}: cannot be written ({why})") from None


def exactly(read: Callable[[int], bytes], size: int) -> bytes:
    """Read that many bytes."""
    data = read(size)
    if len(data) != size:
        raise EOFError
    return data
