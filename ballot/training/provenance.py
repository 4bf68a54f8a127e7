"""What a run was made with: machine, command, versions, commit and hardware."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from ballot.cpus import cpu_count
from ballot.values import Json

PACKAGES = ("torch", "torchvision", "numpy", "nni", "timm", "efficientnet-pytorch", "scikit-learn")


def machine_facts() -> Json:
    """Return what it takes, beside the configuration and the data, to make a run again."""
    return {
        "machine": socket.gethostname(),
        "command": sys.argv,
        "commit": commit(Path(__file__).resolve().parents[2]),
        "hardware": hardware(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def commit(folder: Path) -> str | None:
    """Return the code's commit, with `-dirty` where a file differs from it; None outside git.

    A copy on another machine has no repository of its own; one further up is somebody else's.
    """
    if not (folder / ".git").exists():
        return None
    words = [
        "git",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(words, capture_output=True, text=True, timeout=5)
        return done.stdout.strip() or None
    return None


def hardware() -> Json:
    """Return the processor, the cores that this process may use and the memory in GiB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"processor": _processor(), "cores": cpu_count(), "memory_gib": round(memory / 2**30, 1)}


def _processor() -> str:
    with contextlib.suppress(OSError):
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^model name\s*:\s*(.+)$", said, re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()
