"""How a script ends: with one line and an exit status, whatever happened."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

from ballot.errors import UserError, one_line
from ballot.installed import not_installed
from ballot.streams import lasting


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
