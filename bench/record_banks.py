"""Record banks of trials: what many configurations answered on validation and on test rows.

    python bench/record_banks.py --dir DIR --data FOLDER [BANK...] [--trials 24] [--minutes 30]

FOLDER holds trashnet/ and mask_people/. Each trial is a real run of train.py in DIR; one that is
there already is not run again. The banks take turns, so that all of them have about as many trials
when the minutes are over. Then bench/banks/<bank>.npz is written, on which bench/answers.py
compares rules of voting.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
BANKS = ROOT / "bench" / "banks"
sys.path.insert(0, str(ROOT))

Values = dict[str, "str | float | int | bool"]
LOSSES = ("cross_entropy", "cross_entropy", "label_smoothing", "focal", "bce")
AUGMENTATIONS = ("BaseAugmentation", "TrivialAugment", "CustomAugmentation", "AffineAugmentation")
KEPT = ("model", "pretrained", "lr", "criterion", "augmentation", "batch_size", "epochs")
NOISE = 0.2  # share of wrong labels among training and validation rows
WEAK = 7  # trials of each bank of photos that are short
FEW = 20  # photos of a class to learn from


@dataclass(frozen=True)
class Bank:
    """A data set, what each trial on it is given, and the space from which the rest is drawn."""

    name: str
    prepare: Callable[[Path, Path], Values]  # (folder for files, folder of the data) -> options
    draw: Callable[[np.random.Generator, int], Values]  # (chance, number of the trial)
    truth: Callable[[Path], dict[str, str]] | None = None  # of test rows, where no run knows it


def draw_digits(rng: np.random.Generator, _trial: int) -> Values:
    """Draw a trial on digits: small networks from scratch, good and bad rates."""
    lr, optimizer = float(10 ** rng.uniform(-4, -1.5)), str(rng.choice(["AdamW", "SGD"]))
    if optimizer == "SGD":
        lr *= 20
    return {
        "model": "simple_cnn",
        "lr": lr,
        "batch_size": int(rng.choice([16, 32, 64])),
        "criterion": str(rng.choice(LOSSES)),
        "epochs": int(rng.integers(3, 13)),
        "augmentation": str(rng.choice(["BaseAugmentation", "AffineAugmentation"])),
        "optimizer": optimizer,
        "scheduler": "cosine",
    }


def draw_photos(rng: np.random.Generator, trial: int) -> Values:
    """Draw a trial on photos: most are fine-tuned, some from scratch; some with a bad rate.

    The first ones are short and see little: banks have weak and strong trials.
    """
    weak = trial < WEAK
    values: Values = {
        "lr": float(10 ** (rng.uniform(-3.7, -2) if weak else rng.uniform(-3.2, -2))),
        "batch_size": int(rng.choice([16, 32])) if weak else 16,
        "criterion": str(rng.choice(LOSSES)),
        "augmentation": str(rng.choice(AUGMENTATIONS)),
        "augmentation_args.crop": 0,
        "augmentation_args.flip": float(rng.choice([0.0, 0.5])),
        "epochs": int(rng.integers(2, 4)),
        "image_size": int(rng.choice([40, 48, 64], p=[0.3, 0.5, 0.2])) if weak else 64,
        "scheduler": "cosine",
        "layer_decay": float(rng.choice([1.0, 0.7])),
    }
    kind = rng.uniform()
    if kind < 0.12:
        return {**values, "model": "simple_cnn", "epochs": 12, "lr": 1e-3}
    values |= {"model": "timm:tf_efficientnet_lite0", "pretrained": "yes"}
    if kind < (0.45 if weak else 0.6):
        values |= {"freeze": "backbone", "lr": float(values["lr"]) * 3}
        values |= {} if weak else {"epochs": 4}
    return values


def clean_digits(_folder: Path, _data: Path) -> Values:
    """Give scikit-learn's digits as they are."""
    return {}


