"""The processes that work for a search: found, asked to end, killed."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import psutil  # comes with NNI


def is_manager(process: psutil.Process, search_id: str) -> bool:
    """Whether a process is the manager of a search."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return any(Path(word).name == "main.js" for word in words) and search_id in words


def belonging(search_id: str, folder: Path) -> list[psutil.Process]:
    """Return this user's processes that work for a search: trials, its tuner, its manager."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.uids().real != os.getuid():
                continue
            names = process.environ()
            if (
                names.get("NNI_EXP_ID") == search_id
                or Path(names.get("NNI_LOG_DIRECTORY", "/")).is_relative_to(folder)
                or is_manager(process, search_id)
            ):
                found.append(process)
    return found


def end_processes(search_id: str, folder: Path, patience: float) -> int:
    """End what a search left running: asked first, killed after `patience` seconds.

    An orphan of a killed manager would talk to the next one, and write the same run folder as the
    trial that takes its place. Returns how many there were.
    """
    present = belonging(search_id, folder)
    if patience > 0:
        trials = [process for process in present if not is_manager(process, search_id)]
        inside = {process.pid for process in trials}
        for process in trials:
            with contextlib.suppress(psutil.Error):
                parent = process.parent()
                forked = parent is not None and "ballot.preload.server" in parent.cmdline()
                if not (forked or process.ppid() in inside):  # a trial ends its own loaders
                    process.terminate()
        psutil.wait_procs(trials, timeout=patience)
    for process in belonging(search_id, folder):
        kill(process)
    return len(present)


def await_end(process: psutil.Process, patience: float) -> None:
    """Wait until a process has ended, `patience` seconds at most."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and _lives(process):
        time.sleep(0.2)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def kill(process: psutil.Process) -> None:
    """Kill a process and wait for its end."""
    with contextlib.suppress(psutil.Error):
        process.kill()
        process.wait(5)
