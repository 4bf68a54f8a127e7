"""Errors meant for people, and the one place that turns them into an exit status."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Iterable


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


def guard(main: Callable[..., int]) -> Callable[..., int]:
    """Turn a script's ``main`` into one that ends in a line and a status, never a traceback.

    Exit status 2 stands for bad input, 130 for Ctrl-C, 1 for a reader that closed the pipe.
    A defect of our own keeps its traceback: it has to be seen.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except UserError as error:
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
            for line in error.example:
                print(f"    {line}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            sys.stderr.close()
            return 1

    return run
