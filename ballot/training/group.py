"""Processes that train one model together."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ballot.errors import TrialFailed, UserError
from ballot.training.signals import GRACE, Stopped, die_of

log = logging.getLogger(__name__)

PATIENCE = timedelta(hours=1)  # for a process that reads data or writes while the others wait
BY_TRAIN = "BALLOT_SPREAD"  # is in the environment of processes that train.py itself started


def launched() -> tuple[int, int, int]:
    """Return this process's rank, the number of processes and its rank on this machine.

    What torchrun says; other launchers set `RANK` too, for purposes of their own.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1, 0
    rank, size, local = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return rank, size, local


def launched_by_train() -> bool:
    """Whether train.py started this process as one of several, and has told its configuration."""
    return BY_TRAIN in os.environ


def launch(words: Sequence[str]) -> int:
    """Start processes as `torchrun` does with these words, and return the status they end with.

    They say themselves what is wrong; torchrun's own report of it is left out.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ[BY_TRAIN] = "1"
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        torchrun.run(torchrun.parse_args(list(words)))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        log.error("process %d was ended by %s", rank, signal.Signals(-failure.exitcode).name)
        return 128 - failure.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


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

    def share(self, value: object) -> Any:
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
            raise UserError(
                f"device: {name!r} is one GPU for {self.size} processes; auto gives each its own"
            )
        if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
            return "cpu"
        if name in ("auto", "cuda") and self.local < torch.cuda.device_count():
            return f"cuda:{self.local}"
        raise UserError(
            f"device: there is no GPU for process {self.local + 1} of this machine; "
            "start one process per GPU, or add --device cpu"
        )

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

    def is_first_to_say(self) -> bool:
        """Whether no other process has said yet what is wrong: all see the same bad input."""
        try:
            return self._store.add("said", 1) == 1
        except RuntimeError:
            return True

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
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpus else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=PATIENCE,
    )
    group = Group(rank, size, local, store)
    try:
        yield group
    except Stopped:
        raise
    except UserError as error:
        group.complain(error)
        if group.is_first_to_say():
            raise
        time.sleep(GRACE)  # torchrun ends the others once this one has gone
        raise SystemExit(2) from error
    except BaseException as error:
        group.complain(error)
        raise
    finally:
        group.leave()
