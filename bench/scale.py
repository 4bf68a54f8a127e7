"""Cost as work grows: rows of a data set, trials in `outputs/`. Linear growth is the claim.

    python bench/scale.py [--full]

Each size is measured in a process of its own: seconds of processors, which do not grow where others
use the machine too, and what its memory grew by at its peak. A row stands beside the size before
it, whose seconds and megabytes are multiplied by what it is larger by: a ratio of 1 and more is
linear or better. Small sizes are mostly what is fixed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # bench/report.py comes before report.py

ROWS, MANY_ROWS = (1_000, 20_000), (1_000, 10_000, 100_000, 1_000_000)
IMAGES, MANY_IMAGES = (250, 1_000), (1_000, 4_000, 16_000)
TRIALS, MANY_TRIALS = (50, 400), (10, 100, 1_000, 10_000)
FEW = 100  # rows that a trial of the vote predicts
Task = Callable[[Path, int], Callable[[], Any]]  # makes what it works on, returns the work


def listing(folder: Path, size: int) -> Callable[[], Any]:
    """List class folders of empty files, in order, checked and fingerprinted."""
    from ballot.data.audit import check_table
    from dataset import class_folders

    for number in range(10):
        (folder / f"class{number}").mkdir()
    for number in range(size):
        (folder / f"class{number % 10}" / f"{number:07d}.jpg").touch()

    def work() -> None:
        table = class_folders(folder).in_order()
        check_table(table)
        assert len(table.fingerprint()) and len(table) == size

    return work


def splitting(_folder: Path, size: int) -> Callable[[], Any]:
    """Split rows of five to a group into folds, and single rows by their labels."""
    import numpy as np

    from ballot.data.splits import natural_groups, split_folds, split_single

    labels = np.random.default_rng(0).integers(0, 10, size)
    people = [f"p{row // 5}" for row in range(size)]

    def work() -> None:
        groups = natural_groups(size, people)
        split_folds(labels, groups, 5, 0, by_group=True)
        split_single(labels, natural_groups(size), 0.2, 0, by_group=False)

    return work


def caching(folder: Path, size: int) -> Callable[[], Any]:
    """Build the cache of photos of 384x512 at 64 pixels."""
    from data import make_images

    from ballot.data.image_cache import prepare
    from ballot.data.images import Geometry
    from dataset import class_folders

    make_images(folder / "images", 50)
    photos = sorted((folder / "images").rglob("*.jpg"))
    for number in range(50, size):
        photo = photos[number % 50]
        photo.with_name(f"{number:05d}.jpg").hardlink_to(photo)

    def work() -> None:
        prepare(
            class_folders(folder / "images").source,
            Geometry(64),
            label="photos",
            cache=str(folder / "cache"),
            limit_gib=16,
            workers=2,
        )

    return work


def matching(_folder: Path, size: int) -> Callable[[], Any]:
    """Look for near duplicates among thumbnails with structure as photos have, 1 in 50 a mirror."""
    import numpy as np

    from ballot.data.near_duplicates import SIDE, find_families

    rng = np.random.default_rng(0)
    axis = np.fft.fftfreq(SIDE)
    falling = 1 / np.maximum(np.hypot(axis[:, None], axis), 1 / SIDE)
    thumbs = np.empty((size, SIDE, SIDE), dtype=np.uint8)
    for row in range(size):
        image = np.fft.ifft2(np.fft.fft2(rng.normal(size=(SIDE, SIDE))) * falling).real
        thumbs[row] = np.clip(128 + 50 * image / image.std(), 0, 255)
    copies = len(thumbs[1::50])
    thumbs[1::50] = thumbs[::50][:copies, :, ::-1]
    digests = [b"%d" % row for row in range(size)]

    def work() -> None:
        assert np.count_nonzero(find_families(thumbs, digests) >= 0) == 2 * copies

    return work


def records_of(size: int) -> list[Any]:
    """Return what NNI's database says of the runs of `make_runs`."""
    from ballot.runs.trials import TrialRecord

    return [
        TrialRecord(f"t{k:05d}", k, "succeeded", final=0.5, parameters={"lr": 0.1})
        for k in range(size)
    ]


def tabulating(folder: Path, size: int) -> Callable[[], Any]:
    """Read the results of a search's trials, and write its table."""
    from ballot.runs.results import Results
    from report import SEARCH, make_runs

    make_runs(folder / "outputs", size)
    results = Results(SEARCH, folder / "outputs", maximize=True, words=lambda _: "")
    return lambda: results.update(records_of(size))


def make_database(folder: Path, size: int, epochs: int = 30) -> None:
    """Write the database of NNI's that belongs to the runs of `make_runs`."""
    (folder / "db").mkdir(parents=True)
    with sqlite3.connect(folder / "db" / "nni.sqlite") as db:
        db.execute(
            "CREATE TABLE TrialJobEvent (timestamp, trialJobId, event, data, logPath, "
            "sequenceId, message, envId)"
        )
        db.execute(
            "CREATE TABLE MetricData (timestamp, trialJobId, parameterId, type, sequence, data)"
        )
        for number in range(size):
            trial, began = f"t{number:05d}", 10**12 + 1000 * number
            given = json.dumps({"parameter_id": number, "parameters": {"lr": number}})
            for event, data in (("WAITING", given), ("RUNNING", None), ("SUCCEEDED", None)):
                db.execute(
                    "INSERT INTO TrialJobEvent VALUES (?,?,?,?,'',?,'','')",
                    (began, trial, event, data, number),
                )
            for epoch in range(epochs):
                db.execute(
                    "INSERT INTO MetricData VALUES (?,?,?,'PERIODICAL',?,?)",
                    (began, trial, str(number), epoch, '"0.5"'),
                )


