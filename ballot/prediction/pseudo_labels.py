"""A last round on images without labels that a vote is sure of (pseudo-labels, Lee, 2013).

The members with the most weight are trained once more, with the vote's probabilities as targets of
such images. They stay in the vote only if they improve it on validation rows.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ballot.errors import UserError
from ballot.prediction.other_scripts import Scripts, soft_labels
from ballot.runs.files import read_json, write_json
from ballot.runs.folder import ballots_of, is_validation, read_config, read_result, run_of
from ballot.values import Json
from ballot.vote import combine
from ballot.vote.comparison import is_worse, standard_error
from ballot.vote.outcome import Validation, VoteReport
from ballot.wording import plural

FOLDER = "pseudo"  # below that of the vote
MOST = 3  # members that are trained once more
SURE = 0.9  # the least probability, where none is asked for
RULES = "the rules of a competition may forbid training on its test images"

# Votes over the members and further files, and writes into a folder.
Vote = Callable[[Sequence[Path], Path], VoteReport]


@dataclass(frozen=True)
class PseudoLabelRequest:
    """What is asked for: the least probability, further images, and where the data are."""

    least: float = SURE
    unlabelled: Sequence[str] = ()
    data_dir: str | None = None


@dataclass(frozen=True)
class Gain:
    """What the new members do to the vote on `rows` validation rows: log losses and accuracies."""

    rows: int
    nll_before: float
    nll_after: float
    acc_before: float
    acc_after: float
    kept: bool


def last_round(
    report: VoteReport, vote: Vote, request: PseudoLabelRequest, scripts: Scripts
) -> tuple[list[str], VoteReport | None]:
    """Train the best members again with pseudo-labels; vote with them if that gains.

    `report` is of the vote as it was written. Returns what was done, in lines for people (the first
    one is also among the notes of `ensemble.json`), and the new vote where it was kept.
    """
    vote_dir = Path(report.options.out_dir)
    folder = vote_dir / FOLDER
    if report.held is None:
        raise UserError(
            "--pseudo_label: no validation rows tell what it gains; it needs 20 or more that all "
            "members predict (outputs/<run>/val.csv)"
        )
    members = members_to_train(report)
    if (folder / "soft.csv").exists():  # of an earlier time
        shutil.rmtree(folder)
    kept, asked = soft_labels(
        scripts,
        vote_dir,
        folder / "soft.csv",
        images=request.unlabelled,
        which="unlabelled",
        least=request.least,
        data_dir=request.data_dir,
    )
    what = f"pseudo labels: {kept:,} of {asked:,} unlabelled images have a probability of "
    what += f"{request.least:g} or more"
    facts: Json = {"images": kept, "of": asked, "least": request.least, "kept": False}
    if not kept:
        return note(vote_dir, f"{what}: nothing to train on", facts), None
    print(f"{what}; training {plural(len(members), 'member')} again ...", flush=True)
    runs = [train(run, folder, number, request, scripts) for number, run in enumerate(members)]
    tested = not is_validation(Path(report.members[0].files[0]))
    ballots = [file for file in ballots_of(runs) if is_validation(file) != tested]
    gain = gain_of(report.held, vote(ballots, folder / "vote").held)
    better = vote(ballots, vote_dir) if gain.kept else None
    facts |= asdict(gain)
    return note(vote_dir, f"{what}; {worded(gain, len(runs))}", facts), better


def members_to_train(report: VoteReport) -> list[Path]:
    """Return the runs of the members with the most weight that can be trained once more."""
    heaviest = sorted(report.members, key=lambda m: (-(m.weight or 0.0), m.name))
    runs = [run_of(Path(file)) for m in heaviest if m.weight for file in m.files[:1]]
    found = [run for run in runs if (run / "config.json").is_file() and _is_judged(run)]
    if not found:
        raise UserError(
            "--pseudo_label: no member has its run folder; keep outputs/<run> beside the CSVs"
        )
    return found[:MOST]


def _is_judged(run: Path) -> bool:
    """Whether it is a training, and one that holds out rows by which the next can be judged."""
    return "soup" not in read_result(run) and not read_config(run).get("all_rows")


def train(
    run: Path, folder: Path, number: int, request: PseudoLabelRequest, scripts: Scripts
) -> Path:
    """Train what a run trained, with pseudo-labels and another seed; return the new run."""
    values = read_config(run)
    split_seed = values["seed"] if values.get("split_seed") is None else values["split_seed"]
    name = f"{run.name}-pseudo"
    values |= {
        "recipe": "none",  # the values are complete
        "soft_labels": str((folder / "soft.csv").absolute()),
        "data_dir": request.data_dir or values.get("data_dir"),
        "split_seed": split_seed,
        "seed": (int(values["seed"]) + 101 + number) % 2**32,
        "out_dir": str(folder),
        "run_name": name,
        "resume": None,
        "model_dir": None,
        "tracker": [],
    }
    file = folder / f"{name}.json"
    write_json(file, values)
    scripts.show("train.py", ["--config", str(file)])
    return folder / name


def gain_of(before: Validation, after: Validation | None) -> Gain:
    """Compare two votes on the validation rows of the first, where neither had been chosen."""
    rows = len(before.ids)
    if after is None or after.ids != before.ids:
        raise UserError("--pseudo_label: the new members have other validation rows than the vote")
    nll, acc = (
        [combine.score(metric, held.probs, before.targets) for held in (before, after)]
        for metric in ("nll", "acc")
    )
    right = [(held.probs.argmax(axis=1) == before.targets) * 1.0 for held in (before, after)]
    error = standard_error(right[1] - right[0], before.groups)
    nll_gain = nll[0] - nll[1]
    kept = nll_gain > 0 and not is_worse(acc[1] - acc[0], nll_gain, error)
    return Gain(rows, nll[0], nll[1], acc[0], acc[1], kept)


def worded(gain: Gain, runs: int) -> str:
    """Say what the round gained, and whether it is kept."""
    end = "kept" if gain.kept else "no gain: not kept"
    return (
        f"with {plural(runs, 'more member')} trained on them the vote has a log loss of "
        f"{gain.nll_after:.4f} and an accuracy of {gain.acc_after:.4f} on {gain.rows:,} validation "
        f"rows, without {gain.nll_before:.4f} and {gain.acc_before:.4f}: {end}"
    )


def note(vote_dir: Path, line: str, facts: Json) -> list[str]:
    """Write a line and facts into the record of the vote, which the report shows; return lines."""
    path = vote_dir / "ensemble.json"
    record = read_json(path)
    lines = [line, f"note: {RULES}"]
    record["pseudo_labels"] = facts
    record["notes"] = [*(record.get("notes") or []), f"{line} ({RULES})"]
    write_json(path, record)
    return lines
