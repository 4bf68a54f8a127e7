"""Whether this Python is one that the scripts run on, asked before they import anything large."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable

from ballot.streams import open_missing_streams

PYTHONS = ((3, 10), (3, 14))  # from the first, below the second; as in pyproject.toml
PYTHON_NAMES = [f"python3.{n}" for n in reversed(range(PYTHONS[0][1], PYTHONS[1][1]))]
PYTHON_RANGE = f"3.{PYTHONS[0][1]} to 3.{PYTHONS[1][1] - 1}"
REMEDY = "run make setup, then source .venv/bin/activate"


def require(*packages: str) -> None:
    """End the program with one line where its Python or a package is not that of a setup."""
    open_missing_streams()
    if why := what_is_missing(packages):
        print(f"error: {why}", file=sys.stderr)
        sys.exit(2)


def what_is_missing(packages: Iterable[str]) -> str:
    """Return what this Python lacks of `packages`, or nothing."""
    version = sys.version_info[:2]
    if not PYTHONS[0] <= version < PYTHONS[1]:
        return (
            f"{sys.executable}: is Python {version[0]}.{version[1]}, not {PYTHON_RANGE}; {REMEDY}"
        )
    encoding = sys.getfilesystemencoding()
    if encoding.lower() not in ("utf-8", "utf8"):
        return f"locale: text is {encoding} here; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return not_installed(*missing) if missing else ""


def not_installed(*names: str) -> str:
    """Return the words for packages that this Python does not have, and what to do."""
    verb = "is" if len(names) == 1 else "are"
    return f"{sys.executable}: {', '.join(names)} {verb} not installed; {REMEDY}"
