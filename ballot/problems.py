"""What a check found: where, what is wrong and what to do, in a list that fits a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from ballot.errors import UserError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong (`fatal`), or worth knowing."""

    where: str
    what: str
    remedy: str = ""
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + f"; {self.remedy}" * bool(self.remedy)


def as_problem(error: UserError | str, *, fatal: bool = True) -> Problem:
    """Take `source: what is wrong; what to do` apart."""
    where, _, rest = str(error).partition(": ")
    what, _, remedy = rest.rpartition("; ")
    return Problem(where, what or remedy, remedy if what else "", fatal)


def listed(problems: Sequence[Problem], heading: str, width: int) -> str:
    """Number the problems, each with its remedy on a line of its own, wrapped at `width`."""
    lines = _wrap(heading, "", width)
    for number, problem in enumerate(problems, 1):
        mark = f"{number:>3}. "
        lines += _wrap(f"{problem.where}: {problem.what}", mark, width)
        if problem.remedy:
            lines += _wrap(problem.remedy, "     -> ", width)
    return "\n".join(lines)


def note(problem: Problem, width: int) -> str:
    """Write a note, wrapped at `width`."""
    return "\n".join(_wrap(str(problem), "note: ", width))


def _wrap(text: str, mark: str, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=mark,
        subsequent_indent=" " * len(mark),
        break_long_words=False,
        break_on_hyphens=False,
    )
