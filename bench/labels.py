"""Flip labels, train, and count how many of the first suspects are the flipped ones.

    python bench/labels.py [FOLDER ...] [--folds 5] [--seeds 3] [--no_digits]
        [--classification mask] [-- OPTION ...]

On digits, and on each FOLDER of images: 5 % of the labelled rows get another class, drawn evenly;
`train.py --folds` trains on them by the recipe of the data, and `--check_labels` judges. Images of
one person stay in one fold. Each seed draws other rows and trains from other random numbers.
`--classification` takes one attribute of the mask competition's labels. Options of train.py follow
`--`.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from ballot.config.command_line import Parser  # noqa: E402
from ballot.config.schema import Config  # noqa: E402
from ballot.data.images import FileSource  # noqa: E402
from ballot.errors import UserError  # noqa: E402
from ballot.scripts import script_main  # noqa: E402
from dataset import ATTRIBUTES, find_table  # noqa: E402

FIRST = 50
SHARE = 0.05


@dataclass(frozen=True)
class Source:
    """A folder of images, the label of each by its path, and its group where there are any."""

    folder: Path
    labels: dict[str, str]
    groups: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()  # of train.py

    def write(self, labels: dict[str, str]) -> None:
        """Write the list of images with these labels."""
        rows = [("path", "label"), *labels.items()]
        if self.groups:
            rows = [(*row, group) for row, group in zip(rows, ("group", *self.groups.values()))]
        with (self.folder / "labels.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)


def write_digits(folder: Path) -> Source:
    """Write scikit-learn's digits as files."""
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch, labels = load_digits(), {}
    folder.mkdir()
    for number, (image, label) in enumerate(zip(bunch.images, bunch.target)):
        name = f"{number:04d}.png"
        Image.fromarray((image * (255 / 16)).round().astype(np.uint8)).save(folder / name)
        labels[name] = str(label)
    return Source(folder, labels, options=("--image_size", "32"))


def link_folder(source: Path, folder: Path, classification: str) -> Source:
    """Link the training images of a folder."""
    table = find_table(Config(data_dir=str(source), classification=classification))
    if not isinstance(table.source, FileSource):
        raise UserError(f"{source}: holds no image files")
    folder.mkdir()
    labels, groups = {}, {}
    for number, row in enumerate(table.rows_of("train", "val")):
        path = Path(table.source.root, table.source.paths[row]).resolve()
        name = f"{number:06d}{path.suffix}"
        (folder / name).symlink_to(path)
        labels[name] = table.label(int(row))
        if table.groups is not None:
            groups[name] = table.groups[row]
    return Source(folder, labels, groups)


def flip(labels: dict[str, str], seed: int) -> dict[str, str]:
    """Return the labels of which a share is another class."""
    rng, classes = np.random.default_rng(seed), sorted(set(labels.values()))
    names = list(labels)
    changed = dict(labels)
    for place in rng.choice(len(names), round(SHARE * len(names)), replace=False):
        others = [name for name in classes if name != labels[names[place]]]
        changed[names[place]] = others[rng.integers(len(others))]
    return changed


def run(script: str, *words: object) -> None:
    """Run one of the scripts; what it says when it fails is said."""
    command = [sys.executable, str(ROOT / script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"{script}: {done.stderr.strip().splitlines()[-1]}")


def measure(source: Source, folds: int, seed: int, options: list[str]) -> str:
    """Train on flipped labels, and return a line on how well they are found."""
    data, labels = source.folder, source.labels
    changed = flip(labels, seed)
    source.write(changed)
    outputs, found = (data.parent / f"{data.name}-{seed}{end}" for end in ("-outputs", ".csv"))
    options = [*source.options, *options, "--seed", str(seed)]
    common = ("--data_dir", data, "--cache", data.parent / "cache", *options)
    began = time.monotonic()
    run("train.py", *common, "--folds", folds, "--out_dir", outputs, "--no_tensorboard")
    seconds = time.monotonic() - began
    run("dataset.py", *common, "--check_labels", outputs, "--out", found)
    with found.open(newline="") as file:
        suspects = list(csv.DictReader(file))
    wrong = {path for path in labels if labels[path] != changed[path]}
    first = suspects[:FIRST]
    hits = sum(row["id"] in wrong for row in first)
    right = sum(row["id"] in wrong and row["suggested"] == labels[row["id"]] for row in first)
    recall = sum(row["id"] in wrong for row in suspects) / len(wrong)
    early = sum(row["id"] in wrong for row in suspects[: len(wrong)]) / len(wrong)
    return (
        f"{data.name}, seed {seed}: {len(labels):,} rows, {len(wrong)} flipped; "
        f"{len(suspects)} suspects; precision at {len(first)}: {hits / max(len(first), 1):.2f} "
        f"(the true class suggested: {right}), precision at {len(wrong)}: {early:.2f}; "
        f"recall of all: {recall:.2f}; {seconds:.0f} s of training"
    )


@script_main
def main(argv: list[str] | None = None) -> int:
    """Print a line for each seed on digits and on each folder."""
    parser = Parser(prog="bench/labels.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--no_digits", action="store_true", help="the folders alone")
    parser.add_argument("--classification", default="multi", choices=("multi", *ATTRIBUTES))
    words = sys.argv[1:] if argv is None else argv
    end = words.index("--") if "--" in words else len(words)
    args, options = parser.parse_args(words[:end]), words[end + 1 :]
    with tempfile.TemporaryDirectory() as scratch:
        sources = [] if args.no_digits else [write_digits(Path(scratch, "digits"))]
        for folder in args.folders:
            sources.append(link_folder(folder, Path(scratch, folder.name), args.classification))
        for source in sources:
            for seed in range(args.seeds):
                print(measure(source, args.folds, seed, options), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
