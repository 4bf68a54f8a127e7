"""Names of files and classes: every one ends in a CSV, which is UTF-8."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from ballot.errors import UserError
from ballot.utf8 import is_utf8, not_utf8


def check_names(where: object, names: Sequence[str]) -> None:
    """Refuse names that are no UTF-8."""
    if is_utf8("\0".join(names)):
        return
    raise UserError(f"{where}: {not_utf8(names)}")


def resolved(path: Path, remedy: str) -> Path:
    """Return where a path leads; a link to itself is a `UserError`."""
    try:
        path.stat()  # what `resolve` does about a loop depends on the version of Python
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path}: is a link that leads to itself; {remedy}") from None
    return path.resolve()
