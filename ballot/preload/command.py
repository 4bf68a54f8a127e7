"""Start a trial from a process that has imported everything: `python3 -m ballot.preload train.py`.

A command like any other: what is typed, told and sent to it goes to the trial, and the trial's end
is its end. The trial itself is forked by `ballot.preload.server`, which the first such command
starts and which later ones share. Where that cannot be had, this becomes `python3 train.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ballot.cpus import threads_each, threads_told
from ballot.errors import UserError
from ballot.gpus import lock_folder
from ballot.scripts import script_main
from ballot.values import Json

ANSWER_S = 20.0  # a preloader that is well forks within milliseconds
START_S = 120.0  # for the imports, on a machine that is busy
REFUSED_S = 600.0  # how long it is not tried again what could not be preloaded
IDLE_S = 900.0  # without a trial, after which a preloader ends though its search goes on
ROOT = Path(__file__).resolve().parents[2]

# What libraries read while they are imported, by the beginnings of the names.
READ_EARLY = (
    "PYTHON",
    "LD_",
    "GLIBC_",
    "MALLOC_",
    "LANG",
    "LC_",
    "TZ",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "BLIS_",
    "NUMEXPR_",
    "NPY_",
    "SCIPY_",
    "SKLEARN_",
    "ARROW_",
    "TORCH",
    "PYTORCH_",
    "ATEN_",
    "TRITON_",
    "CUDA_",
    "CUDNN_",
    "CUBLAS_",
    "NVIDIA_",
    "NCCL_",
    "HIP_",
    "HSA_",
    "ROCR_",
    "HF_",
    "DNNL_",
    "ONEDNN_",
    "TF_",
)
# Of those, what is read later, or set in the trial: each trial has its own.
READ_LATE = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES")

RELAYED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTSTP,
    signal.SIGCONT,
)


class NotPreloaded(Exception):
    """Why a trial has to start plainly; nothing where that is what was asked for."""


@script_main
def main(argv: list[str] | None = None) -> int:
    """Run a script with its arguments, and return its exit status."""
    words = sys.argv[1:] if argv is None else argv
    if not words or not Path(words[0]).is_file():
        what = f"{words[0]!r} is not there" if words else "no script given"
        raise UserError(f"preload: {what}; usage: python3 -m ballot.preload train.py")
    share_cores()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # to end at once, until there is a trial
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        link, pid = begin(words)
    except (NotPreloaded, OSError, ValueError) as why:
        if str(why):
            print(
                f"preload: {why}; starting a new interpreter instead", file=sys.stderr, flush=True
            )
        os.execv(sys.executable, [sys.executable, *interpreter_flags(), *words])
    return stand_in(link, pid, blocked)


def share_cores() -> None:
    """Take a share of another machine's cores, as its trials at once are told (fleet.js).

    Trials on the manager's own machine have it in their environment (ballot/engines/nni/engine.py).
    """
    at_once = os.environ.get("BALLOT_AT_ONCE", "")
    if at_once.isdigit() and int(at_once) > 0 and threads_told() is None:
        os.environ["OMP_NUM_THREADS"] = str(threads_each(int(at_once)))


def idle_seconds() -> float:
    """Return how long a preloader waits for trials, as BALLOT_PRELOAD says: 0 is not at all."""
    text = os.environ.get("BALLOT_PRELOAD", "")
    try:
        seconds = float(text) if text else IDLE_S
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise UserError(
            f"BALLOT_PRELOAD: {text!r} is not a number of seconds; 0 disables preloading"
        )
    return seconds


def begin(words: list[str]) -> tuple[socket.socket, int]:
    """Have a trial forked; return the line to the preloader, and the trial's process id.

    Raises `NotPreloaded` where that cannot be had.
    """
    idle = idle_seconds()
    if idle == 0:
        raise NotPreloaded
    if sys.platform != "linux":
        raise NotPreloaded("works on Linux only")
    script = Path(words[0]).resolve()
    settings: Json = {"script": str(script), "path": search_path(script), "idle": idle}
    try:
        place = lock_folder() / f"preload-{identity(settings)}"
    except UserError as error:
        raise NotPreloaded(str(error)) from None
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(ConnectionError, FileNotFoundError):
            return ask(connect(place), request(words, settings["path"]))
        start(place, settings, deadline)


def search_path(script: Path) -> list[str]:
    """Return where modules are looked for when the script is started plainly."""
    return [str(script.parent), *(str(Path(entry).absolute()) for entry in sys.path[1:])]


def identity(settings: Json) -> str:
    """Return a name for all that trials must have in common to be forked from one process."""
    status = Path("/proc/self/status").read_text().splitlines()
    rights = ("Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
    root = Path("/").stat()
    facts = [
        settings,
        sys.executable,
        sys.version,
        interpreter_flags(),
        sorted(early().items()),
        [line for line in status if line.startswith(rights)],
        Path("/proc/self/cgroup").read_text(),
        (root.st_dev, root.st_ino),
        [str(Path("/proc/self/ns", name).readlink()) for name in ("mnt", "pid", "net", "ipc")],
        os.getpriority(os.PRIO_PROCESS, 0),
        [hard for _, hard in limits().values()],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def early() -> dict[str, str]:
    """Return the part of the environment that imports may depend on."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(READ_EARLY) and name not in READ_LATE
    }


