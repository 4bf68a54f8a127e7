"""What a search left on disk, as plain rows: the trials of a report and how they went."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ballot.errors import UserError, suggest
from ballot.runs.files import json_or_empty, read_rows
from ballot.runs.table import FACTS, read_table, spread
from ballot.wording import compact, natural

# What differs between trials and is no hyperparameter.
NO_HYPERPARAMETER = (
    "run_name",
    "out_dir",
    "model_dir",
    "resume",
    "device",
    "workers",
    "cache",
    "cache_limit",
    "tensorboard",
    "trials_per_gpu",
    "tracker",
    "log_every",
    "log_config",
    "save_period",
)


@dataclass
class Trial:
    """One run as its folder tells it; `curve` has a dictionary of numbers an epoch."""

    name: str
    folder: Path
    status: str
    reason: str
    score: float | None
    result: dict[str, Any] = field(repr=False, default_factory=dict)
    values: dict[str, Any] = field(repr=False, default_factory=dict)
    tuned: set[str] = field(repr=False, default_factory=set)
    given: set[str] = field(repr=False, default_factory=set)  # by a person, a file or the tuner
    curve: list[dict[str, float]] = field(repr=False, default_factory=list)
    label: str = ""  # the name without what all names begin with
    number: int = 0  # in the order of their start, from 1
    rank: int = 0  # by score, from 1; 0 without one

    @property
    def epochs(self) -> int:
        return len(self.curve) or int(finite(self.result.get("epochs")) or 0)

    @property
    def planned(self) -> int:
        return max(self.epochs, int(finite(self.result.get("epochs_planned")) or 0))

    @property
    def seconds(self) -> float | None:
        return finite(self.result.get("seconds"))

    @property
    def started(self) -> float | None:
        """Seconds since 1970."""
        return _time(self.result.get("started"))

    @property
    def ended(self) -> float | None:
        """When its score was known, in seconds since 1970; of a running one, when it last wrote."""
        end = _time(self.result.get("ended"))
        if end is None and self.started is not None and self.seconds is not None:
            return self.started + self.seconds
        return end


def evenly(rows: Sequence[Any], most: int) -> list[Any]:
    """Return all rows, or `most` of them at even distances, the first one included."""
    if len(rows) <= most:
        return list(rows)
    return [rows[k * len(rows) // most] for k in range(most)]


def best_and_others(ranked: Sequence[Any], most: int) -> list[Any]:
    """Return all, or `most`: as many of the best, which come first, as evenly of the others."""
    if len(ranked) <= most:
        return list(ranked)
    half = most // 2
    return [*ranked[:half], *evenly(ranked[half:], most - half)]


@dataclass(frozen=True)
class Found:
    """The trials that one report compares, and what was left out of it."""

    outputs: Path
    trials: list[Trial]
    monitor: str
    maximize: bool
    data: str
    params: list[str]
    notes: list[str]

    @property
    def scored(self) -> list[Trial]:
        """Trials with a measured score, the best first."""
        return sorted((t for t in self.trials if t.rank), key=lambda t: t.rank)


def find_trials(outputs: Path, search: str | None = None, *, only: str | None = None) -> Found:
    """Read the runs below `outputs`: `only` one, those of one `search`, or all on the same data.

    Scores of other data cannot be compared; the larger part is taken, and the rest named. No run
    at all is a `UserError`.
    """
    told = _told(outputs)
    folders = _folders(outputs)
    names = sorted({f.name for f in folders} | set(told), key=natural)
    names = names if only is None else [only]
    trials = [_trial(outputs / name, told.get(name)) for name in names]
    if search is not None:
        trials = [t for t in trials if t.name.startswith(f"{search}-")]
    if not trials:
        what = "no runs" if search is None else f"no runs of the search {search!r}"
        known = sorted({name.split("-")[0] for name in names})
        hint = suggest(search, known) if search else "; run train.py or search.py first"
        raise UserError(f"{outputs}: holds {what}{hint}")
    trials, notes = _comparable(trials)
    monitor = next((str(m) for t in trials if (m := t.result.get("monitor"))), "val_acc")
    maximize = not any(t.result.get("mode") == "min" for t in trials)
    _score_by_curves(trials, monitor, maximize)
    _number(trials, maximize)
    data = next((str(d) for t in trials if (d := t.result.get("data"))), "")
    return Found(outputs, trials, monitor, maximize, data, _hyperparameters(trials), notes)


def same_losses(trials: Iterable[Trial]) -> list[tuple[str, list[Trial]]]:
    """Part the trials with curves by what their loss is; the most trials first.

    A loss of another criterion, or of one with other arguments, is another quantity.
    """
    kinds: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.curve:
            kinds.setdefault(loss_of(trial), []).append(trial)
    return sorted(kinds.items(), key=lambda kind: -len(kind[1]))


def loss_of(trial: Trial) -> str:
    """Name the loss of a trial by the options that it depends on."""
    values = trial.values
    words = [str(values.get("criterion", "loss"))]
    for key in sorted(values):
        if key.startswith("criterion_args.") and values[key] not in (None, {}):
            words.append(f"{key.partition('.')[2]} {compact(values[key])}")
    if values.get("class_weights") not in (None, "none"):
        words.append(f"class weights {values['class_weights']}")
    if values.get("heads") not in (None, "none"):
        words.append(f"heads {values['heads']}")
        words += [f"{name} by thresholds" for name in values.get("ordinal") or ()]
        if values.get("head_weights") not in (None, "equal"):
            words.append(f"weights by {values['head_weights']}")
    return ", ".join(words)


def finite(value: Any) -> float | None:
    """Return a number as a float, and None for everything that is no finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def is_numeric(values: Sequence[Any]) -> bool:
    """Tell whether all values that are there are finite numbers."""
    there = [v for v in values if v is not None]
    numbers = (isinstance(v, (int, float)) and not isinstance(v, bool) for v in there)
    return bool(there) and all(numbers) and all(finite(v) is not None for v in there)


