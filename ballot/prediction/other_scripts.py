"""Our other scripts, in processes of their own: what trains or predicts needs torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ballot.errors import UserError
from ballot.runs.files import read_json
from ballot.values import Json

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Scripts:
    """The scripts that a vote starts, with an environment and a name for what they are for."""

    purpose: str  # the flag that asked for it
    environment: Mapping[str, str] | None = None

    def show(self, script: str, words: Sequence[str]) -> None:
        """Run a script whose output a person sees; where it fails, this is a `UserError`."""
        sys.stdout.flush()
        status = subprocess.run(self._command(script, words), env=self.environment).returncode
        if status:
            raise UserError(f"{self.purpose}: {script} ended with status {status}, see above")

    def ask(self, script: str, words: Sequence[str]) -> str:
        """Run a script and return what it prints; its error is raised as a `UserError`."""
        done = subprocess.run(
            self._command(script, words), env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it ended without a word"]
            why = next((line for line in lines if line.startswith("error: ")), lines[-1])
            raise UserError(f"{self.purpose}: {why.removeprefix('error: ')}")
        return done.stdout

    def _command(self, script: str, words: Sequence[str]) -> list[str]:
        return [sys.executable, str(ROOT / script), *words]


def soft_labels(
    scripts: Scripts,
    vote_dir: Path,
    out: Path,
    *,
    images: Sequence[str],
    which: str,
    least: float = 0.0,
    data_dir: str | None = None,
) -> tuple[int, int]:
    """Write the answers of a vote as soft labels; return how many images those are, of how many.

    `which` is all, or unlabelled: test images of the data set and `images`.
    """
    words = [str(vote_dir), *map(_absolute, images), "--soft_labels", which, "--out", str(out)]
    words += ["--min_probability", f"{least:g}"]
    words += ["--data_dir", data_dir] if data_dir else []
    scripts.ask("predict.py", words)
    facts: Json = read_json(out.with_suffix(".json"))
    return int(facts["kept"]), int(facts["asked"])


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
