"""What a vote teaches: pseudo-labels and one distilled network, each beside labels alone.

    python bench/teaching.py DATA_DIR [--cuts 3] [--least 0.8] [--model M] [OPTION OF train.py ...]
    python bench/teaching.py digits [...]

Cuts labelled photos into a training and a test part as bench/linear_probe.py does (of the digits
the test part is always the same, and the seeds differ). On each cut three members are trained and
vote; `ensemble.py --pseudo_label` and `--distill` are run with the images of the test part as the
unlabelled ones. The controls are what the flags do but for the vote's answers: the same three
members again with their new seeds, and the same network with the same schedule. Prints accuracy
and log loss on the test part of each answer, and the mean difference from the vote.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from linear_probe import cuts, labelled, link, log_loss  # noqa: E402

from ballot.config.schema import Config  # noqa: E402
from ballot.runs.files import read_json, write_json  # noqa: E402
from ballot.runs.folder import read_config, read_result  # noqa: E402
from ballot.values import Json  # noqa: E402
from ballot.vote.ballots import read_ballot  # noqa: E402
from dataset import find_table  # noqa: E402

MEMBERS = ("", "--criterion focal", "--augmentation_args.mixup 0.4")
NAMES = (
    "best member",
    "vote",
    "and members with pseudo-labels",
    "and members without",
    "distilled network",
    "network on labels alone",
)


@dataclass(frozen=True)
class Cut:
    """What is trained on, by train.py's options, and the true class of each test image."""

    words: list[str]
    truth: dict[str, int]
    classes: list[str]


def run(script: str, *words: object, cwd: Path) -> str:
    """Run one of the scripts in a folder; return what it prints."""
    command = [sys.executable, str(HERE.parent / script), *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


def cut_data(data_dir: str, count: int, folder: Path) -> list[Cut]:
    """Write the folders of some cuts."""
    if data_dir == "digits":
        table = find_table(Config(dataset="digits"))
        truth = {table.ids[row]: int(table.labels[row]) for row in table.rows_of("test")}
        return [Cut(["--dataset", "digits"], truth, table.classes)] * count
    table, found = labelled(data_dir), []
    for number, (train, test) in enumerate(cuts(table, max(count, 5), 0.2)[:count]):
        root = folder / f"data{number}"
        asked = link(table, train, test, root)
        truth = {name: int(table.labels[row]) for name, row in asked.items()}
        found.append(Cut(["--data_dir", str(root)], truth, table.classes))
    return found


def score(file: Path, cut: Cut) -> tuple[float, float]:
    """Return accuracy and log loss of a file's answers for the test images."""
    ballot = read_ballot(file)
    numbered = ballot.classes == list(map(str, range(len(cut.classes))))
    names = list(map(str, range(len(cut.classes)))) if numbered else cut.classes
    probs = ballot.probs[:, [ballot.classes.index(name) for name in names]]
    labels = np.array([cut.truth[name] for name in ballot.ids])
    return float(np.mean(probs.argmax(axis=1) == labels)), log_loss(probs, labels)


def measure(number: int, cut: Cut, asked: argparse.Namespace, words: list[str], home: Path) -> list:
    """Train, vote and teach on one cut; return the scores in the order of `NAMES`."""
    seeds = ["--split_seed", number, "--no_tensorboard"]
    for member, more in enumerate(MEMBERS):
        named = ["--run_name", f"m{member}", "--seed", 10 * number + member]
        run("train.py", *cut.words, *seeds, *named, *words, *shlex.split(more), cwd=home)
    members = sorted((home / "outputs").glob("m?.csv"))
    best = max(members, key=lambda file: read_result(file.with_suffix(""))["scores"]["val_acc"])
    run("ensemble.py", *members, "--out_dir", "plain", cwd=home)
    vote = home / "plain" / "soft.csv"
    words = [*words, "--seed", str(10 * number + 5)]
    files = [
        best,
        vote,
        *more_members(members, vote, asked, home),
        *students(members, asked, words),
    ]
    return [score(file, cut) for file in files]


def more_members(members: list[Path], vote: Path, asked: argparse.Namespace, home: Path) -> list:
    """Return the votes with members of pseudo-labels, and with the same ones without them.

    Without a sure image there are none, and both are the vote.
    """
    run("ensemble.py", *members, "--pseudo_label", asked.least, cwd=home)
    print(read_json(home / "ensemble" / "ensemble.json")["pseudo_labels"], flush=True)
    taught = home / "ensemble" / "pseudo"
    controls = [
        without_lesson(read_json(file), file.stem, home) for file in taught.glob("m*-pseudo.json")
    ]
    if not controls:
        return [vote, vote]
    run("ensemble.py", *members, *controls, "--out_dir", "control_vote", cwd=home)
    return [taught / "vote" / "soft.csv", home / "control_vote" / "soft.csv"]


def students(members: list[Path], asked: argparse.Namespace, words: list[str]) -> list[Path]:
    """Return the answers of the distilled network, and of the same one on labels alone."""
    home = members[0].parents[1]
    run("ensemble.py", *members, "--out_dir", "plain", "--distill", asked.model, *words, cwd=home)
    (config,) = (home / "plain" / "distilled").glob("*/config.json")
    values = read_config(config.parent) | {"recipe": "none"}  # the values are complete
    distilled = config.parents[1] / f"{config.parent.name}.csv"
    return [distilled, without_lesson(values, "student", home)]


def without_lesson(values: Json, name: str, home: Path) -> Path:
    """Train by the same values on labels alone; return the answers."""
    own = home / f"{name}-control.json"
    write_json(own, values | {"soft_labels": None, "out_dir": "control", "run_name": name})
    run("train.py", "--config", own, cwd=home)
    return home / "control" / f"{name}.csv"


def spread(values: list[float]) -> str:
    """Write the mean of some numbers and its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):+.3f} ± {error:.3f}"


def main() -> int:
    """Print what each answer scores on each cut, and the mean difference from the vote."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data_dir", help="a folder of photos in classes, or digits")
    parser.add_argument("--cuts", type=int, default=3)
    parser.add_argument("--least", type=float, default=0.9, help="of ensemble.py --pseudo_label")
    parser.add_argument("--model", default="timm:tf_efficientnet_lite0", help="of --distill")
    asked, words = parser.parse_known_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, cut in enumerate(cut_data(asked.data_dir, asked.cuts, Path(folder))):
            home = Path(folder, f"cut{number}")
            home.mkdir()
            found.append(measure(number, cut, asked, words, home))
            shown = "; ".join(f"{n} {a:.3f} {b:.3f}" for n, (a, b) in zip(NAMES, found[-1]))
            print(f"cut {number}: {shown}", flush=True)
    vote = NAMES.index("vote")
    print("| answers by | test accuracy | log loss | accuracy less the vote's |\n| - | - | - | - |")
    for place, name in enumerate(NAMES):
        acc, nll = zip(*(scores[place] for scores in found))
        gaps = [scores[place][0] - scores[vote][0] for scores in found]
        means = f"{statistics.mean(acc):.3f} | {statistics.mean(nll):.3f}"
        print(f"| {name} | {means} | {spread(gaps)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
