"""The best epoch of a run against the mean of the weights of its three best ones.

    python bench/best_epochs.py DATA_DIR [--splits 5] [OPTION OF train.py ...]
    python bench/best_epochs.py digits

Cuts labelled photos into a training and a test part as bench/linear_probe.py does (of the digits
the test part is always the same, and the seed differs), runs `train.py` on each cut, and prints the
validation log loss, the test accuracy and the test log loss of the epoch that the run kept, and of
the mean of the weights of its three best epochs. Batch norms whose statistics training moved take
them anew from training images, as those of a soup do. Without views of an image (`--tta`).
"""

from __future__ import annotations

import argparse
import logging
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from linear_probe import cuts, labelled, link, log_loss  # noqa: E402

from ballot.data.batches import Data  # noqa: E402
from ballot.prediction.checkpoints import Checkpoint, fill, read_checkpoint  # noqa: E402
from ballot.prediction.soup import adapt_norms  # noqa: E402
from ballot.runs.files import read_rows  # noqa: E402
from ballot.runs.folder import read_result  # noqa: E402
from ballot.training import loop  # noqa: E402
from predict import build, data_of  # noqa: E402

COLUMNS = ("validation log loss", "test accuracy", "test log loss")


@dataclass(frozen=True)
class Scores:
    """What a set of weights answers: see `COLUMNS`."""

    val_nll: float
    test_acc: float
    test_nll: float

    def row(self) -> tuple[float, float, float]:
        """Return the numbers in the order of `COLUMNS`."""
        return self.val_nll, self.test_acc, self.test_nll


def train(words: list[str], out: Path) -> Path:
    """Run a trial that keeps the weights of every epoch; return its folder."""
    script = str(HERE.parent / "train.py")
    own = ["--out_dir", str(out), "--run_name", "run", "--save_period", "1"]
    done = subprocess.run([sys.executable, script, *own, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return out / "run"


def best_epochs(run: Path, count: int) -> list[Checkpoint]:
    """Return the checkpoints of the best epochs by the score that the run kept its best by."""
    result = read_result(run)
    sign = 1 if result["mode"] == "min" else -1
    rows = sorted(
        read_rows(run / "history.csv"),
        key=lambda row: (sign * float(row[result["monitor"]]), int(row["epoch"])),
    )
    return [read_checkpoint(run / f"epoch{int(row['epoch']):03d}.pt") for row in rows[:count]]


def mean_of(saved: list[Checkpoint]) -> dict[str, torch.Tensor]:
    """Return the mean of the weights; what counts in whole numbers is that of the best epoch."""
    mean = {}
    for name, value in saved[0].weights.items():
        several = torch.stack([each.weights[name] for each in saved])
        mean[name] = several.mean(dim=0) if value.is_floating_point() else value
    return mean


def moved(saved: list[Checkpoint]) -> bool:
    """Tell whether the statistics of batch norms differ between epochs."""
    names = [name for name in saved[0].weights if name.endswith("running_mean")]
    first, last = saved[0].weights, saved[-1].weights
    return any(not torch.equal(first[name], last[name]) for name in names)


def answer(model: torch.nn.Module, data: Data) -> Scores:
    """Score a network on validation and test rows."""
    val, test = data.folds[0].val, data.test
    assert test is not None
    probs = [loop.predict(model, rows.batches(64)).probs for rows in (val, test)]
    right = probs[1].argmax(axis=1) == test.labels
    return Scores(
        log_loss(probs[0], val.labels), float(right.mean()), log_loss(probs[1], test.labels)
    )


def compare(run: Path, count: int) -> tuple[Scores, Scores]:
    """Score the best epoch of a run, and the mean of its best ones."""
    saved = best_epochs(run, count)
    data, model = data_of(saved[0], None), build(saved[0])
    single = answer(fill(model, saved[0]), data)
    fill(model, replace(saved[0], weights=mean_of(saved)))
    if moved(saved):
        shown = data.folds[0].train.batches(64, epoch=0, train=True, seed=saved[0].config.seed)
        adapt_norms(model, (images for images, _ in shown))
    return single, answer(model, data)


@contextmanager
def cut_folders(data_dir: str, splits: int) -> Iterator[Iterator[list[str]]]:
    """Yield the options of `train.py` for each cut of the data."""
    with tempfile.TemporaryDirectory() as folder:
        if data_dir == "digits":
            yield (["--seed", str(seed)] for seed in range(splits))
            return
        table = labelled(data_dir)
        roots = []
        for number, (train_rows, test_rows) in enumerate(cuts(table, splits, 0.2)):
            root = Path(folder, str(number))
            link(table, train_rows, test_rows, root)
            roots.append(["--data_dir", str(root), "--seed", str(number)])
        yield iter(roots)


def difference(pairs: list[tuple[Scores, Scores]]) -> Iterator[str]:
    """Say for each column by how much the mean of weights differs, and the standard error."""
    for number, name in enumerate(COLUMNS):
        gaps = [after.row()[number] - before.row()[number] for before, after in pairs]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        yield f"{name} {statistics.mean(gaps):+.4f} ± {error:.4f}"


def main() -> int:
    """Print a row for each cut, and the mean difference with its standard error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", help="a folder of photos in classes, or digits")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--count", type=int, default=3, help="epochs that are averaged")
    known, words = parser.parse_known_args()
    logging.disable(logging.WARNING)  # each run has its own log
    pairs: list[tuple[Scores, Scores]] = []
    print("cut  best epoch: val nll, test acc, test nll   mean of the best: the same", flush=True)
    with cut_folders(known.data_dir, known.splits) as folders:
        for number, data in enumerate(folders):
            with tempfile.TemporaryDirectory() as out:
                pairs.append(compare(train([*data, *words], Path(out)), known.count))
            shown = "   ".join("{:.4f} {:.4f} {:.4f}".format(*each.row()) for each in pairs[-1])
            print(f"{number:>3}  {shown}", flush=True)
    print(f"mean of the {known.count} best less best: {'; '.join(difference(pairs))}")
    better = [pair for pair in pairs if pair[1].val_nll < pair[0].val_nll]
    print(f"validation log loss is better on {len(better)} of {len(pairs)}")
    if better:
        print(f"of these alone: {'; '.join(difference(better))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
