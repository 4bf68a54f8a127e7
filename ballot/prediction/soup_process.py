"""Soups that nobody asked for: which runs of a search are averaged, and in what time.

Averaging needs torch, which a search and a vote do without: it is a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ballot.errors import UserError
from ballot.runs.files import read_rows, stamp
from ballot.runs.folder import VALIDATION, read_config, read_result

SCRIPT = Path(__file__).resolve().parents[2] / "predict.py"
MOST = 5  # runs that are averaged unasked, the best of one network
SHARE = 0.05  # of a search's time: a soup that takes more is not tried
START_S = 12.0  # for torch, the network and the data
EPOCHS = 6.0  # what choosing among five runs costs: a dozen passes over the rows without a gradient


@dataclass(frozen=True)
class Candidate:
    """A run with pretrained weights: what it shares with others, its score, seconds an epoch."""

    run: Path
    network: str
    score: float
    epoch_s: float


class Kitchen:
    """Runs that may share a start; each is read once, and again where it has changed."""

    def __init__(self) -> None:
        self._read: dict[Path, tuple[object, Candidate | None]] = {}

    def candidate(self, run: Path) -> Candidate | None:
        """Return what is to be known of a run; None where it cannot be in a soup."""
        now = stamp(run / "result.json"), stamp(run / "best.pt")
        if run not in self._read or self._read[run][0] != now:
            self._read[run] = now, _candidate(run)
        return self._read[run][1]

    def choose(self, runs: Sequence[Path]) -> list[Candidate]:
        """Return the best runs of one network that have pretrained weights; none or two at least.

        Of several networks it is the one with the best run among those that have two.
        """
        groups: dict[str, list[Candidate]] = {}
        for found in map(self.candidate, runs):
            if found is not None:
                groups.setdefault(found.network, []).append(found)
        several = [group for group in groups.values() if len(group) > 1]
        if not several:
            return []
        best = max(several, key=lambda group: max(each.score for each in group))
        return sorted(best, key=lambda each: -each.score)[:MOST]


def seconds_for(chosen: Sequence[Candidate]) -> float:
    """Estimate how long averaging takes."""
    if not chosen:
        return 0.0
    return START_S + EPOCHS * max(each.epoch_s for each in chosen) * len(chosen) / MOST


def _candidate(run: Path) -> Candidate | None:
    try:
        result, values = read_result(run), read_config(run)
        if not (result.get("pretrained") and (run / "best.pt").is_file()):
            return None
        facts = [values["model"], values["model_args"], result["image_size"]]
        sign = -1.0 if result.get("mode") == "min" else 1.0
        times = [float(row["seconds"]) for row in read_rows(run / "history.csv")]
        score = sign * float(result["score"])
        network = json.dumps(facts, sort_keys=True)
        return Candidate(run, network, score, sum(times) / len(times))
    except (UserError, OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def make_soups(
    runs: Sequence[Path],
    out: Path,
    *,
    metric: str,
    seed: int = 0,
    data_dir: str | None = None,
    limit: float | None = None,
) -> list[Path]:
    """Average the weights of runs into folders below `out`; return those of the soups that gained.

    What fails, or takes longer than `limit` seconds, is a `UserError`.
    """
    command = [sys.executable, str(SCRIPT), "--soup", *map(str, runs), "--out", str(out)]
    command += ["--metric", metric, "--seed", str(seed)]
    command += ["--data_dir", data_dir] if data_dir else []
    sys.stdout.flush()
    try:
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise UserError(f"soup: took longer than {limit:.0f} s; the vote goes on without") from None
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise UserError(why.removeprefix("error: "))
    return sorted(folder for folder in out.glob("soup-*") if folder.is_dir())


def ballots_of(soups: Sequence[Path], *, tested: bool) -> list[Path]:
    """Return what soups vote with, of test rows or of validation rows as the others do."""
    return [
        folder.with_name(f"{folder.name}.csv") if tested else folder / VALIDATION
        for folder in soups
    ]
