"""From Python: `search("photos", max_duration="1h")`, and `predict` with its answer.

Both run the scripts in processes of their own, and leave the same files as the command line does.
No torch is loaded into the caller's process.
"""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ballot.config.trial_command import flag
from ballot.errors import UserError
from ballot.report.answer import estimate_of_vote, sentence_of_vote
from ballot.runs.files import json_or_empty, read_json
from ballot.runs.folder import run_of

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
INTERRUPTED = (130, -signal.SIGINT)
SKIPPED = "skipped: "  # how predict.py begins a line about an image that cannot be read
KEPT = 10_000  # lines of what a script says, to find its error among


@dataclass(frozen=True)
class Predictions:
    """What an answer says of images: a row for each image that could be read, by its path."""

    classes: pd.Series  # the likeliest class of each image
    probabilities: pd.DataFrame  # a column for each class
    unreadable: list[str] = field(default_factory=list)  # a path and the reason each


@dataclass(frozen=True)
class Answer:
    """What a search found; the files are those that the command line leaves."""

    folder: Path  # of the vote, with ensemble.json: what predict.py takes
    sentence: str
    classes: list[str]
    metric: str | None  # of the estimate; None where no labelled rows tell
    accuracy: float | None  # or the macro F1, as `metric` says
    error: float | None  # one standard error
    rows: int  # that the estimate is of
    probabilities: pd.DataFrame | None  # of the test images, where the data have any
    submission: Path | None
    report: Path | None
    weights: list[Path]  # of the trials that vote

    def __str__(self) -> str:
        return self.sentence

    def predict(self, paths: str | Path | Iterable[str | Path], **options: Any) -> Predictions:
        """Predict images, or folders of images; `options` are those of predict.py."""
        return predict(self.folder, paths, **options)


