"""Trials an hour with 1, 2 and 4 at once on one machine, threads divided among them or not.

    python bench/concurrency.py [--full]

Each is a process of train.py on the digits, forked from a preloaded one as in a search; NNI is left
out. The other side is the same trials one after the other with all threads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ballot.cpus import count_cores, threads_each  # noqa: E402 - no installed package

TRIALS = 4  # of each round


def trials_an_hour(out: Path, at_once: int, threads: int, epochs: int) -> float:
    """Run trials, so many at once, and return their rate."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "BALLOT_PRELOAD": "60"}
    words = ["-m", "ballot.preload", "train.py", "--no_tensorboard", "--epochs", str(epochs)]

    def begin(number: int) -> subprocess.Popen:
        name = ["--out_dir", str(out), "--run_name", f"{time.time_ns()}-{number}"]
        return subprocess.Popen(
            [sys.executable, *words, *name], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
        )

    began, running, begun = time.perf_counter(), [], 0
    while begun < TRIALS or running:
        while begun < TRIALS and len(running) < at_once:
            running.append(begin(begun))
            begun += 1
        for process in [each for each in running if each.poll() is not None]:
            if process.returncode:
                raise RuntimeError(f"a trial ended with {process.returncode}")
            running.remove(process)
        time.sleep(0.01)
    return TRIALS * 3600 / (time.perf_counter() - began)


def measure(full: bool) -> list[dict[str, Any]]:
    """Measure each way in turn; `ratio` above 1 says that it does more than one after the other."""
    cores, epochs, rounds = count_cores(), 20 if full else 4, 3 if full else 2
    ways = [(1, cores), (2, threads_each(2)), (2, cores), (4, threads_each(4))]
    rates: dict[tuple[int, int], list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        trials_an_hour(Path(folder), 1, 1, 1)  # preloads, and fills the cache
        for _ in range(rounds):
            for at_once, threads in rates:
                rates[at_once, threads].append(
                    trials_an_hour(Path(folder), at_once, threads, epochs)
                )
    alone = rates[1, cores]
    return [row(way, found, alone, cores, epochs) for way, found in rates.items() if found != alone]


def row(
    way: tuple[int, int], found: list[float], alone: list[float], cores: int, epochs: int
) -> dict[str, Any]:
    """Compare a way of running trials with one after the other on all cores."""
    at_once, threads = way
    ratios = [own / other for own, other in zip(found, alone)]
    threaded = f"{threads} thread{'s' * (threads > 1)}"
    what = f"trials an hour, {at_once} at once, {threaded} each, {cores} cores, {epochs} epochs"
    return {
        "what": what,
        "ours": statistics.median(found),
        "other": statistics.median(alone),
        "ratio": statistics.median(ratios),
        "spread": (min(ratios), max(ratios)),
    }


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="longer trials, more rounds")
    print(f"{'':<68} {'ours':>7} {'other':>7} {'ratio':>6}  range")
    for each in measure(parser.parse_args().full):
        low, high = each["spread"]
        print(
            f"{each['what']:<68} {each['ours']:>7.0f} {each['other']:>7.0f} "
            f"{each['ratio']:>6.2f}  {low:.2f}..{high:.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
