"""GPUs that the trials of one host share: each takes a free one under a lock.

An engine's own assignment may count wrongly and knows nothing of other searches. Here
a trial locks one of the files `<temporary folder>/ballot-<uid>/<gpu>.<slot>` (where that name is
taken by somebody else, in `~/.cache/ballot`); the kernel lets go of the lock when the process
ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ballot.errors import UserError

log = logging.getLogger(__name__)

POLL = 0.5  # seconds between two looks for a free GPU


@dataclass(frozen=True)
class Gpu:
    """A CUDA device that this process may use."""

    index: int  # among the visible ones, as in cuda:<index>
    id: str  # the same in every process of the host, whatever CUDA_VISIBLE_DEVICES makes visible


@dataclass
class Lease:
    """A device, and the lock that keeps it where it was taken among trials."""

    name: str
    descriptor: int = -1

    def release(self) -> None:
        """Let others have the device; the end of the process does so by itself."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def choose_device(name: str, *, trials_per_gpu: int, among_trials: bool, holder: str = "") -> Lease:
    """Return the device to use: what a person named, else a free GPU, else the best there is.

    `among_trials` says that other trials of a search want GPUs too, and that nobody has assigned
    this one its own; `holder` names it for people. Waits, and says so once, while all GPUs
    are taken.
    """
    if name != "auto" or not among_trials:
        return Lease(name)
    gpus = visible_gpus()
    if not gpus:
        return Lease(name)
    lease = take(gpus, trials_per_gpu, lock_folder(), memory_used, holder=holder)
    import torch

    torch.cuda.set_device(lease.name)  # what names no device shall not touch the first GPU
    return lease


def on_several(
    name: str, available: int, command: Sequence[str], processes: int = 1
) -> list[str] | None:
    """Return the words for torchrun to train in several processes; None for one alone.

    They are as many as a list of GPUs such as `0,1` names, or `processes` on a device that is not
    one GPU. `command` is this process's own. Fewer GPUs than processes (`available`) are a
    `UserError`, unless there is none: then all share the CPU.
    """
    launcher = ["--standalone", "--nproc_per_node"]
    gpus = name.split(",")
    if len(gpus) == 1:
        if processes == 1:
            return None
        if name != "cpu" and (available or name != "auto") and available < processes:
            raise UserError(
                f"processes: {processes} processes need as many GPUs; this machine has "
                f"{available}: --processes 1 trains alone, --device cpu without GPUs"
            )
        return [*launcher, str(processes), *command]
    if not all(gpu.isdigit() and int(gpu) < available for gpu in gpus):
        raise UserError(
            f"device: {name!r} names {len(gpus)} GPUs; this machine has {available}, "
            "and auto takes what there is"
        )
    return [*launcher, str(len(gpus)), *command, "--device", "cuda"]


def visible_gpus() -> list[Gpu]:
    """List the CUDA devices of this process; where they are told apart by it, by their UUID."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found.append(Gpu(index, str(getattr(facts, "uuid", None) or f"cuda{index}")))
    return found


def memory_used(gpu: Gpu) -> float:
    """Return the share of the GPU's memory that is in use by anyone, 0 where nobody knows."""
    try:
        import pynvml  # a look by CUDA itself would occupy memory on each GPU

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{gpu.id.removeprefix('GPU-')}")
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except Exception:  # no NVML, or a device that it does not name so: only a preference is lost
        return 0.0
    return memory.used / memory.total


def lock_folder() -> Path:
    """Return this user's folder of locks on this machine, made for this user alone.

    Anybody can take its name in a temporary folder that all users share; the home is the second
    choice. All processes of the user come to the same one, whatever session they are of, which
    XDG_RUNTIME_DIR does not give: it ends with the last login, and some sessions have none.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    first = Path(tempfile.gettempdir(), f"ballot-{os.getuid()}")
    second = Path(cache, "ballot", f"locks-{socket.gethostname()}").expanduser()
    for folder in (first, second):
        with contextlib.suppress(OSError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
        if _is_private(folder):
            return folder
    raise UserError(
        f"{first}: is not this user's own folder with mode 700, nor is {second}; remove one of them"
    )


def _is_private(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    owned = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return owned and not found.st_mode & 0o077


def take(
    gpus: Sequence[Gpu],
    slots: int,
    folder: Path,
    load: Callable[[Gpu], float] = memory_used,
    poll: float = POLL,
    holder: str = "",
) -> Lease:
    """Lock a slot of the GPU with the fewest trials, then the least load; wait for one to be free.

    Each GPU has `slots` of them. Waiting is said once.
    """
    said = False
    while True:
        with _choosing(folder):
            found = _best(gpus, slots, folder, load)
        if found is not None:
            return _held(*found, holder)
        if not said:
            what = "the GPU is" if len(gpus) == 1 else f"all {len(gpus)} GPUs are"
            log.warning("%s taken by other trials; waiting for one to end", what)
            said = True
        time.sleep(poll)


@contextlib.contextmanager
def _choosing(folder: Path) -> Iterator[None]:
    """Let one process at a time count the trials on each GPU."""
    descriptor = os.open(folder / "choosing", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _best(
    gpus: Sequence[Gpu], slots: int, folder: Path, load: Callable[[Gpu], float]
) -> tuple[Gpu, int] | None:
    """Return the GPU to use and the descriptor of its locked slot, or None where all are taken."""
    free: dict[Gpu, list[int]] = {}
    for gpu in gpus:
        locked = [_try_lock(folder / f"{gpu.id}.{slot}") for slot in range(slots)]
        if descriptors := [d for d in locked if d is not None]:
            free[gpu] = descriptors
    if not free:
        return None
    best = min(free, key=lambda gpu: (-len(free[gpu]), load(gpu), gpu.index))
    kept = free[best].pop(0)
    for descriptor in [d for descriptors in free.values() for d in descriptors]:
        os.close(descriptor)
    return best, kept


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _held(gpu: Gpu, descriptor: int, holder: str) -> Lease:
    """Write down for people who holds the GPU, and keep the lock from outliving this process."""
    lease = Lease(f"cuda:{gpu.index}", descriptor)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()} {holder}\n".encode())
    # A forked child (a worker that decodes) would hold the lock on when this process is killed.
    os.register_at_fork(after_in_child=lease.release)
    return lease