def noisy_digits(folder: Path, _data: Path) -> Values:
    """Write digits as images: 500 to learn from, a fifth of them with a wrong label, 800 to test.

    Validation rows are as wrong as training rows, test rows are right.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    rows = []
    for place, row in enumerate(rng.permutation(len(images))[:1300]):
        label, split = int(labels[row]), "train" if place < 500 else "test"
        if split == "train" and rng.uniform() < NOISE:
            label = (label + int(rng.integers(1, 10))) % 10
        path = folder / f"{row:04d}.png"
        Image.fromarray((images[row].reshape(8, 8) * 15.9).astype(np.uint8)).save(path)
        rows.append((path.name, str(label), split))
    return {"data_dir": str(write_labels(folder, rows)), "image_size": 32}


def few_photos(folder: Path, data: Path) -> Values:
    """Take 20 photos of each class of trashnet to learn from, and all others to test."""
    rng, rows = np.random.default_rng(0), []
    photos = sorted((data / "trashnet").glob("t*/*/*.jpg"))
    for name in sorted({photo.parent.name for photo in photos}):
        own = [photo for photo in photos if photo.parent.name == name]
        for place, number in enumerate(rng.permutation(len(own))):
            split = "train" if place < FEW else "test"
            rows.append((str(own[number].resolve()), name, split))
    return {"data_dir": str(write_labels(folder, rows))}


def write_labels(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    """Write a table of images as data to learn from, and return it."""
    table = folder / "labels.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return table


def people(attribute: str) -> Bank:
    """Give one attribute of the faces, or the joint label; the truth of test rows lies apart."""

    def prepare(_folder: Path, data: Path) -> Values:
        return {"data_dir": str(data / "mask_people"), "classification": attribute}

    def truth(data: Path) -> dict[str, str]:
        part = {
            "multi": lambda k: k,
            "mask": lambda k: k // 6,
            "gender": lambda k: k % 6 // 3,
            "age": lambda k: k % 3,
        }[attribute]
        with (data / "mask_people" / "gt" / "gt.csv").open() as file:
            return {row["ImageID"]: str(part(int(row["ans"]))) for row in csv.DictReader(file)}

    name = "people" if attribute == "multi" else f"people_{attribute}"
    return Bank(name, prepare, draw_photos, truth)


ALL = (
    Bank("digits", clean_digits, draw_digits),
    Bank("digits_noisy", noisy_digits, draw_digits),
    Bank("trashnet", lambda _, data: {"data_dir": str(data / "trashnet")}, draw_photos),
    Bank("trashnet_few", few_photos, draw_photos),
    *map(people, ("multi", "mask", "gender", "age")),
)


def planned(bank: Bank, folder: Path, data: Path, trials: int) -> Iterator[Callable[[], None]]:
    """Yield what trains each trial that is not there yet."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    given = bank.prepare(folder / "data", data)
    rng = np.random.default_rng(sum(map(ord, bank.name)))
    for trial in range(trials):
        values = {**bank.draw(rng, trial), **given, "seed": trial, "split_seed": 1}
        if not (folder / "outputs" / f"trial{trial:03d}" / "result.json").exists():
            yield lambda trial=trial, values=values: run(folder, trial, values)


def run(folder: Path, trial: int, values: Values) -> None:
    """Train one configuration, and say how that went."""
    import train

    name, file = f"trial{trial:03d}", folder / "data" / f"trial{trial:03d}.json"
    file.write_text(json.dumps(values))
    began, said = time.monotonic(), io.StringIO()
    with contextlib.redirect_stderr(said):
        status = train.main(
            [
                "--config",
                str(file),
                "--out_dir",
                str(folder / "outputs"),
                "--run_name",
                name,
                "--no_tensorboard",
                "--device",
                "cpu",
            ]
        )
    if status not in (0, 1):
        raise SystemExit(f"{folder.name} {name}: {said.getvalue()[-500:]}")
    result = json.loads((folder / "outputs" / name / "result.json").read_text())
    seconds = time.monotonic() - began
    print(folder.name, name, result["status"], result.get("score"), f"{seconds:.1f} s", flush=True)


