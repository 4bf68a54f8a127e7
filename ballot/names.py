"""Names of files and classes: every one ends in a CSV, which is UTF-8."""

from __future__ import annotations

from collections.abc import Sequence

from ballot.errors import UserError


def check_names(where: object, names: Sequence[str]) -> None:
    """Refuse names that are no UTF-8; Python reads the bytes of such a file name as surrogates."""
    if is_utf8("\0".join(names)):
        return
    bad = [name for name in names if not is_utf8(name)]
    shown = ascii(bad[0]).replace("\\udc", "\\x")
    verb = "name is" if len(bad) == 1 else "names are"
    raise UserError(f"{where}: {len(bad)} {verb} not UTF-8, as {shown}; rename with convmv")


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
