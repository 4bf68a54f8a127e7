"""Record learning curves: configurations drawn at random, each trained by train.py.

    python bench/record_curves.py --dir DIR [--trials 130] [--first 0] [--number N]

Each trial is a real run in DIR (one that is there already is not run again, so that several of
these can share the work), then all that have ended are gathered into bench/curves.csv, on which
bench/search.py compares tuners and stopping rules.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "bench" / "curves.csv"
EPOCHS, SEED = 15, 1
COLUMNS = ("trial", "status", "seconds", "values", "val_acc")


def configurations(number: int) -> list[dict[str, Any]]:
    """Draw from bench/curves_space.json with NNI's Random; the same ones every time."""
    from nni.algorithms.hpo.random_tuner import RandomTuner

    tuner = RandomTuner(seed=SEED)
    tuner.update_search_space(json.loads(TABLE.with_name("curves_space.json").read_text()))
    return [tuner.generate_parameters(each) for each in range(number)]


def record(folder: Path, trial: int, values: dict[str, Any]) -> None:
    """Train one configuration on the digits, if that has not been done."""
    run = folder / f"trial{trial:03d}"
    if (run / "result.json").exists():
        return
    file = folder / f"trial{trial:03d}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "train.py"),
            "--config",
            str(file),
            "--out_dir",
            str(folder),
            "--run_name",
            run.name,
            "--epochs",
            str(EPOCHS),
            "--no_tensorboard",
            "--device",
            "cpu",
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1) or not (run / "result.json").exists():
        raise SystemExit(f"trial {trial}: {done.stderr[-500:]}")


def gather(folder: Path) -> int:
    """Write the table of the runs that have ended: a row a trial, its curve in one cell."""
    rows = []
    for run in sorted(folder.glob("trial*/")):
        result = json.loads((run / "result.json").read_text())
        if result["status"] not in ("done", "failed"):
            continue
        history = run / "history.csv"
        epochs = csv.DictReader(history.open()) if history.exists() else []
        curve = " ".join(f"{float(row['val_acc']):.4f}" for row in epochs)
        rows.append(
            {
                "trial": run.name,
                "status": result["status"],
                "seconds": result["seconds"],
                "values": (folder / f"{run.name}.json").read_text(),
                "val_acc": curve,
            }
        )
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def main() -> int:
    """Record what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--trials", type=int, default=130)
    parser.add_argument("--first", type=int, default=0, help="trial to begin with")
    parser.add_argument("--number", type=int, help="as many from there on (default: all)")
    args = parser.parse_args()
    drawn = list(enumerate(configurations(args.trials)))
    last = None if args.number is None else args.first + args.number
    for trial, values in drawn[args.first : last]:
        record(args.dir, trial, values)
    print(f"{gather(args.dir)} trials are in {TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
