"""Errors meant for people; `ballot.scripts` turns them into a line and an exit status."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: what is wrong, where, and what would be right, in one line.

    Written as ``source: what is wrong; what to do``. A script ends with exit status 2. Lines of
    an `example` are shown below it.
    """

    def __init__(self, text: str, *, example: Iterable[str] = ()) -> None:
        super().__init__(text)
        self.example = tuple(example)


class CannotWrite(UserError):
    """A file that cannot be written: the disk is full, read-only or broken."""


class TrialFailed(Exception):
    """A trial that cannot go on (out of memory, a loss that is not finite).

    It ends with a floor score and this reason on record, because a crash teaches a tuner nothing.
    """


class AboveBounds(TrialFailed):
    """A network that is larger or slower than was asked for."""


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest choice, or a short list, or nothing."""
    choices = list(choices)
    lowered = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {lowered[near[0]]!r}?"
    if 0 < len(choices) <= 12:
        return "; choose one of " + ", ".join(choices)
    return ""


def one_line(text: str) -> str:
    """Join the lines of a text, and show characters that a terminal would act on as escapes."""
    text = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
