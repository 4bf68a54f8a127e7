"""A default trial against ten lines of scikit-learn: both learn from the same photos.

`python bench/linear_probe.py DATA_DIR` cuts all labelled photos into a training and a test part,
several times, fits a logistic regression to what a frozen pretrained network makes of the first,
runs `train.py --data_dir` on a folder of links to them, and prints the test scores of both. The
mask competition's data are cut by person and scored by macro F1, others by accuracy.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from ballot.config.schema import Config  # noqa: E402
from ballot.data.batches import normalise  # noqa: E402
from ballot.data.images import FileSource  # noqa: E402
from ballot.data.tables import Table  # noqa: E402
from dataset import find_table, seen  # noqa: E402
from metrics import create_metrics  # noqa: E402
from model import create_model, model_spec  # noqa: E402

NETWORK = "timm:tf_efficientnet_lite0"


def labelled(data_dir: str) -> Table:
    """Return all labelled rows of a folder, its own test part among them."""
    table = find_table(Config(data_dir=data_dir))
    return table.take(np.flatnonzero(table.labels >= 0))


def cuts(table: Table, count: int, share: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut the rows `count` times, each class (or each person) as a whole in proportion."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit

    blank = np.zeros(len(table))
    if table.groups is not None:
        parts = StratifiedGroupKFold(count, shuffle=True, random_state=0)
        return list(parts.split(blank, table.labels, table.groups))
    return [
        next(StratifiedShuffleSplit(1, test_size=share, random_state=k).split(blank, table.labels))
        for k in range(count)
    ]


@torch.inference_mode()
def features(table: Table, size: int) -> np.ndarray:
    """Return what the frozen network makes of each photo, as a trial shows it: [N, F]."""
    model, _ = create_model(NETWORK, 2, pretrained="yes", image_size=size)
    model.reset_classifier(0)
    model.eval()
    spec, shape = model_spec(NETWORK), seen(size, table.crop)
    found = []
    for first in range(0, len(table), 32):
        rows = range(first, min(first + 32, len(table)))
        images = torch.stack([shape.fit(table.source.read(row)) for row in rows])
        found.append(model(normalise(images, spec.mean, spec.std)).numpy())
    return np.concatenate(found)


def probe(x: np.ndarray, table: Table, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the probabilities [N, C] that a logistic regression gives the test rows."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(max_iter=2000).fit(x[train], table.labels[train])
    probs = np.zeros((len(test), len(table.classes)))
    probs[:, fitted.classes_] = fitted.predict_proba(x[test])
    return probs


def log_loss(probs: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log of what the true classes were given."""
    return float(-np.log(probs[np.arange(len(labels)), labels].clip(1e-9)).mean())


def link(table: Table, train: np.ndarray, test: np.ndarray, root: Path) -> dict[str, int]:
    """Write a folder of links in a usual layout; return the row of each test image by its id."""
    source = table.source
    assert isinstance(source, FileSource)
    asked = {}
    for rows, side in ((train, "train"), (test, "test")):
        for row in rows:
            file = (source.root / source.paths[row]).resolve()
            name, parent = f"{row}{file.suffix}", table.classes[table.labels[row]]
            if table.groups is None:
                target = Path(side, parent, name)
            elif side == "train":
                target = Path("train", "images", file.parent.name, file.name)
            else:
                target = Path("eval", "images", name)
            asked |= {name if table.groups else str(target): row} if side == "test" else {}
            (root / target).parent.mkdir(parents=True, exist_ok=True)
            (root / target).symlink_to(file)
    if table.groups is not None:
        lines = ["ImageID,ans", *(f"{name},0" for name in asked)]
        (root / "eval" / "info.csv").write_text("\n".join(lines) + "\n")
    return asked


def trial(table: Table, asked: dict[str, int], root: Path, words: list[str]) -> tuple:
    """Run a default trial; return the test rows, their probabilities and its CPU seconds."""
    import pandas as pd

    before, began = os.times(), time.monotonic()
    command = [
        sys.executable,
        str(HERE.parent / "train.py"),
        "--data_dir",
        str(root),
        "--run_name",
        "trial",
        "--out_dir",
        str(root / "outputs"),
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    after = os.times()
    seconds = after.children_user + after.children_system
    seconds -= before.children_user + before.children_system
    ballot = pd.read_csv(root / "outputs" / "trial.csv")
    rows = np.array([asked[name] for name in ballot["id"].astype(str)])
    probs = ballot[[c for c in table.classes]].to_numpy()
    return rows, probs, seconds, time.monotonic() - began


def main() -> int:
    """Print a row for each cut, and the mean of both with its spread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir")
    parser.add_argument("--size", type=int, default=160, help="pixels that the probe sees")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the cuts to run")
    known, words = parser.parse_known_args()
    table = labelled(known.data_dir)
    table = replace(table, classes=list(table.classes))
    metric = "acc" if table.groups is None else "f1_macro"
    metrics = create_metrics((metric,))
    x = features(table, known.size)
    both = []
    print(f"test {metric} and log loss")
    print(f"{'split':>5} {'probe':>16} {'trial':>16} {'CPU s':>7} {'wall s':>7}")
    for number, (train, test) in enumerate(cuts(table, known.splits, 0.2)):
        if known.only and number not in known.only:
            continue
        guessed = probe(x, table, train, test)
        first = metrics.score(guessed, table.labels[test], stage="val")[metric]
        with tempfile.TemporaryDirectory() as folder:
            asked = link(table, train, test, Path(folder))
            rows, probs, cpu, wall = trial(table, asked, Path(folder), words)
        second = metrics.score(probs, table.labels[rows], stage="val")[metric]
        both.append((first, second))
        losses = (log_loss(guessed, table.labels[test]), log_loss(probs, table.labels[rows]))
        print(
            f"{number:>5} {first:>8.4f} {losses[0]:>7.4f} {second:>8.4f} {losses[1]:>7.4f} "
            f"{cpu:>7.0f} {wall:>7.0f}",
            flush=True,
        )
    means = [statistics.mean(column) for column in zip(*both)]
    gains = [b - a for a, b in both]
    spread = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
    gain = statistics.mean(gains)
    print(f" mean {means[0]:>8.4f} {means[1]:>16.4f}   the trial gains {gain:+.4f} +- {spread:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
