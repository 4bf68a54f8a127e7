"""One label of three attributes, learnt in several ways, on people never seen.

    python bench/heads.py DIR TRUTH [--seeds N] [--options image_size=96 epochs=4]

DIR has the mask competition's layout, TRUTH is a CSV of `ImageID,ans` for its evaluation images.
Every way has the same recipe, seeds and split by person; the last one trains a network for each
attribute, three times the work, and multiplies what they say.
"""

from __future__ import annotations

import csv
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ballot.config.command_line import Parser  # noqa: E402
from ballot.errors import UserError  # noqa: E402
from ballot.scripts import script_main  # noqa: E402
from ballot.vote.ballots import read_ballot  # noqa: E402
from dataset import ATTRIBUTES  # noqa: E402
from metrics import create_metrics  # noqa: E402

WAYS = {
    "joint softmax": "--heads none",
    "heads": "--heads product",
    "heads, age by thresholds": "--heads product --ordinal age",
    "heads, weights learnt": "--heads product --head_weights uncertainty",
    "heads and a joint head": "--heads joint",
    "three networks": "",
}
SCORES = ("acc", "f1_macro", "mask", "gender", "age")
METRICS = create_metrics(("acc", "f1_macro"))


def train(words: str, data_dir: Path, out: Path, seed: int, options: Sequence[str]) -> np.ndarray:
    """Train one network and return its probabilities [N, C] of the evaluation images."""
    command = [sys.executable, str(ROOT / "train.py"), f"--data_dir={data_dir}", f"--out_dir={out}"]
    command += ["--run_name=run", f"--seed={seed}", "--split_seed=0", "--no_tensorboard"]
    command += [*shlex.split(words), *(f"--{text}" for text in options)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"{shlex.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    ballot = read_ballot(out / "run.csv")  # whose columns are in an order of their own
    classes = json.loads((out / "run" / "result.json").read_text())["classes"]
    return ballot.probs[:, [ballot.classes.index(name) for name in classes]]


def answers(way: str, data_dir: Path, seed: int, options: Sequence[str]) -> np.ndarray:
    """Return the joint probabilities [N, 18] of the evaluation images that a way gives."""
    with tempfile.TemporaryDirectory() as scratch:
        if WAYS[way]:
            return train(WAYS[way], data_dir, Path(scratch), seed, options)
        parts = [
            train(f"--classification {name}", data_dir, Path(scratch, name), seed, options)
            for name in ATTRIBUTES
        ]
    return np.einsum("na,nb,nc->nabc", *parts).reshape(len(parts[0]), -1)


def score(probs: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Score joint probabilities, and each attribute's share of right answers."""
    scores = METRICS.score(probs, truth, stage="test")
    shape = [len(classes) for classes in ATTRIBUTES.values()]
    cube = probs.reshape(-1, *shape)
    for place, (name, right) in enumerate(zip(ATTRIBUTES, np.unravel_index(truth, shape))):
        others = tuple(axis for axis in (1, 2, 3) if axis != place + 1)
        scores[name] = float(np.mean(cube.sum(axis=others).argmax(axis=1) == right))
    return scores


def in_order(ids: list[str], truth: Path) -> np.ndarray:
    """Return the true joint classes of evaluation images."""
    with truth.open(newline="") as file:
        known = {row["ImageID"]: int(row["ans"]) for row in csv.DictReader(file)}
    return np.array([known[name] for name in ids])


@script_main
def main(argv: list[str] | None = None) -> int:
    """Print a row of Markdown for each way."""
    parser = Parser(prog="bench/heads.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = "more of train.py's options, as in epochs=4"
    parser.add_argument("--options", nargs="+", default=[], metavar="NAME=VALUE", help=options)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args(argv)
    with (args.data_dir / "eval" / "info.csv").open(newline="") as file:
        truth = in_order([row["ImageID"] for row in csv.DictReader(file)], args.truth)
    print(f"| way | {' | '.join(SCORES)} | seconds |\n|{' --- |' * (len(SCORES) + 2)}", flush=True)
    for way in args.ways:
        began = time.monotonic()
        found = [
            score(answers(way, args.data_dir.resolve(), seed, args.options), truth)
            for seed in range(args.seeds)
        ]
        seconds = (time.monotonic() - began) / args.seeds
        cells = [spread([one[name] for one in found]) for name in SCORES]
        print(f"| {way} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)
    return 0


def spread(values: list[float]) -> str:
    """Write the mean of some scores, and their standard deviation where there are several."""
    error = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{error}"


if __name__ == "__main__":
    sys.exit(main())
