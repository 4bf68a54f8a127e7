"""A machine that is reached by ssh."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """A machine as the configuration names it; None leaves a thing to ~/.ssh/config."""

    host: str
    port: int | None = None
    user: str | None = None
    key_file: str | None = None
    python: str | None = None  # a folder of interpreters, or an interpreter
    name: str = ""  # for people; unique among the machines of a search

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.host)

    @property
    def interpreter(self) -> str:
        """The interpreter that the file names for it; `~` and `$HOME` are the machine's."""
        if not self.python:
            return "python3"
        is_program = re.fullmatch(r"python[\d.]*", Path(self.python).name)
        return self.python if is_program else f"{self.python.rstrip('/')}/python3"
