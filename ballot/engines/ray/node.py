"""A trial on a node: started as a process in a folder of its own, watched, its results sent home.

The folder is removed at the end. All of a run that must survive is at home by then.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Protocol

from ballot.config.trial_command import option_of, parse_command
from ballot.engines.ray import data
from ballot.engines.ray.receiver import LAST, OVER
from ballot.engines.ray.trial import REPORTS, TRIAL
from ballot.runs.files import stamp, write_json
from ballot.runs.trials import continued_run
from ballot.values import Json, Values

LOOK_S = 0.05
WRITE_S = 40.0  # that a trial which is told to stop has to write what it has
PIECE = 8 << 20
SHARE = 10  # sending what a trial has so far may take this part of the time
WORDS = 64_000  # last bytes of what a trial said
SECRET = ("RAY_AUTH",)  # what no trial is told
PR_SET_PDEATHSIG = 1


class Over(Exception):
    """This attempt is not the trial's present one, or nobody is at home any more."""


class Home(data.Home, Protocol):
    """The way to the receiver; whatever it raises means that the trial is over."""

    def put(self, run: str, name: str, offset: int, piece: bytes) -> bool:
        """Send a piece of a file."""

    def commit(
        self, run: str, names: Mapping[str, int], kept: list[str], small: Mapping[str, bytes]
    ) -> bool:
        """Say that files have been sent, and send the small ones."""

    def here(self, run: str) -> dict[str, int]:
        """Return the files of a run at home."""

    def get(self, run: str, name: str, offset: int, size: int) -> bytes:
        """Fetch a piece of a file."""

    def report(self, said: Values) -> bool:
        """Send words for the driver."""

    def order(self, patience: float) -> str | None:
        """Wait a moment for an order."""


