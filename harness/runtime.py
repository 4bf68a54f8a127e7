"""The process: device, precision, seeds, logging, signals, and its place among several."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from harness.errors import TrialFailed, UserError

log = logging.getLogger(__name__)

PATIENCE = timedelta(hours=1)  # for a process that reads data or writes while the others wait
GRACE = 5.0  # seconds that torchrun has to end this process once another one has gone


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM: a person, or NNI's assessor, ends this trial."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextlib.contextmanager
def stop_on_signals(among: int = 1) -> Iterator[None]:
    """Raise `Stopped` at the first SIGINT or SIGTERM; a second one ends the process at once.

    Of several processes (`among`) each hears Ctrl-C twice, from the terminal and from torchrun,
    which ends them by SIGKILL half a minute later: there the second is passed over.
    """
    then = signal.SIG_DFL if among == 1 else signal.SIG_IGN

    def stop(signum: int, _frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, then)
        raise Stopped(signum)

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def die_of(signum: int) -> None:
    """End as the signal would have: by that NNI tells a stopped trial from a failed one."""
    sys.stdout.flush()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def setup_logging() -> None:
    """Log to standard output: plain lines, for a terminal, a pipe and NNI's trial.stdout alike.

    Of several processes the first one speaks for all; the others say what went wrong.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if launched()[0] == 0 else logging.ERROR)
    for noisy in ("PIL", "matplotlib", "nni", "timm", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno > logging.INFO else text


def on_terminal() -> bool:
    """Whether a person watches: progress bars are for them alone."""
    watched = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return watched and launched()[0] == 0


def pick_device(name: str, group: Group | None = None) -> torch.device:
    """Return the device of that name; `auto` is the best there is, for each process its own GPU."""
    if group is not None and group.size > 1:
        name = group.device_name(name)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(
            f"device: {name!r} is not to be had here; auto takes what there is"
        ) from None
    return device


def pick_amp(mode: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast, or None for full precision.

    `auto` is bfloat16 on GPUs that have it, float16 on older ones and full precision on a CPU:
    without instructions of its own, bfloat16 is several times slower there than float32.
    """
    if mode == "off" or (mode == "auto" and device.type != "cuda"):
        return None
    if mode == "auto":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16
    if mode == "fp16" and device.type == "cpu":
        raise UserError("amp: fp16 needs a GPU; choose bf16 or off")
    if mode == "bf16" and device.type == "cpu" and not has_bfloat16():
        log.warning("amp: this processor has no instructions for bfloat16; off is several times "
                    "as fast")  # fmt: skip
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[mode]


def has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether the processor multiplies bfloat16 by itself; True where nobody says."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return True
    flags = [line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Feat"))]
    return not flags or bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags[0]))


def be_deterministic() -> None:
    """Take no algorithm that may give other bits another time; on a CPU all of ours are such.

    An operation that has none then raises, see `lacks_determinism`.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def lacks_determinism(error: RuntimeError) -> bool:
    """Tell whether an operation was refused because it has no deterministic algorithm."""
    return "does not have a deterministic implementation" in str(error)


def seed_everything(seed: int, *more: int) -> None:
    """Seed Python, NumPy and PyTorch from `seed` and, say, the epoch.

    Each epoch is seeded anew, so that its random numbers depend on nothing that happened before:
    a resumed run needs no saved random states to repeat an undisturbed one.
    """
    state = int(np.random.SeedSequence([seed, *more]).generate_state(1, np.uint32)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)


def launched() -> tuple[int, int, int]:
    """Return this process's rank, the number of processes and its rank on this machine.

    What torchrun says; other launchers set `RANK` too, for purposes of their own.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1, 0
    rank, size, local = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return rank, size, local


class Group:
    """The processes that train one model together; without torchrun, one process alone.

    Each sees the same scores and takes the same decisions; the first alone writes and reports.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0, store: Any = None) -> None:
        self.rank, self.size, self.local = rank, size, local
        self._store = store

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """Return what the first process hands in."""
        if self.size == 1:
            return value
        held = [value]
        with self._unbroken():
            dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
        return held[0]

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over the processes, in place."""
        if self.size > 1:
            with self._unbroken():
                dist.all_reduce(tensor)
        return tensor

    def rows(self, tensor: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Put the rows of all processes after one another; the k-th has `counts[k]` of them."""
        if self.size == 1:
            return tensor
        most = max(counts)
        mine = tensor.new_zeros(most, *tensor.shape[1:])
        mine[: len(tensor)] = tensor
        everyone = [torch.empty_like(mine) for _ in counts]
        with self._unbroken():
            dist.all_gather(everyone, mine)
        return torch.cat([part[:n] for part, n in zip(everyone, counts)])

    def same_weights(self, model: torch.nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.size > 1:
            with self._unbroken():
                for tensor in [*model.parameters(), *model.buffers()]:
                    held = tensor.detach().contiguous()  # in whatever order its memory is
                    dist.broadcast(held, src=0)
                    tensor.data.copy_(held)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Fail everywhere where one process fails: what is inside asks nothing of the others."""
        reason = None
        try:
            yield
        except TrialFailed as error:
            if self.size == 1:
                raise
            reason = str(error)
        if self.size > 1:
            reasons: list[str | None] = [None] * self.size
            with self._unbroken():
                dist.all_gather_object(reasons, reason)
            for reason in filter(None, reasons):
                raise TrialFailed(reason)

    def wait(self) -> None:
        """Wait until every process is here."""
        self.add(torch.zeros(1))

    def device_name(self, name: str) -> str:
        """Return the device of this process where several were started."""
        if name.startswith("cuda:"):
            raise UserError(f"device: {name!r} is one GPU for {self.size} processes; "
                            "auto gives each its own")  # fmt: skip
        if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
            return "cpu"
        if name in ("auto", "cuda") and self.local < torch.cuda.device_count():
            return f"cuda:{self.local}"
        raise UserError(f"device: there is no GPU for process {self.local + 1} of this machine; "
                        "start as many as there are GPUs, or say --device cpu")  # fmt: skip

    def dissolve(self, signum: int) -> str | None:
        """Go on alone after a signal: the other processes end, this one keeps what there is.

        Returns what another process had died of, if one had.
        """
        if self.size == 1:
            return None
        if not self.is_main:
            die_of(signum)
        reason = self._complaint()
        self.leave()
        return reason

    def leave(self) -> None:
        """Let go of the other processes."""
        if self.size == 1:
            return
        self.size = 1
        with contextlib.suppress(RuntimeError):
            # A GPU's queue may hold a transfer that nobody will answer.
            if torch.cuda.is_available() and dist.group.WORLD is not None:
                dist.group.WORLD.abort()
            dist.destroy_process_group()

    def complain(self, error: BaseException) -> None:
        """Say for the others' records what this process dies of."""
        with contextlib.suppress(RuntimeError):
            self._store.set("died", f"process {self.rank}: {type(error).__name__}: {error}")

    def _complaint(self) -> str | None:
        with contextlib.suppress(RuntimeError):
            if self._store.check(["died"]):
                return self._store.get("died").decode()
        return None

    @contextlib.contextmanager
    def _unbroken(self) -> Iterator[None]:
        """Do what needs everyone; where one has gone, torchrun's signal is waited for."""
        try:
            yield
        except RuntimeError:
            time.sleep(GRACE)  # ends in `Stopped`
            raise


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """Join the processes that torchrun started; what kills one is said to the others."""
    rank, size, local = launched()
    if size == 1:
        yield Group()
        return
    gpus = torch.cuda.device_count()
    if local < gpus:
        torch.cuda.set_device(local)
    store, rank, size = next(dist.rendezvous("env://"))
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", store=store, rank=rank,
                            world_size=size, timeout=PATIENCE)  # fmt: skip
    group = Group(rank, size, local, store)
    try:
        yield group
    except Stopped:
        raise
    except BaseException as error:
        group.complain(error)
        raise
    finally:
        group.leave()
