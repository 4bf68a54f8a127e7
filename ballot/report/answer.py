"""The answer of a search in a sentence: what votes, how good it is, and what to do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ballot.config.trial_command import typed_command
from ballot.report.statistics import Judged
from ballot.report.trials import NO_HYPERPARAMETER, Found, Trial, finite, read_table_of
from ballot.runs.folder import run_of
from ballot.vote.combine import LOWER_IS_BETTER
from ballot.wording import plural

WORDS = {"acc": "accuracy", "f1_macro": "macro F1"}
# Options that say where a trial ran and what it left, beside those that are no hyperparameters.
NOT_TYPED = {*NO_HYPERPARAMETER, "time_limit"}


@dataclass(frozen=True)
class Estimate:
    """A score of an answer, and on which rows it was measured."""

    metric: str  # in words
    value: float
    error: float | None  # one standard error; None where the score is no mean over rows
    rows: int
    where: str

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.3f}"
        return f"{self.metric} {self.value:.3f}{error} on {self.rows:,} {self.where}"


def standard_error(share: float, rows: int) -> float:
    """Return the standard error of a share of `rows`; not 0 where all or none of them are right.

    Two rows of each kind are added, as in the interval of Agresti and Coull (1998).
    """
    middle = (share * rows + 2) / (rows + 4)
    return math.sqrt(middle * (1 - middle) / (rows + 4))


def estimate_of_vote(record: Mapping[str, Any]) -> Estimate | None:
    """Return what `ensemble.json` tells of the answer, from the rows that say most.

    Test rows took part in nothing; validation rows held out of the choice did not choose members.
    """
    scores = record.get("scores") or {}
    metric = (record.get("options") or {}).get("metric") or "acc"
    metric = "acc" if metric in LOWER_IS_BETTER else metric
    held = scores.get("held_out") or {}
    held_score = held.get("best_single" if scores.get("answer") == "best_single" else "vote")
    held_score = held_score if held.get("metric") == metric else None
    candidates = (
        (scores.get("test") or {}, scores.get("test_rows"), "test images that took no part in it"),
        ({metric: held_score}, held.get("rows"), "validation images held out of the choice"),
        (scores.get("val") or {}, scores.get("val_rows"), "validation images"),
    )
    for values, rows, where in candidates:
        value, count = finite(values.get(metric)), int(finite(rows) or 0)
        if value is not None and count:
            error = standard_error(value, count) if metric == "acc" else None
            return Estimate(WORDS.get(metric, metric), value, error, count, where)
    return None


def sentence_of_vote(record: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> str:
    """Say what the answer is made of, and how good it is likely to be."""
    members = [m for m in record.get("members") or [] if isinstance(m, Mapping)]
    voters = [str(m.get("name")) for m in members if finite(m.get("weight"))]
    names = labels or {}
    estimate = estimate_of_vote(record)
    if estimate is None:
        tail = "; how good it is, no labelled rows tell"
    else:
        tail = f": {estimate}" + (" (± is one standard error)" if estimate.error else "")
    if len(voters) == 1:
        what = f"the single trial {names.get(voters[0], voters[0])}"
        if len(members) > 1:
            what += f", the best of {len(members)}"
        if (record.get("scores") or {}).get("answer") == "best_single":
            what += ", which did better than their vote"
    else:
        what = f"the vote of {len(voters)} of {plural(len(members), 'trial')}"
    return f"The answer is {what}{tail}."


def sentence_of_best(found: Found, run: Judged | None) -> str:
    """Say how good the best trial is, where there is no vote."""
    best = next(iter(found.scored), None)
    if best is None:
        return "There is no answer yet: no trial has a score."
    many = plural(len(found.trials), "trial")
    what = f"The best of {many} is {best.label}" if len(found.trials) > 1 else "There is one trial"
    value, rows = finite((best.result.get("test") or {}).get("acc")), labelled_test_rows(best)
    if value is not None and rows:
        where = "test images that took no part in it"
        estimate = Estimate("accuracy", value, standard_error(value, rows), rows, where)
        return f"{what}: {estimate} (± is one standard error)."
    if run is None or run.trial is not best:
        return f"{what}: {found.monitor} {best.score:.4f}."
    share, rows = float((run.answers == run.targets).mean()), len(run.ids)
    where = "validation images, which also chose its best epoch"
    estimate = Estimate("accuracy", share, standard_error(share, rows), rows, where)
    return f"{what}: {estimate} (± is one standard error)."


def labelled_test_rows(trial: Trial) -> int:
    """Count the test rows whose class a trial's `split.csv` knows."""
    rows = read_table_of(trial.folder / "split.csv")
    return sum(row.get("split") == "test" and bool(row.get("label")) for row in rows)


def command_of(trial: Trial) -> str:
    """Return the command that trains a trial again; nothing where its options are not known."""
    values = {
        key: value
        for key, value in trial.values.items()
        if key not in NOT_TYPED and (key in trial.given or key.partition(".")[0] in trial.given)
    }
    if not trial.given:
        return ""
    return typed_command("python train.py", values)


def predict_command(found: Found, vote: Path | None, members: Sequence[Mapping[str, Any]]) -> str:
    """Return the command that predicts new images with the vote, or with the best trial."""
    if vote is None:
        best = next((t for t in found.scored if any(t.folder.rglob("best.pt"))), None)
        return "" if best is None else _predict(best.folder)
    runs = [run_of(f) for m in members if m["weight"] > 0 for f in m["files"]]
    kept = [any(run.rglob("best.pt")) for run in runs]
    if not any(kept):
        return ""
    return _predict(vote) + ("" if all(kept) else " --allow_missing")


def _predict(what: Path) -> str:
    return f"python predict.py {shlex.quote(shown_path(what))} photos/ --out new.csv"


def shown_path(path: Path) -> str:
    """Write a path as it is typed in the current folder."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(path)
