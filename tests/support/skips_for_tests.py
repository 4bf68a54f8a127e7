"""What to install for tests that were skipped because a program is missing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parents[2] / ".ci" / "programs"
MISSING = re.compile(r"no machines to test with: (.*) is not installed|no (Chromium) is installed")


def install_line(reasons: Iterable[str]) -> str:
    """Return a line with the packages for skipped tests, given the reason of each; "" without any.

    The programs and their Debian packages are those that `.ci/run` installs.
    """
    packages = dict(line.split() for line in PROGRAMS.read_text().splitlines())
    found = [match for match in map(MISSING.search, reasons) if match]
    if not found:
        return ""
    missing = {name for match in found for name in (match[1] or match[2]).lower().split(", ")}
    missing |= {"sshd"} if any(match[1] for match in found) else set()
    wanted = sorted({packages[name] for name in missing if name in packages and absent(name)})
    return f"to run {len(found)} skipped tests too: apt-get install {' '.join(wanted)}"


def absent(name: str) -> bool:
    """Whether a program is neither on the PATH nor where services are."""
    return not any(shutil.which(name, path=path) for path in (None, "/usr/sbin:/sbin"))
