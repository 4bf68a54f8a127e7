"""What can be written as UTF-8, as every CSV and JSON file is."""

from __future__ import annotations

from collections.abc import Iterable


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def not_utf8(names: Iterable[str]) -> str:
    """Say which names are no UTF-8, or return nothing; Python reads their bytes as surrogates."""
    bad = [name for name in names if not is_utf8(name)]
    if not bad:
        return ""
    shown = ascii(bad[0]).replace("\\udc", "\\x")
    verb = "name is" if len(bad) == 1 else "names are"
    return f"{len(bad)} {verb} not UTF-8, as {shown}; rename with convmv"
