"""How tests start the scripts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def command_of(name: str, *words: object) -> list[str]:
    """Return what starts a script; train.py is forked, as the shipped configurations start it.

    A new interpreter spends four seconds of a core on imports, and most trials of tests one.
    """
    preload = ["-m", "ballot.preload"] if name == "train.py" else []
    return [sys.executable, *preload, str(ROOT / name), *map(str, words)]


def environment_of(**more: str) -> dict[str, str]:
    """Return the environment of a script that may be started in any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "BALLOT_PRELOAD": "60", **more}