def watching(folder: Path, size: int) -> Callable[[], Any]:
    """Watch a search for one round, in which one more trial has ended: tables, time and disk."""
    from ballot.engines.interface import Plan
    from ballot.engines.nni.experiment import NniSearch
    from ballot.runs.results import Results
    from ballot.search.screen import Pace, Screen
    from ballot.search.supervise import Chores
    from ballot.search.time_budget import Budget
    from report import SEARCH, make_runs

    make_runs(folder / "outputs", size)
    make_database(folder / "nni", size)
    search, outputs = NniSearch(SEARCH, folder / "nni"), folder / "outputs"
    search.write_note(keep_checkpoints=3)
    plan = Plan(None, "python train.py", folder, outputs, size + 1, 1e9, 1, maximize=True)
    budget = Budget(1e9, time.time())
    results = Results(SEARCH, outputs, maximize=True, words=search.last_words)
    screen = Screen(plan, budget)
    chores = Chores(search, plan, results, budget, screen)
    chores._page = Pace(float("inf"))  # the report is a task of its own

    def one_round() -> None:
        trials, now = search.trials(), time.time() + 1e6  # whatever is due is due
        chores.do(trials[:-1] if first else trials, now)
        screen.show(trials, results, now)

    first = True
    one_round()
    first = False
    return one_round


def suggesting(folder: Path, size: int) -> Callable[[], Any]:
    """Let the tuner suggest a trial and take its result, where it knows of so many."""
    import nni

    from ballot.engines.nni.tuner import Tuner

    os.chdir(folder)  # where it writes down what it knows
    tuner = Tuner(seed=0)
    tuner.get_checkpoint_path = lambda: str(folder)  # type: ignore[method-assign]
    numbers = {f"p{k}": {"_type": "uniform", "_value": [0, 1]} for k in range(6)}
    tuner.update_search_space(numbers)
    tuner.import_data(
        [
            {
                "parameter": {key: (k * (n + 2) * 0.618) % 1 for n, key in enumerate(numbers)},
                "value": k % 97,
            }
            for k in range(size)
        ]
    )

    def work() -> None:
        parameters = tuner.generate_parameters(size)
        tuner.receive_trial_result(size, parameters, 0.5)
        tuner.trial_end(size, True)
        assert nni.dump(parameters)

    return work


def reporting(folder: Path, size: int) -> Callable[[], Any]:
    """Make the report of a search, and write its page."""
    from ballot.report.page import make_report, render
    from report import make_runs

    make_runs(folder / "outputs", size)
    return lambda: render(make_report(folder / "outputs"), folder / "report.html")


def voting(folder: Path, size: int, select: str | None = None) -> Callable[[], Any]:
    """Average the test predictions of all trials, or choose among them first."""
    import numpy as np

    from ballot.vote.ballots import write_ballot
    from ballot.vote.options import VoteOptions
    from ballot.vote.run import run_vote

    rng = np.random.default_rng(0)
    ids, names = [f"img{row}.jpg" for row in range(FEW)], [str(k) for k in range(10)]
    labels = [names[row % 10] for row in range(FEW)]
    for number in range(size):
        probs = rng.dirichlet(np.full(10, 0.3), FEW)
        write_ballot(folder / "outputs" / f"run{number:05d}.csv", ids, names, probs)
        if select:
            probs = rng.dirichlet(np.full(10, 0.3), FEW) + 0.2 * np.eye(10)[np.arange(FEW) % 10]
            probs /= probs.sum(1, keepdims=True)
            own = folder / "outputs" / f"run{number:05d}" / "val.csv"
            write_ballot(own, ids, names, probs, labels)
    paths = sorted((folder / "outputs").glob("*.csv"))
    return lambda: run_vote(paths, VoteOptions(out_dir=str(folder / "vote"), select=select))


def choosing(folder: Path, size: int) -> Callable[[], Any]:
    """Choose greedily among all trials, and vote."""
    return voting(folder, size, "greedy")