def limits() -> dict[str, tuple[int, int]]:
    """Return this process's limits, the soft and the hard ones, by their names."""
    names = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
    return {name: resource.getrlimit(getattr(resource, name)) for name in names}


def interpreter_flags() -> list[str]:
    """Return the options that this interpreter was started with."""
    import subprocess

    unbuffered = ["-u"] if getattr(sys.stdout, "write_through", False) else []
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [*flags, *unbuffered]


def request(words: list[str], path: list[str]) -> Json:
    """Return all of this process that a trial takes over."""
    ignored = [
        number
        for number in range(1, signal.NSIG)
        if number != signal.SIGPIPE and signal.getsignal(number) == signal.SIG_IGN
    ]
    umask = os.umask(0o077)
    os.umask(umask)
    return {
        "argv": words,
        "path": path,
        "cwd": str(Path.cwd()),
        "env": dict(os.environ),
        "umask": umask,
        "limits": limits(),
        "cores": sorted(os.sched_getaffinity(0)),
        "ignored": ignored,
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "parent": os.getppid(),
        "streams": [manner(each) for each in (sys.stdin, sys.stdout, sys.stderr)],
    }


def manner(stream: Any) -> tuple[str, str, bool, bool]:
    """Return how a standard stream is written and read; None is a closed one."""
    if stream is None:
        return "utf-8", "strict", False, False
    return stream.encoding, stream.errors, stream.line_buffering, stream.write_through


