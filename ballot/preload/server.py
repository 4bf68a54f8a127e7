"""The process from which trials are forked: it imports what a script imports, and waits.

It never runs a tensor operation, opens no device and has one thread: a child that is forked after
OpenMP has worked, or while a thread holds a lock, hangs. `ballot.preload` starts it.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import resource
import runpy
import select
import signal
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from ballot.cpus import threads_told
from ballot.preload.command import RELAYED, address, interpreter_flags, peer
from ballot.values import Json

TICK_S = 2.0  # between two looks whether anybody still needs this
GRACE_S = 60.0  # after the end of the search, for the next one
REQUEST_S = 5.0  # for a command to say what it wants
PR_SET_PDEATHSIG = 1  # prctl(2)

# What a trial imports while it runs, a part of it for NNI; what is not installed is left out.
LATER = (
    "torch._dynamo",
    "torch.optim.swa_utils",
    "torch.utils.tensorboard",
    "scipy.stats",
    "sklearn.datasets",
    "sklearn.metrics",
    "sklearn.model_selection",
    "PIL.Image",
    "psutil",
    "requests",
    "json_tricks",
    "schema",
    "simplejson",
    "typeguard",
    "yaml",
    "filelock",
    "sqlite3",
    "fileinput",
    "tqdm",
    "efficientnet_pytorch",
)


@dataclass
class Wanted:
    """A trial to be run in a fork: what its command is and has, and its standard streams."""

    facts: Json
    streams: list[int]


@dataclass
class Preloader:
    """A socket on which commands ask for trials, and the trials that run."""

    place: Path
    script: Path
    idle: float
    begun: float  # when the imports began, in seconds since the epoch
    trials: dict[int, socket.socket | None] = field(default_factory=dict)  # by process id
    starters: dict[int, str] = field(default_factory=dict)  # what ran the commands: NNI, a shell
    retired: bool = False

    def __post_init__(self) -> None:
        self.files = {path: _state(path) for path in loaded_files()}
        # Of a file that changed while it was being imported nobody knows which state was.
        now = time.time()
        self.torn = any(self.begun <= at_ns / 1e9 <= now for at_ns, *_ in self.files.values())
        self.wake, self.waker = os.pipe()
        for end in (self.wake, self.waker):
            os.set_blocking(end, False)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(FileNotFoundError):  # of one that was killed
            self.place.unlink()
        with address(self.place) as name:
            self.listener.bind(name)
        self.listener.listen(64)
        self.inode = self.place.stat().st_ino
        self.used = self.seen = time.monotonic()  # when a trial ran, and when a starter did

    def serve(self) -> Wanted | None:
        """Fork trials until nobody needs any; in a fork, return what it is to do."""
        signal.set_wakeup_fd(self.waker, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # the number comes through the pipe
        while not self.retired or self.trials:
            for descriptor in self._ready():
                if descriptor == self.listener.fileno():
                    wanted = self._accept()
                    if wanted is not None:
                        return wanted
                elif descriptor == self.wake:
                    if signal.SIGTERM in os.read(self.wake, 4096):
                        self.retire()
                else:
                    self._hear(descriptor)
            self._reap()
            if not self._is_useful() or self.is_forgotten(time.monotonic()):
                self.retire()
        return None

    def _ready(self) -> list[int]:
        poll = select.poll()
        links = [] if self.retired else [self.listener]
        for each in (*links, *filter(None, self.trials.values())):
            poll.register(each.fileno(), select.POLLIN)
        poll.register(self.wake, select.POLLIN)
        return [descriptor for descriptor, _ in poll.poll(min(TICK_S, self.idle) * 1000)]

    def _is_there(self) -> bool:
        """Whether commands find this one."""
        with contextlib.suppress(OSError):
            return self.place.stat().st_ino == self.inode
        return False

    def _is_useful(self) -> bool:
        """Whether there may be more trials: commands find this one, and code to run."""
        return self._is_there() and self.script.exists()

    def is_forgotten(self, now: float) -> bool:
        """Whether no trial has run for long, or whatever started them has ended."""
        self.starters = {
            pid: begun for pid, begun in self.starters.items() if begun_at(pid) == begun
        }
        if self.trials:
            self.used = now
        if self.trials or self.starters:
            self.seen = now
        return now - self.used > self.idle or now - self.seen > GRACE_S

    def retire(self) -> None:
        """Take no more trials; those that run end as they would have."""
        if not self.retired:
            self.retired = True
            if self._is_there():
                self.place.unlink()
            self.listener.close()

    def _accept(self) -> Wanted | None:
        """Take a command's wish, fork, and tell it the trial's process id."""
        try:
            link, _ = self.listener.accept()
        except OSError:  # a command that was ended, or too many open files for now
            return None
        link.settimeout(REQUEST_S)
        streams: list[int] = []
        try:
            if peer(link) != os.getuid():
                link.close()
                return None
            head, streams, _, _ = socket.recv_fds(link, 4, 3)
            facts = json.loads(_exactly(link, struct.unpack("!I", head)[0]))
            if len(streams) != 3 or _is_gone(link):
                raise ConnectionError
        except (OSError, ValueError, struct.error):  # a command that was ended while it asked
            _close(*streams)
            link.close()
            return None
        if self._is_old():
            self.retire()
            self._answer(link, {"stale": True})
            _close(*streams)
            link.close()
            return None
        return self._fork(link, Wanted(facts, streams))

    def _is_old(self) -> bool:
        """Whether the code, or a package, is no longer what was imported."""
        return self.torn or any(_state(path) != state for path, state in self.files.items())

    def _fork(self, link: socket.socket, wanted: Wanted) -> Wanted | None:
        mine = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._answer(link, {"error": f"no process can be forked ({error.strerror})"})
            _close(*wanted.streams)
            link.close()
            return None
        if pid == 0:
            signal.set_wakeup_fd(-1)
            self.listener.close()
            for each in (link, *filter(None, self.trials.values())):
                each.close()
            _close(self.wake, self.waker)
            die_with(mine)
            return wanted
        _close(*wanted.streams)
        self.trials[pid] = link
        starter = wanted.facts["parent"]
        self.starters[starter] = begun_at(starter)
        self._answer(link, {"pid": pid})
        return None

    def _answer(self, link: socket.socket, what: Json) -> None:
        with contextlib.suppress(OSError):  # who asked is gone
            link.sendall(json.dumps(what).encode() + b"\n")

    def _hear(self, descriptor: int) -> None:
        """Pass a command's signals on to its trial; where the command is gone, end the trial."""
        pid, link = next(
            (pid, link)
            for pid, link in self.trials.items()
            if link is not None and link.fileno() == descriptor
        )
        numbers = b""
        with contextlib.suppress(OSError):
            numbers = link.recv(100)
        if not numbers:
            link.close()
            self.trials[pid] = None
        for number in numbers or [signal.SIGKILL]:
            # Without a shell that could wake it, the kernel ignores a SIGTSTP.
            os.kill(pid, signal.SIGSTOP if number == signal.SIGTSTP else number)
            with contextlib.suppress(ProcessLookupError):  # it does not lead its group yet
                if number == signal.SIGKILL:
                    os.killpg(pid, number)  # its children, too

    def _reap(self) -> None:
        while self.trials:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            link = self.trials.pop(pid)
            if link is not None:
                self._answer(link, {"status": status})
                link.close()


