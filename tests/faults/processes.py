"""Processes that start within milliseconds and die when they are told to.

The parent has imported everything and computed nothing, so that a child may use PyTorch's threads.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import sys
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Child:
    """A forked process that writes what it says to a file."""

    pid: int
    said: Path
    status: int | None = None

    def wait(self, seconds: float) -> bool:
        """Wait for its end; tell whether it came in time."""
        deadline = time.monotonic() + seconds
        while self.status is None and time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                return True
            time.sleep(0.002)
        return self.status is not None

    def kill(self) -> None:
        """Kill it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait(10)

    @property
    def words(self) -> str:
        """What it said."""
        return self.said.read_text(errors="replace")


def start(task: Callable[[], int], folder: Path, said: Path) -> Child:
    """Run `task` in a process of its own, in `folder`."""
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # whoever comes first
            os.setpgid(pid, pid)
        return Child(pid, said)
    status = 70
    try:
        os.setpgid(0, 0)
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(folder)
        status = task()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(task: Callable[[], int], folder: Path, said: Path, seconds: float = 300.0) -> Child:
    """Run `task` to its end; one that hangs is killed and has no status of its own."""
    child = start(task, folder, said)
    if not child.wait(seconds):
        child.kill()
        raise AssertionError(f"hung for {seconds:g} s: {child.words[-500:]}")
    return child


def damaged(folder: Path) -> list[str]:
    """Return the files that stand under their own name and are not whole."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        try:
            _read(path)
        except Exception as error:
            found.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
    return found


def _read(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".pt":
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()  # every part has a checksum
            if bad:
                raise ValueError(f"{bad} is damaged")
    elif path.suffix == ".csv":
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            raise ValueError("ends in the middle of a line")
        widths = {len(row) for row in csv.reader(text.splitlines())}
        if len(widths) != 1:
            raise ValueError(f"has rows of {sorted(widths)} cells")