def spans_orders(values: Sequence[float]) -> bool:
    """Tell whether numbers are spread over orders of magnitude, so that logarithms show them."""
    ordered = sorted(values)
    low, high, middle = ordered[0], ordered[-1], ordered[len(ordered) // 2]
    return low > 0 and high / low > 8 and middle - low < 0.3 * (high - low)


def read_table_of(path: Path) -> list[dict[str, str]]:
    """Read a run's CSV; one that cannot be read has no rows."""
    try:
        return [{k: v or "" for k, v in row.items() if k} for row in read_rows(path)]
    except (UserError, OSError, ValueError):
        return []


def _folders(outputs: Path) -> list[Path]:
    try:
        return [f for f in outputs.iterdir() if (f / "config.json").exists()]
    except OSError as error:
        raise UserError(
            f"{outputs}: cannot be read ({error.strerror}); name the folder of the runs"
        ) from None


def _told(outputs: Path) -> dict[str, dict[str, str]]:
    """Rows of the search's own table: they know trials that could write nothing."""
    try:
        rows = read_table(outputs.parent / "results.csv")
    except (OSError, ValueError, UserError):
        return {}
    return {row["run"]: row for row in rows if row["run"] and "/" not in row["run"]}


def _trial(folder: Path, told: Mapping[str, str] | None) -> Trial:
    config, result = json_or_empty(folder / "config.json"), json_or_empty(folder / "result.json")
    values = config.get("values")
    values = spread(values) if isinstance(values, dict) else {}
    status, reason = str(result.get("status") or ""), str(result.get("reason") or "")
    if told and status not in ("done", "failed"):  # the search saw the end, the trial did not
        status, reason = told["status"] or status, told["reason"] or reason
    if told and not values:
        skip = {*FACTS, None}
        values = {k: _read(v) for k, v in told.items() if k not in skip and v}
        result = {
            "epochs": finite(told["epochs"]),
            "seconds": finite(told["seconds"]),
            "machine": told["machine"],
            "device": told["device"],
        } | result
    origin = config.get("origin")
    origin = origin if isinstance(origin, dict) else {}
    tuned = {key for key, layer in origin.items() if layer == "tuner"}
    given = {key for key, layer in origin.items() if layer not in ("default", "recipe")}
    curve = [
        {k: n for k, v in row.items() if (n := finite(v)) is not None}
        for row in read_table_of(folder / "history.csv")
    ]
    score = None if status == "failed" else finite(result.get("score"))
    return Trial(
        folder.name,
        folder,
        status or "unknown",
        reason,
        score,
        result=result,
        values=values,
        tuned=tuned,
        given=given,
        curve=curve,
    )


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def _comparable(trials: Sequence[Trial]) -> tuple[list[Trial], list[str]]:
    """Keep the trials of one data set and one score; those that tell neither stay too."""

    def kind(trial: Trial) -> tuple[str, str] | None:
        result = trial.result
        if "monitor" not in result:
            return None
        data = result.get("data_fingerprint") or result.get("data") or ""
        return str(data), str(result["monitor"])

    kinds = Counter(k for t in trials if (k := kind(t)) and k[0])
    if len(kinds) < 2:
        return list(trials), []
    kept = kinds.most_common(1)[0][0]
    mine = [t for t in trials if kind(t) == kept]
    searches = {t.name.split("-")[0] for t in mine}
    # What failed before it knew its data belongs to the search that it was a trial of.
    early = [t for t in trials if (k := kind(t)) is None or not k[0]]
    mine += [t for t in early if t.name.split("-")[0] in searches]
    out = len(trials) - len(mine)
    if not out:
        return mine, []
    runs = "1 run is" if out == 1 else f"{out} runs are"
    return mine, [
        f"{runs} left out, of other data or with another score; --search ID reports on "
        "one search alone."
    ]


def _score_by_curves(trials: Iterable[Trial], monitor: str, maximize: bool) -> None:
    """Give trials that still run the best score of their epochs so far."""
    for trial in trials:
        seen = [row[monitor] for row in trial.curve if monitor in row]
        if trial.score is None and seen and trial.status != "failed":
            trial.score = (max if maximize else min)(seen)


def _number(trials: list[Trial], maximize: bool) -> None:
    trials.sort(key=lambda t: (t.started is None, t.started or 0.0, natural(t.name)))
    searches = {t.name.split("-")[0] for t in trials if t.result.get("experiment")}
    for number, trial in enumerate(trials, start=1):
        trial.number = number
        head, _, rest = trial.name.partition("-")
        trial.label = rest if len(searches) == 1 and head in searches and rest else trial.name
    scored = [t for t in trials if t.score is not None]
    scored.sort(key=lambda t: t.score or 0.0, reverse=maximize)
    for rank, trial in enumerate(scored, start=1):
        trial.rank = rank


def _hyperparameters(trials: Sequence[Trial]) -> list[str]:
    """Options that a tuner set or that differ between trials, tuned ones first."""
    tuned = {key for t in trials for key in t.tuned}
    keys = list(dict.fromkeys(key for t in trials for key in t.values))
    known = [t for t in trials if t.values]
    found = []
    for key in keys:
        if key in NO_HYPERPARAMETER:
            continue
        seen = {_written(t.values.get(key)) for t in known}
        if len(seen) > 1 or (key in tuned and len(known) > 1):
            found.append(key)
    return sorted(found, key=lambda key: key not in tuned)


def _written(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return json.dumps(value, sort_keys=True, default=str)
    return repr(value)  # in a tenth of the time


def _time(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None