def _exactly(link: socket.socket, size: int) -> bytes:
    text = b""
    while len(text) < size:
        more = link.recv(size - len(text))
        if not more:
            raise ConnectionError
        text += more
    return text


def _is_gone(link: socket.socket) -> bool:
    poll = select.poll()
    poll.register(link.fileno(), 0)
    return bool(poll.poll(0))


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def begun_at(pid: int) -> str:
    """Return when a process began, in the kernel's ticks; nothing where it has ended."""
    with contextlib.suppress(OSError, IndexError):
        facts = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return "" if facts[0] == "Z" else facts[19]
    return ""


def _state(path: str) -> tuple[int, int, int, int]:
    """Return what changes when a file does: two times in nanoseconds, its size and its number.

    An editor, or rsync, may set the time of the last edit; not that of the last change.
    """
    try:
        found = Path(path).stat()
    except OSError:
        return 0, 0, 0, 0
    return found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino


def loaded_files() -> list[str]:
    """Return the files of all modules that have been imported."""
    names = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return sorted({name for name in names if isinstance(name, str)})


def die_with(parent: int) -> None:
    """Be killed when the parent is."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def import_as(script: Path) -> None:
    """Import what a script imports at its top, without running the script."""
    for node in ast.parse(script.read_bytes()).body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name) and alias.name != "*":
                    importlib.import_module(f"{node.module}.{alias.name}")


def preload(script: Path, without: list[str]) -> str | None:
    """Import what a trial will need; return the name of an import that makes a fork unsafe."""
    import_as(script)
    if why := unsafe():
        raise RuntimeError(f"the imports of {script.name} {why}")
    for name in LATER if "torch" in sys.modules else ():
        if name not in without:
            with contextlib.suppress(Exception):  # whatever an import may raise
                importlib.import_module(name)
        if unsafe():
            return name
    return None


def unsafe() -> str:
    """Say why a child forked now would not work; nothing where it would."""
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        return "started a thread"
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(link.readlink()).startswith(("/dev/nvidia", "/dev/kfd")):
                return "opened a GPU"
    return ""


def become(wanted: Wanted, added: dict[str, str]) -> None:
    """Take over all that a process started by the command itself would have."""
    facts = wanted.facts
    os.setsid()
    for number, descriptor in enumerate(wanted.streams):
        os.dup2(descriptor, number)
    _close(*wanted.streams)
    for number in (*RELAYED, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in facts["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, facts["blocked"])
    os.umask(facts["umask"])
    os.sched_setaffinity(0, facts["cores"])
    for name, pair in facts["limits"].items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, name), tuple(pair))
    with contextlib.suppress(OSError):  # a folder that has been removed
        os.chdir(facts["cwd"])
    os.environ.clear()
    os.environ.update({**added, **facts["env"], "BALLOT_PARENT": str(facts["parent"])})
    time.tzset()
    sys.argv, sys.path[:] = facts["argv"], facts["path"]
    for number, (name, told) in enumerate(zip(("stdin", "stdout", "stderr"), facts["streams"])):
        stream = _stream(number, *told)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _stream(number: int, encoding: str, errors: str, by_line: bool, at_once: bool) -> io.IOBase:
    """Open a standard stream as Python does at its start."""
    if number == 0:
        return open(0, encoding=encoding, errors=errors, closefd=False)
    raw = open(number, "wb", buffering=0 if at_once else -1, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(
        raw, encoding, errors, newline="\n", line_buffering=by_line, write_through=at_once
    )


def settle() -> None:
    """Let libraries forget what they took from the environment, or at random, in the parent."""
    threads = threads_told()
    if "torch" in sys.modules and threads is not None:
        sys.modules["torch"].set_num_threads(threads)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def run(wanted: Wanted, added: dict[str, str]) -> NoReturn:
    """Run the script as a trial; what it raises is shown as if it had been started plainly."""
    become(wanted, added)
    settle()
    script, status = wanted.facts["argv"][0], 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if status and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        status = -signal.SIGINT
    except BaseException as error:
        trace, status = error.__traceback__, 1
        while trace and trace.tb_frame.f_code.co_filename != script:
            trace = trace.tb_next
        error = error.with_traceback(trace or error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
    leave(status)


def leave(status: int) -> NoReturn:
    """End as the interpreter does, but for taking thousands of modules apart: that takes 2 s."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for each in gc.get_objects():
        if isinstance(each, io.IOBase) and not each.closed:
            with contextlib.suppress(OSError, ValueError):  # closed at its other end
                each.flush()
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)