def search(
    data_dir: str | Path,
    *,
    max_duration: str | int | None = None,
    preset: str | None = None,
    vote_dir: str | Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> Answer:
    """Search for the best classifier of a folder of labelled images, and return its answer.

    `max_duration` is a time such as "1h", or seconds. `options` are those of search.py and of
    train.py, as fixed values of all trials. Files are left in the current folder. What is wrong
    is raised as `ballot.errors.UserError`, in one line.
    """
    folder = free_folder(Path("ensemble")) if vote_dir is None else Path(vote_dir)
    before = record_of(folder)
    given = {"max_duration": max_duration, "preset": preset, "vote_dir": folder, **options}
    status, said = run_script("search.py", ["--data_dir", str(data_dir), *flags(given)], quiet)
    if status in INTERRUPTED:
        raise KeyboardInterrupt
    if record_of(folder) == before:
        raise UserError(error_in(said, f"search.py: ended with status {status}, without an answer"))
    return load_answer(folder)


def load_answer(folder: str | Path) -> Answer:
    """Read the answer of an earlier search from the folder of its vote."""
    folder = Path(folder)
    record = read_json(folder / "ensemble.json")
    if not record.get("members"):
        raise UserError(f"{folder}: holds no vote (ensemble.json); run a search first")
    estimate = estimate_of_vote(record)
    files = [folder / f for m in record["members"] if m.get("weight") for f in m.get("files") or []]
    soft, submission = folder / "soft.csv", folder / "submission.csv"
    pages = (folder / "report.html", folder.absolute().parent / "report.html")
    return Answer(
        folder=folder,
        sentence=sentence_of_vote(record),
        classes=[str(name) for name in record.get("classes") or []],
        metric=None if estimate is None else estimate.metric,
        accuracy=None if estimate is None else estimate.value,
        error=None if estimate is None else estimate.error,
        rows=0 if estimate is None else estimate.rows,
        probabilities=read_probabilities(soft) if soft.is_file() else None,
        submission=submission if submission.is_file() else None,
        report=next((page for page in pages if page.is_file()), None),
        weights=[path for file in files for path in sorted(run_of(file).rglob("best.pt"))],
    )


def predict(
    model: str | Path, paths: str | Path | Iterable[str | Path], **options: Any
) -> Predictions:
    """Predict images with a vote's folder, a run's folder or its best.pt."""
    import pandas as pd

    wanted = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    if not wanted:
        return Predictions(pd.Series(dtype=object), pd.DataFrame())
    with tempfile.TemporaryDirectory() as place:
        out = Path(place, "predictions.csv")
        inputs = [path for path in wanted if path.is_dir() or path.suffix.lower() == ".csv"]
        images = [path for path in wanted if path not in inputs]
        if images:  # in a file: a command line holds a few thousand paths at most
            inputs.append(write_list(Path(place, "images.csv"), images))
        words = [str(model), *map(str, inputs), *flags({"out": out, **options})]
        status, said = run_script("predict.py", words, quiet=True)
        if status in INTERRUPTED:
            raise KeyboardInterrupt
        if not out.is_file():
            raise UserError(error_in(said, f"predict.py: ended with status {status}"))
        probabilities = read_probabilities(out)
    skipped = [line.removeprefix(SKIPPED) for line in said if line.startswith(SKIPPED)]
    return Predictions(probabilities.idxmax(axis=1), probabilities, skipped)


def free_folder(wanted: Path) -> Path:
    """Return a folder's name, with a number where there is a vote in it already."""
    folder, number = wanted, 1
    while (folder / "ensemble.json").exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def record_of(folder: Path) -> Mapping[str, Any]:
    """Return the record of a vote together with when it was written."""
    path = folder / "ensemble.json"
    written = path.stat().st_mtime_ns if path.exists() else None
    return {"written": written, **json_or_empty(path)}


def flags(options: Mapping[str, Any]) -> list[str]:
    """Spell options as flags of a command line; None leaves one to the script."""
    words: list[str] = []
    for name, value in options.items():
        if value is None:
            continue
        if isinstance(value, Path):
            value = str(value)
        words += flag(name, list(value) if isinstance(value, tuple) else value)
    return words


def run_script(name: str, words: list[str], quiet: bool) -> tuple[int, list[str]]:
    """Run one of our scripts to its end; return its status and the lines of its standard error.

    Ctrl-C is handed on once, so that a search can write what it has. The script has a session of
    its own: from the terminal it would get a second one, which ends it at once.
    """
    process = subprocess.Popen(
        [sys.executable, str(ROOT / name), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None
    errors: list[str] = []
    out, err = (None, None) if quiet else (sys.stdout, sys.stderr)
    threads = [
        threading.Thread(target=pass_on, args=(process.stdout, out, [])),
        threading.Thread(target=pass_on, args=(process.stderr, err, errors)),
    ]
    for thread in threads:
        thread.start()
    try:
        process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
    finally:
        if process.poll() is None:  # a second Ctrl-C
            process.kill()
        for thread in threads:
            thread.join()
    return process.returncode, [line.rstrip("\n") for line in errors if line.strip()]


def error_in(said: list[str], otherwise: str) -> str:
    """Return the last error among the lines that a script said, or else its last line."""
    told = [line for line in said if line.startswith("error: ")] or said
    return told[-1].removeprefix("error: ") if told else otherwise


def pass_on(pipe: IO[str], to: IO[str] | None, kept: list[str]) -> None:
    """Print what a process says, line by line, where a notebook shows it; keep its last lines."""
    with pipe:
        for line in pipe:
            kept.append(line)
            del kept[:-KEPT]
            if to is not None:
                print(line, end="", file=to, flush=True)


def write_list(path: Path, images: list[Path]) -> Path:
    """Write a CSV that names images, each by its path as it was given."""
    for image in images:
        if not image.exists():
            raise UserError(f"{image}: is not there; give images, folders of them or a CSV")
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "path"))
        rows.writerows((str(image), str(image.absolute())) for image in images)
    return path


def read_probabilities(path: Path) -> pd.DataFrame:
    """Read a CSV of probabilities: a row for each image, by its id, and a column for each class."""
    import pandas as pd

    # An image may be called 007.jpg or NA.
    table = pd.read_csv(path, dtype={"id": str}, keep_default_na=False)
    return table.set_index("id")
