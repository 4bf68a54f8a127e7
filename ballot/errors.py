"""Errors meant for people, and the one place that turns them into an exit status."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from ballot.installed import not_installed
from ballot.streams import lasting


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


def one_line(text: str) -> str:
    """Join the lines of a text, and show characters that a terminal would act on as escapes."""
    text = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def script_main(main: Callable[..., int], *, keeps_on: bool = False) -> Callable[..., int]:
    """Turn a script's ``main`` into one that ends in a line and a status, never a traceback.

    Exit status 2 stands for bad input, 130 for Ctrl-C, 1 for output that could not be written. A
    defect of our own keeps its traceback: it has to be seen. A program that keeps on has its
    results in files, and loses no more than its words where nobody takes them.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        with lasting(keeps_on) as out:
            try:
                status = main(argv)
                out.flush()
            except BrokenPipeError:
                return 1
            except (UserError, ModuleNotFoundError, KeyboardInterrupt) as error:
                return _end_of(error)
            if out.error is None or isinstance(out.error, BrokenPipeError):
                return status
            kind = "warning" if keeps_on else "error"
            print(
                f"{kind}: standard output: cannot be written ({out.error.strerror})",
                file=sys.stderr,
            )
            return status if keeps_on else status or 1

    return run


lasting_main = functools.partial(script_main, keeps_on=True)


def _end_of(error: BaseException) -> int:
    """Print the one line of an end that is no defect of ours, and return its status."""
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    if isinstance(error, ModuleNotFoundError):
        if not _is_of_a_package(error.name):
            raise error
        error = UserError(not_installed(str(error.name)))
    print("error: " + one_line(str(error)), file=sys.stderr)
    for line in error.example if isinstance(error, UserError) else ():
        print(f"    {one_line(line)}", file=sys.stderr)
    return 2


def _is_of_a_package(module: str | None) -> bool:
    """Whether a module that is not found belongs to a package, and not to this project."""
    top = (module or "").partition(".")[0]
    home = Path(__file__).resolve().parents[1]
    return bool(top) and not (home / top).is_dir() and not (home / f"{top}.py").exists()
