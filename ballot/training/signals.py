"""Ending in order on SIGINT and SIGTERM."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

GRACE = 5.0  # seconds that torchrun has to end this process once another one has gone


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM: a person, or NNI's assessor, ends this trial."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Stop:
    """What the first signal does: it raises `Stopped`, or is noted while it is held off."""

    def __init__(self, *, alone: bool = True) -> None:
        self.signum = 0  # of a signal that was held off
        self._alone = alone
        self._is_held = False

    def hold(self) -> None:
        """Hold signals off while results are written: nothing is won by ending without them.

        One of several processes cannot: where another has died, only a signal ends its waiting.
        """
        self._is_held = self._alone

    def release(self) -> None:
        """Raise `Stopped` at signals again, and at one that came in the meantime."""
        self._is_held = False
        if self.signum:
            raise Stopped(self.signum)

    def take(self, signum: int) -> None:
        """Take a signal."""
        if not self._is_held:
            raise Stopped(signum)
        self.signum = signum


@contextlib.contextmanager
def stop_on_signals(among: int = 1) -> Iterator[Stop]:
    """Raise `Stopped` at the first SIGINT or SIGTERM; a second one ends the process at once.

    Of several processes (`among`) each hears Ctrl-C twice, from the terminal and from torchrun,
    which ends them by SIGKILL half a minute later: there the second is passed over.
    """
    then = signal.SIG_DFL if among == 1 else signal.SIG_IGN
    stop = Stop(alone=among == 1)

    def handle(signum: int, _frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, then)
        stop.take(signum)

    before = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def die_of(signum: int) -> None:
    """End as the signal would have: by that NNI tells a stopped trial from a failed one."""
    sys.stdout.flush()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