def run_trial(job: Values, home: Home) -> Json:
    """Run a trial to its end, and return how it ended."""
    folder = Path(tempfile.mkdtemp(prefix="ballot-"))
    try:
        return Attempt(job, home, folder).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Attempt:
    """One run of a trial's process."""

    def __init__(self, job: Values, home: Home, folder: Path) -> None:
        self._job, self._home, self._folder = job, home, folder
        self._outputs = folder / "outputs"
        self._run = f"{job['search']}-{job['sequence']:03d}-{job['id']}"
        self._sent: dict[str, tuple[int, ...] | None] = {}
        self._due, self._read = 0.0, 0
        self._data: Path | None = None  # where they are, if not where the command says
        self._reports: list[Json] = []

    def run(self) -> Json:
        """Bring what is at home of it, start it, watch it, and send what it leaves."""
        if self._job.get("data"):
            self._find_data()
        self._tell({"began": True, "machine": os.uname().nodename, "pid": os.getpid()})
        if not self._job.get("is_new"):
            self._bring(self._run)
        other = continued_run(self._job["parameters"], self._job["search"])
        if other is not None and not (self._outputs / self._run / LAST).exists():
            self._bring(other)
        with (self._folder / "trial.log").open("wb") as log:
            process = self._start(log)
        try:
            stopped = self._watch(process)
        finally:
            end(process, 0.0)
        self._send()
        self._reports += self._new_reports()  # the rest goes with the outcome
        status = process.returncode
        return {
            "exit": status,
            "stopped": stopped,
            "reports": self._reports,
            "words": "" if status == 0 else tail(self._folder / "trial.log"),
        }

    def _start(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        job, code = self._job, Path.cwd()
        place = self._folder / "trial.json"
        keys = ("parameters", "id", "search", "sequence", "searched", "has_gpus")
        write_json(place, {key: job[key] for key in keys})
        command = parse_command(job["command"], code)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(SECRET)}
        environment |= {"OMP_NUM_THREADS": str(job["threads"]), TRIAL: str(place)}
        words = command.words
        if command.script >= 0:
            words = [*words, "--out_dir", str(self._outputs)]
            words += [] if self._data is None else ["--data_dir", str(self._data)]
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment | command.environment,
            start_new_session=True,
            preexec_fn=dying_with(os.getpid()),
        )

    def _watch(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for its end; whether it was told to stop."""
        while process.poll() is None:
            if word := self._home.order(0.0):
                if word == OVER:
                    raise Over
                end(process, WRITE_S)
                return True
            for said in self._new_reports():
                self._reports.append(said)
                self._tell(said)
            if time.monotonic() >= self._due:
                began = time.monotonic()
                self._send()
                took = time.monotonic() - began
                self._due = began + took * SHARE + LOOK_S
            wait_for(process, LOOK_S)
        return False

    def _find_data(self) -> None:
        """Let the data be on this node, before the trial begins."""
        self._tell({"prepares": True})
        named = option_of(self._job["command"], "--data_dir", "")
        self._data = data.data_folder(self._home, self._job["search"], named)

    def _new_reports(self) -> list[Json]:
        """Return what the trial has reported since."""
        try:
            with (self._folder / REPORTS).open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def _tell(self, said: Values) -> None:
        if not self._home.report(said):
            raise Over

    def _bring(self, run: str) -> None:
        """Fetch what has been sent home of a run: by an earlier attempt, or by another trial."""
        for name, size in self._home.here(run).items():
            path = self._outputs / run / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                while file.tell() < size:
                    piece = self._home.get(run, name, file.tell(), PIECE)
                    if not piece:
                        break
                    file.write(piece)
            if run == self._run:
                self._sent[name] = stamp(path)

    def _send(self) -> None:
        """Send what has changed; first the checkpoints, so that none is newer than the rest."""
        files = self._files()
        changed = {n: s for n, (p, s) in files.items() if self._sent.get(n, ()) != s}
        if not changed:
            return
        order = sorted(changed, key=lambda name: (not name.endswith(".pt"), name.endswith(LAST)))
        small: dict[str, bytes] = {}
        sizes = {name: self._send_file(name, files[name][0], small) for name in order}
        come = {name: size for name, size in sizes.items() if size is not None}
        kept = [name for name in files if name.endswith(".pt")]
        if not self._home.commit(self._run, come, kept, small):
            raise Over
        self._sent |= {name: changed[name] for name in come}

    def _files(self) -> dict[str, tuple[Path, tuple[int, ...] | None]]:
        run = self._outputs / self._run
        found = {
            str(path.relative_to(run)): (path, stamp(path))
            for path in run.rglob("*")
            if path.is_file() and not path.is_symlink() and not path.name.startswith(".")
        }
        ballot = run.with_name(f"{run.name}.csv")
        if ballot.is_file():
            found[f"../{ballot.name}"] = (ballot, stamp(ballot))
        return found

    def _send_file(self, name: str, path: Path, small: dict[str, bytes]) -> int | None:
        """Send a file as it was when it was opened; None where it is gone by now.

        What is small is put into `small`, to be sent with the others.
        """
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            place, piece = 0, file.read(PIECE)
            if len(piece) + sum(map(len, small.values())) < PIECE:
                small[name] = piece
                return len(piece)
            while piece:
                if not self._home.put(self._run, name, place, piece):
                    raise Over
                place += len(piece)
                piece = file.read(PIECE) if len(piece) == PIECE else b""
            return place
        return None


def dying_with(parent: int) -> Callable[[], None]:
    """Return what a new process does first: it is to be killed when the parent is."""
    prctl, getppid, kill = ctypes.CDLL(None).prctl, os.getppid, os.kill

    def die_with_parent() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if getppid() != parent:
            kill(os.getpid(), signal.SIGKILL)

    return die_with_parent


def wait_for(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until a process ends, and no longer than so many seconds."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:  # of a kernel without
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return
    try:
        select.select([descriptor], [], [], seconds)
    finally:
        os.close(descriptor)


def end(process: subprocess.Popen[bytes], patience: float) -> None:
    """End a trial; it is told so and has some seconds to write."""
    if process.poll() is None and patience > 0:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tail(path: Path) -> str:
    """Return the last of what a trial said."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - WORDS))
        return file.read().decode("utf-8", "replace")
