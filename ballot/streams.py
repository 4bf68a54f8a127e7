"""Standard streams that are closed, full or read by nobody: no reason to lose what was computed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO


def open_missing_streams() -> None:
    """Open the null device for every standard stream that whoever started us has closed.

    Otherwise the next file that is opened takes its number, and what is printed lands in it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            _to_null(number)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _to_null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)


class Lasting:
    """A stream of which a failed write costs only what was to be written; `error` keeps the first.

    A reader that has gone (`| head`) ends a program whose product is its output, and no other.
    """

    def __init__(self, stream: TextIO, keeps_on: bool) -> None:
        self._stream, self._keeps_on = stream, keeps_on
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write to the stream, as far as it takes anything."""
        with self._bearing():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # PYTHONIOENCODING=ascii, or a name that is no UTF-8
                self._stream.write(ascii(text)[1:-1].replace("\\n", "\n"))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, as far as it takes anything."""
        with self._bearing():
            self._stream.flush()

    @contextlib.contextmanager
    def _bearing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What the stream still holds has to go somewhere, or Python complains as it ends.
            with contextlib.suppress(OSError, ValueError):
                _to_null(self._stream.fileno())
            if isinstance(error, BrokenPipeError) and not self._keeps_on:
                raise
            self.error = self.error or error

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting(keeps_on: bool) -> Iterator[Lasting]:
    """Let a failed write to a standard stream end nothing; yields the standard output."""
    before = sys.stdout, sys.stderr
    out = Lasting(before[0], keeps_on)
    sys.stdout, sys.stderr = out, Lasting(before[1], keeps_on)
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before
        with contextlib.suppress(BrokenPipeError):
            out.flush()