@contextlib.contextmanager
def address(place: Path) -> Iterator[str]:
    """Give a socket's path a short name: the kernel takes 107 bytes, a folder's may be longer."""
    descriptor = os.open(place.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{place.name}"
    finally:
        os.close(descriptor)


def connect(place: Path) -> socket.socket:
    """Reach the preloader, which must be this user's."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(ANSWER_S)
    with address(place) as name:
        link.connect(name)
    if peer(link) != os.getuid():
        raise NotPreloaded(f"{place} belongs to another user")
    return link


def peer(link: socket.socket) -> int:
    """Return the user id of who is at the other end."""
    found = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", found)[1]


def ask(link: socket.socket, wanted: Json) -> tuple[socket.socket, int]:
    """Ask for a trial on this process's streams; `ConnectionError` where another must be asked.

    Signals wait from here on, for `stand_in` to pass them on: the trial may run before its answer.
    """
    text, answer = json.dumps(wanted).encode(), None
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, RELAYED)
    try:
        with contextlib.ExitStack() as stack:
            streams = [_stream(number, stack) for number in range(3)]
            socket.send_fds(link, [struct.pack("!I", len(text))], streams)
            link.sendall(text)
        answer = receive(link)
    finally:
        if answer is None or "pid" not in answer:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    if answer is None or "stale" in answer:
        link.close()
        raise ConnectionError
    if "pid" not in answer:
        raise NotPreloaded(answer["error"])
    return link, answer["pid"]


def _stream(number: int, stack: contextlib.ExitStack) -> int:
    """Return one of the standard streams, or nothing's where that is closed."""
    try:
        os.fstat(number)
        return number
    except OSError:
        return stack.enter_context(Path(os.devnull).open("r+b", buffering=0)).fileno()


def receive(link: socket.socket) -> Json | None:
    """Return what the preloader says next, None where it is gone."""
    text = b""
    with contextlib.suppress(ConnectionError):
        while not text.endswith(b"\n"):
            more = link.recv(1)  # not into the next line, for which `select` waits
            if not more:
                return None
            text += more
        return json.loads(text)
    return None


def start(place: Path, settings: Json, deadline: float) -> None:
    """Start a preloader unless another command does so, and wait until it listens."""
    refusal = place.with_suffix(".refused")
    with locked(place.with_suffix(".lock"), deadline):
        with contextlib.suppress(OSError), connect(place):
            return
        with contextlib.suppress(OSError):
            if 0 <= time.time() - refusal.stat().st_mtime < REFUSED_S:
                raise NotPreloaded(refusal.read_text(encoding="utf-8"))
        said = launch(place, settings, deadline)
        if said != "ready":
            with contextlib.suppress(OSError):
                refusal.write_text(said, encoding="utf-8")
            raise NotPreloaded(said)


@contextlib.contextmanager
def locked(path: Path, deadline: float) -> Iterator[None]:
    """Hold a lock; who waits for it waits for another's start, and not for ever."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline:
                raise NotPreloaded("another command is still importing")
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def launch(place: Path, settings: Json, deadline: float) -> str:
    """Start a preloader away from this session; return `ready`, or why it does not serve."""
    import subprocess

    told, tell = os.pipe()
    command = [sys.executable, *interpreter_flags(), "-m", "ballot.preload.server", str(place)]
    with place.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            [*command, str(tell), json.dumps(settings)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=environment(),
            pass_fds=[tell],
            start_new_session=True,
        )
    os.close(tell)
    try:
        process.wait()  # what stays is its child
        ready, _, _ = select.select([told], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return f"the imports took more than {START_S:.0f} s"
        said = os.read(told, 4096).decode(errors="replace")
    finally:
        os.close(told)
    return said or f"the imports failed, see {place.with_suffix('.log')}"


def environment() -> dict[str, str]:
    """Return what a preloader has in its environment: nothing of a trial's, nothing of NNI's."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    home = os.environ.get("HOME", "/")
    with contextlib.suppress(KeyError, ImportError):
        import pwd

        home = pwd.getpwuid(os.getuid()).pw_dir
    # Arrow and OpenBLAS start threads when they are loaded, and no thread survives a fork.
    single = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "OPENBLAS_NUM_THREADS": "1"}
    return {**kept, "HOME": home, **early(), **single}


def stand_in(link: socket.socket, pid: int, blocked: Iterable[int]) -> int:
    """Pass signals on to the trial until it ends, and end as it did.

    Of the signals that have waited since it was asked for, those in `blocked` go on waiting.
    """
    told, tell = os.pipe()
    for end in (told, tell):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    for number in RELAYED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    watched: list[Any] = [link, told]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if told in ready:
            numbers = os.read(told, 100)
            with contextlib.suppress(ConnectionError):  # it is noticed below
                link.sendall(numbers)
            if signal.SIGTSTP in numbers:
                os.kill(os.getpid(), signal.SIGSTOP)
        if link in ready:
            break
    ended = receive(link)
    if ended is None:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        print("preload: the process that forked this trial has died", file=sys.stderr, flush=True)
    status = signal.SIGKILL if ended is None else ended["status"]
    if os.WIFSIGNALED(status):
        die_of(os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)


def die_of(number: int) -> None:
    """End by a signal as the trial did, without a second dump of memory."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):  # SIGKILL has no handler
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    sys.exit(main())