class Nodes:
    """Fifty nodes of a Ray cluster that end each trial, of three epochs, at the next look."""

    def __init__(self) -> None:
        self._jobs: list[dict[str, Any]] = []

    def submit(self, job: dict[str, Any]) -> None:
        """Take a trial."""
        self._jobs.append(job)

    def wait(self, patience: float) -> tuple[list[dict[str, Any]], list[Any]]:  # noqa: ARG002
        """Return what all trials have said, and that they have ended."""
        from ballot.engines.ray.cluster import Ended

        news, ends, jobs = [], [], self._jobs
        reports = [*({"score": 0.1 * k} for k in range(3)), {"final": 0.3, "failed": False}]
        for job in jobs:
            began = {"began": True, "machine": "node"}
            said = {"trial": job["id"], "attempt": job["attempt"]}
            news += [said | each for each in (began, *reports)]
            ends.append(Ended(**said, outcome={"exit": 0, "reports": reports, "words": ""}))
        self._jobs = []
        return news, ends

    def order(self, trial: str, word: str) -> None:
        """End nothing early."""

    def withdraw(self, trial: str) -> None:
        """Take nothing back."""

    def nodes(self) -> list[dict[str, Any]]:
        """Return all of them."""
        return [{"id": f"n{k}", "name": f"n{k}", "alive": True, "has": {}} for k in range(50)]


def driving(folder: Path, size: int) -> Callable[[], Any]:
    """Drive a search on 50 nodes of Ray that take no time, without a tuner, and read its record."""
    from ballot.engines.ray.driver import Driver
    from ballot.engines.ray.journal import FILE, Journal

    spec = {
        "search": "s",
        "command": "python3 train.py",
        "max_trials": size,
        "concurrency": 50,
        "searched": None,
        "resources": {"cpus": 1.0, "gpus": 0.0, "memory": None},
        "assessor": None,
        "posted": [{"lr": number} for number in range(size)],
    }
    driver = Driver(folder, spec, Nodes())

    def work() -> None:
        while driver.state != "done":
            driver.step()
        assert len(Journal(folder / FILE).read()) == size

    return work


# What it is, of what, quick sizes, full sizes
TASKS: dict[str, tuple[Task, str, tuple[int, ...], tuple[int, ...]]] = {
    "listing": (listing, "rows", ROWS, MANY_ROWS),
    "splitting": (splitting, "rows", ROWS, MANY_ROWS),
    "caching": (caching, "photos", IMAGES, MANY_IMAGES),
    "matching": (matching, "images", (1_000, 20_000), (1_000, 5_000, 20_000, 50_000)),
    "suggesting": (suggesting, "trials", TRIALS, MANY_TRIALS),
    "watching": (watching, "trials", TRIALS, MANY_TRIALS),
    "driving": (driving, "trials", TRIALS, MANY_TRIALS),
    "tabulating": (tabulating, "trials", TRIALS, MANY_TRIALS),
    "reporting": (reporting, "trials", TRIALS, MANY_TRIALS),
    "voting": (voting, "trials", TRIALS, MANY_TRIALS),
    "choosing": (choosing, "trials", (10, 100), MANY_TRIALS[:3]),
}


def measure_here(name: str, size: int) -> None:
    """Do one task in this process, and print its seconds and the growth of its peak in MiB."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as small:
        TASKS[name][0](Path(small), 100 if TASKS[name][1] == "rows" else 10)()  # imports, once
        work = TASKS[name][0](Path(folder), size)
        os.sync()  # or the first file that is written for good waits for all that was made above
        before = _status("VmRSS")
        began = _processors()
        work()
        seconds = _processors() - began
        print(json.dumps([seconds, max(0.0, _status("VmHWM") - before)]))


def _processors() -> float:
    """Seconds of processors that this process and its children have taken."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _status(key: str) -> float:
    """A line of this process's status on Linux, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def cost(name: str, size: int) -> tuple[float, float]:
    """Return seconds and MiB of one task at one size."""
    done = subprocess.run(
        [sys.executable, __file__, "--task", name, str(size)],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds, memory = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory


def measure(full: bool, names: list[str] | None = None) -> list[dict[str, Any]]:
    """Return a row for each size of each task, beside the size before it."""
    return list(_rows(full, names or list(TASKS)))


def _rows(full: bool, names: list[str]) -> Iterator[dict[str, Any]]:
    if not Path("/proc/self/status").exists():
        yield {"what": "cost as work grows", "skipped": "needs Linux's /proc"}
        return
    for name in names:
        _, unit, few, many = TASKS[name]
        before: tuple[int, float, float] | None = None
        for size in many if full else few:
            seconds, memory = cost(name, size)
            row: dict[str, Any] = {
                "what": f"{name}: {size:,} {unit}",
                "other": None,
                "ours": f"{seconds:.2f} s, {memory:.0f} MB",
                "ratio": None,
                "spread": None,
            }
            if before is not None:
                times = size // before[0]
                row["other"] = f"{before[1] * times:.2f} s, {before[2] * times:.0f} MB"
                row["ratio"] = before[1] * times / seconds
                row["spread"] = f"memory {(before[2] * times + 1) / (memory + 1):.2f}"
            yield row
            before = size, seconds, memory


def main() -> int:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(TASKS)} (default: all)")
    parser.add_argument("--full", action="store_true", help="up to a million rows, 10,000 trials")
    parser.add_argument("--task", nargs=2, metavar=("NAME", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        measure_here(args.task[0], int(args.task[1]))
        return 0
    from run import line_of

    print(f"{'what':<76} {'it':>14} {'as before':>14} {'ratio':>7}")
    for row in _rows(args.full, args.names or list(TASKS)):
        print(line_of(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
