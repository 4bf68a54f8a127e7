"""What NNI's processes of a search wrote: its trials, its tuner, its manager."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from ballot.runs.trials import NO_WORD
from ballot.wording import last_lines

MANAGER = Path("log", "nnictl_stderr.log")


def last_words(folder: Path, trial_id: str, lines: int = 1) -> str:
    """Return the last lines that a local trial wrote before it ended."""
    for name in ("trial.stderr", "trial.stderr.first", "trial.log", "trial.stdout"):
        for path in folder.glob(f"environments/*/trials/{trial_id}/{name}"):
            if words := last_lines(path, lines):
                return words
    return NO_WORD


def retries(folder: Path) -> dict[str, str]:
    """Return the trials that run a second time, with the reason (node/trials.js)."""
    with contextlib.suppress(OSError):
        log = (folder / MANAGER).read_text("utf-8", "replace")
        return dict(re.findall(r"\[ballot trials\] trial (\w+) (.+?); it runs once more", log))
    return {}


def moves(folder: Path) -> list[str]:
    """Return what node/fleet.js says of trials that were lost with a machine and go on."""
    with contextlib.suppress(OSError):
        log = (folder / MANAGER).read_text("utf-8", "replace")
        return re.findall(r"\[ballot remote\] (trial \w+ was lost with .+)", log)
    return []


def tuner_error(folder: Path) -> str:
    """Return the error that the tuner wrote last, or nothing."""
    for name in ("dispatcher.log", MANAGER.name):
        lines = last_lines(folder / "log" / name, 400).splitlines()
        errors = [line for line in lines if re.match(r"[A-Za-z_.]+(Error|Exception)\b", line)]
        if errors:
            return errors[-1]
    return ""
