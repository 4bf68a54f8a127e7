"""Speed and memory of the vote, against doing the same by hand with pandas and numpy.

    python bench/vote.py [--full]

Both sides run in turn, in the same minutes; a ratio is the median over rounds of theirs to ours.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ballot.vote import combine  # noqa: E402 - the repository is no installed package
from ballot.vote.ballots import write_ballot  # noqa: E402

CLASSES = 18

OURS = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
import numpy as np
from ballot.vote.ballots import read_ballot
from ballot.vote.members import name_members
from ballot.vote.options import VoteOptions
from ballot.vote.run import TestFiles
from ballot.vote.combine import Recipe; from ballot.vote.combine import combine
def mean(files):
    members = name_members([Path(f) for f in files], None)
    first = read_ballot(files[0])
    unknown = np.full(len(first.ids), -1)
    recipe = Recipe("mean", [1.0] * len(files))
    return combine(recipe, TestFiles(members, first, unknown, VoteOptions()))
"""

THEIRS = """
import sys
import numpy as np
import pandas as pd
def mean(files):
    frames = [pd.read_csv(f) for f in files]
    return np.mean([f.iloc[:, 1:].to_numpy() for f in frames], axis=0)
"""

WRITTEN = """
files = sys.argv[1:]
frame = pd.read_csv(files[0])
frame.iloc[:, 1:] = mean(files)
frame.to_csv({out!r}, index=False)
"""

# Linux's own count: `ru_maxrss` would hand the parent's size on to a child.
PEAK = """
mean(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def make_files(folder: Path, files: int, rows: int) -> list[str]:
    """Write prediction CSVs of random members."""
    random = np.random.default_rng(0)
    ids = [f"img{row:07d}.jpg" for row in range(rows)]
    for number in range(files):
        probs = random.dirichlet(np.full(CLASSES, 0.3), rows)
        write_ballot(folder / f"run{number:02d}.csv", ids, [str(c) for c in range(CLASSES)], probs)
    return [str(path) for path in sorted(folder.glob("*.csv"))]


def compare(
    what: str, ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> dict[str, Any]:
    """Call both in turn; each returns what it used (seconds, MB)."""
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    ratios = [other / own for own, other in pairs]
    return {
        "what": what,
        "ours": statistics.median(own for own, _ in pairs),
        "other": statistics.median(other for _, other in pairs),
        "ratio": statistics.median(ratios),
        "spread": (min(ratios), max(ratios)),
    }


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    """Return a function that measures `call` in seconds."""

    def run() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return run


def python(code: str, args: list[str]) -> str:
    """Run `code` in an interpreter of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args], check=True, capture_output=True, text=True
    )
    return done.stdout


def measure_reading(folder: Path, full: bool, rounds: int) -> list[dict[str, Any]]:
    """Read and average many large files: seconds, and the peak of memory."""
    files, rows = (20, 100_000) if full else (6, 20_000)
    paths = make_files(folder, files, rows)
    own, other = {}, {}
    exec(OURS.format(root=str(ROOT)), own)
    exec(THEIRS, other)
    assert np.allclose(own["mean"](paths), other["mean"](paths), atol=1e-12)
    what = f"read and average {files} CSVs of {rows:,} rows, {CLASSES} classes"
    ours, theirs = (timed(lambda side=side: side["mean"](paths)) for side in (own, other))
    peaks = [
        lambda code=code: int(python(code + PEAK, paths)) / 1024
        for code in (OURS.format(root=str(ROOT)), THEIRS)
    ]
    return [
        compare(f"{what} (s)", ours, theirs, rounds),
        compare("the same, peak memory of the process (MB)", *peaks, rounds=1),
    ]


def measure_command(folder: Path, rounds: int) -> dict[str, Any]:
    """Run the whole command on the competition's size against a script of pandas."""
    paths = make_files(folder, 5, 12_600)
    ours = [sys.executable, str(ROOT / "ensemble.py"), *paths, "--out_dir", str(folder / "vote")]
    script = THEIRS + WRITTEN.format(out=str(folder / "theirs.csv.txt"))
    return compare(
        "the command on 5 CSVs of 12,600 rows, start-up and writing included (s)",
        timed(lambda: subprocess.run(ours, check=True, capture_output=True)),
        timed(lambda: python(script, paths)),
        rounds,
    )


def make_members(members: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Make members `[M, N, C]` that are right on about four rows of ten, and the truth."""
    random = np.random.default_rng(0)
    targets = random.integers(0, CLASSES, rows)
    shared = random.normal(size=(rows, CLASSES))
    shared[np.arange(rows), targets] += 1.8
    values = np.empty((members, rows, CLASSES))
    for number in range(members):
        noise = random.normal(size=shared.shape) * random.uniform(0.5, 1.2)
        values[number] = combine.softmax(2 * (shared + noise))
    return values, targets


def naive_greedy(values: np.ndarray, targets: np.ndarray, steps: int) -> list[float]:
    """Choose as `vote.greedy` does, averaging anew for each candidate."""

    def accuracy(chosen: list[int]) -> float:
        return float((values[chosen].mean(axis=0).argmax(axis=1) == targets).mean())

    order = sorted(range(len(values)), key=lambda i: -accuracy([i]))
    starts = [accuracy(order[: size + 1]) for size in range(len(order))]
    chosen = order[: starts.index(max(starts)) + 1]
    best, kept = max(starts), list(chosen)
    for _ in range(steps):
        scores = [accuracy([*chosen, i]) for i in order]
        chosen.append(order[scores.index(max(scores))])
        if max(scores) > best:
            best, kept = max(scores), list(chosen)
    return np.bincount(kept, minlength=len(values)).tolist()


def measure_greedy(full: bool, rounds: int) -> list[dict[str, Any]]:
    """Choose greedily; the naive way is measured over fewer steps, for it takes minutes."""
    members, rows, steps = (50, 20_000, 10) if full else (12, 3_000, 3)
    values, targets = make_members(members, rows)
    same = naive_greedy(values, targets, steps) == combine.greedy(values, targets, steps=steps)
    assert same, "the two ways choose differently"
    what = f"greedy, {members} members, {rows:,} rows, {CLASSES} classes"
    short = compare(
        f"{what}, {steps} steps, the same choice (s)",
        timed(lambda: combine.greedy(values, targets, steps=steps)),
        timed(lambda: naive_greedy(values, targets, steps)),
        1 if full else rounds,
    )
    whole = statistics.median(
        timed(lambda: combine.greedy(values, targets))() for _ in range(rounds)
    )
    alone = {"what": f"{what}, {combine.STEPS} steps (s)", "ours": whole}
    return [short, {**alone, "other": None, "ratio": None, "spread": None}]


def measure(full: bool) -> list[dict[str, Any]]:
    """Measure everything; `ratio` above 1 says that ours takes less."""
    rounds = 5 if full else 3
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        rows = measure_reading(Path(one), full, rounds)
        rows.append(measure_command(Path(two), rounds))
    return rows + measure_greedy(full, rounds)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the sizes that the claims are about")
    print(f"{'':<78} {'ours':>8} {'other':>8} {'ratio':>6}  range")
    for row in measure(parser.parse_args().full):
        line = f"{row['what']:<78} {row['ours']:>8.3f}"
        if row["ratio"] is not None:
            low, high = row["spread"]
            line += f" {row['other']:>8.3f} {row['ratio']:>6.2f}  {low:.2f}..{high:.2f}"
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