def gather(bank: Bank, folder: Path, data: Path) -> int:
    """Write what the ended trials answered, to three digits; return how many there are."""
    from ballot.vote.ballots import read_ballot

    val, test, about = [], [], []
    first = None
    for run in sorted((folder / "outputs").glob("trial*/")):
        ballot = run.with_name(f"{run.name}.csv")
        if not ballot.exists():
            continue
        held, asked = read_ballot(run / "val.csv", labelled=True), read_ballot(ballot)
        first = first or (held, asked, run)
        assert (held.ids, asked.ids) == (first[0].ids, first[1].ids)
        val.append(held.probs.astype(np.float16))
        test.append(asked.probs.astype(np.float16))
        about.append(json.dumps(facts_of(run)))
    if first is None:
        return 0
    held, asked, run = first
    result = json.loads((run / "result.json").read_text())
    place = {name: number for number, name in enumerate(held.classes)}
    if bank.truth:
        words = zip(result["submission"]["answers"], result["classes"])
        place = {**place, **{str(word): place[name] for word, name in words}}
    sides = split_of(run)
    truth = bank.truth(data) if bank.truth else {k: row["label"] for k, row in sides.items()}
    groups = [sides[k]["group"] for k in held.ids]
    code = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    np.savez_compressed(
        BANKS / f"{bank.name}.npz",
        val=np.stack(val),
        test=np.stack(test),
        about=np.array(about),
        val_targets=np.array([place[k] for k in held.labels or ()], np.uint8),
        test_targets=np.array([place[truth[k]] for k in asked.ids], np.uint8),
        groups=np.array([code[k] for k in groups] if any(groups) else [], np.uint16),
    )
    return len(val)


def split_of(run: Path) -> dict[str, dict[str, str]]:
    """Return a run's rows by their ids."""
    with (run / "split.csv").open() as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def facts_of(run: Path) -> dict[str, object]:
    """Return a trial's configuration, its status and its curve."""
    result = json.loads((run / "result.json").read_text())
    values = json.loads((run / "config.json").read_text())["values"]
    with (run / "history.csv").open() as file:
        curve = [round(float(row["val_acc"]), 4) for row in csv.DictReader(file)]
    return {
        **{key: values[key] for key in KEPT},
        "status": result["status"],
        "seconds": round(result["seconds"], 1),
        "curve": curve,
    }


def main() -> int:
    """Record what is missing, the banks in turns, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [bank.name for bank in ALL]
    parser.add_argument("banks", nargs="*", metavar="BANK", help=f"of {', '.join(names)}")
    parser.add_argument("--dir", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--data", type=Path, required=True, help="folder of the photos")
    parser.add_argument("--trials", type=int, default=24, help="of each bank")
    parser.add_argument("--minutes", type=float, default=30, help="after which none is begun")
    args = parser.parse_args()
    if unknown := set(args.banks) - set(names):
        parser.error(f"no bank {min(unknown)!r}; there are {', '.join(names)}")
    banks = [bank for bank in ALL if bank.name in (args.banks or names)]
    begun = time.monotonic()
    folders = {bank.name: args.dir.resolve() / bank.name for bank in banks}
    waiting = [
        planned(bank, folders[bank.name], args.data.resolve(), args.trials) for bank in banks
    ]
    while waiting and time.monotonic() - begun < 60 * args.minutes:
        each = waiting.pop(0)
        if (job := next(each, None)) is not None:
            job()
            waiting.append(each)
    for bank in banks:
        count = gather(bank, folders[bank.name], args.data)
        print(f"{count} trials of {bank.name} are in {BANKS.name}/{bank.name}.npz")
    return 0


if __name__ == "__main__":
    sys.exit(main())