def main(argv: list[str] | None = None) -> int:
    """Import, listen, say so, and serve; in a fork, run the trial."""
    words = sys.argv[1:] if argv is None else argv
    place, ready, settings, without = words[0], int(words[1]), json.loads(words[2]), words[3:]
    if os.fork():  # what stays is no child of the command's, which may end long before
        return 0
    begun, before = time.time(), dict(os.environ)
    sys.path[:] = settings["path"]
    try:
        culprit = preload(Path(settings["script"]), without)
    except BaseException as error:
        os.write(ready, " ".join(f"{type(error).__name__}: {error}".split()).encode())
        raise
    if culprit:  # what is done is done, but not in a process that starts anew
        os.execv(
            sys.executable,
            [sys.executable, *interpreter_flags(), "-m", "ballot.preload.server", *words, culprit],
        )
    os.chdir("/")
    gc.collect()
    gc.freeze()  # no collection in a child touches, and so copies, what all share
    server = Preloader(Path(place), Path(settings["script"]), settings["idle"], begun)
    os.write(ready, b"ready")
    os.close(ready)
    wanted = server.serve()
    if wanted is not None:
        run(wanted, {k: v for k, v in os.environ.items() if before.get(k) != v})
    leave(0)


if __name__ == "__main__":
    sys.exit(main())
