"""Time and size of a report as a search grows.

    python bench/report.py [--full]

Linear growth is the claim: twice the trials take no more than twice the time, and each trial adds
the same few bytes to the page.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ballot.config.schema import Config  # noqa: E402 - the repository is no installed package
from ballot.report.page import make_report, render  # noqa: E402

SEARCH = "benchmrk"
CLASSES = ("cat", "dog", "owl")


def make_runs(outputs: Path, trials: int, epochs: int = 30, rows: int = 60) -> None:
    """Write run folders such as a search leaves: half of them stopped, some of them failed."""
    rng, defaults = random.Random(0), dataclasses.asdict(Config())
    for number in range(trials):
        folder = outputs / f"{SEARCH}-{number:03d}-t{number:05d}"
        folder.mkdir(parents=True)
        lr = 10 ** rng.uniform(-4, -1)
        values = {
            **defaults,
            "lr": lr,
            "batch_size": rng.choice([16, 32, 64]),
            "epochs": epochs,
            "optimizer": rng.choice(["AdamW", "SGD"]),
            "model": "simple_cnn",
            "optimizer_args": {"momentum": rng.uniform(0.8, 0.95)},
            "augmentation_args": {"erase": rng.random()},
        }
        status = "failed" if number % 20 == 19 else "stopped" if number % 2 else "done"
        length = epochs if status == "done" else rng.randint(3, max(3, epochs // 2))
        top = 0.95 - 0.1 * abs(math.log10(lr) + 2.5) + rng.gauss(0, 0.02)
        curve = [top * (1 - 0.6 * math.exp(-epoch / 5)) for epoch in range(1, length + 1)]
        _write_run(folder, number, values, status, curve, epochs)
        if status == "done" and number < 60:
            _write_rows(folder, rng, rows)


def _write_run(
    folder: Path, number: int, values: dict[str, Any], status: str, curve: list[float], planned: int
) -> None:
    searched = ("lr", "batch_size", "optimizer", "optimizer_args.momentum")
    origin = {key: "tuner" if key in searched else "default" for key in [*values, *searched]}
    start = (
        f"2026-01-{1 + number // 480:02d}T{number // 20 % 24:02d}:{number % 20 * 3:02d}:00+00:00"
    )
    failed = status == "failed"
    result = {
        "run": folder.name,
        "status": status,
        "monitor": "val_acc",
        "mode": "max",
        "reason": "loss stopped being finite" if failed else None,
        "data": "animals",
        "experiment": SEARCH,
        "data_fingerprint": "0123",
        "started": start,
        "score": None if failed else max(curve),
        "epochs": len(curve),
        "epochs_planned": planned,
        "seconds": 4.0 * len(curve),
        "network": {
            "parameters": 62_006 * (1 + number % 7),
            "multiply_adds": 651_384 * (1 + number % 5),
            "latency": 0.001 * (1 + number % 5),
            "images_per_second": 4000 / (1 + number % 5),
        },
        "scores": {} if failed else {"val_acc": max(curve)},
        "machine": "gpu-1",
        "device": "cuda:0",
    }
    (folder / "config.json").write_text(json.dumps({"values": values, "origin": origin}))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "history.csv").write_text(_history(curve))


def _history(curve: list[float]) -> str:
    """Return the lines of a run's epochs whose validation accuracies are `curve`."""
    lines = ["epoch,val_acc,val_loss,train_loss"]
    lines += [
        f"{e},{v:.6f},{-math.log(max(v, 0.01)):.6f},{0.9 - v / 2:.6f}"
        for e, v in enumerate(curve, start=1)
    ]
    return "\n".join(lines) + "\n"


def _write_rows(folder: Path, rng: random.Random, rows: int) -> None:
    """Write validation rows that are mostly right, and the split that they come from."""
    val, split = ["id,label," + ",".join(CLASSES)], ["id,label,split,group"]
    for row in range(rows):
        label = CLASSES[row % 3]
        parts = [rng.random() + 1.5 * (name == label) for name in CLASSES]
        val.append(f"img{row},{label}," + ",".join(f"{p / sum(parts):.6f}" for p in parts))
        split += [f"img{row},{label},val,", f"tr{row},{label},train,"]
    (folder / "val.csv").write_text("\n".join(val) + "\n")
    (folder / "split.csv").write_text("\n".join(split) + "\n")


def measure(full: bool) -> list[dict[str, Any]]:
    """Return a row a size: seconds a trial beside those of the size before, and bytes a trial."""
    sizes = (10, 200, 1000) if full else (10, 50, 200)
    seconds, bytes_ = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            outputs, page = Path(folder) / str(size) / "outputs", Path(folder) / f"{size}.html"
            make_runs(outputs, size)
            render(make_report(outputs), page)  # imports, and Vega's script, are made once
            seconds[size] = [_timed(outputs, page) for _ in range(5 if full else 3)]
            bytes_[size] = page.stat().st_size
    rows = []
    for small, large in pairwise(sizes):
        ours, other = (statistics.median(seconds[n]) for n in (large, small))
        growth = [b / a * small / large for a, b in zip(seconds[small], seconds[large])]
        rows.append(
            {
                "what": f"report of {large} trials, against {small} times {large // small}",
                "ours": f"{ours:.2f} s, {bytes_[large] / 1e6:.1f} MB",
                "other": f"{other * large / small:.2f} s",
                "ratio": 1 / (ours / other * small / large),
                "spread": (1 / max(growth), 1 / min(growth)),
            }
        )
    return rows


def _timed(outputs: Path, page: Path) -> float:
    start = time.perf_counter()
    render(make_report(outputs), page)
    return time.perf_counter() - start


def main() -> int:
    """Print the measurements; a ratio of 1 and more is linear growth or better."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="up to 1000 trials")
    for row in measure(parser.parse_args().full):
        low, high = row["spread"]
        print(
            f"{row['what']}: {row['ours']}, {row['other']}, "
            f"ratio {row['ratio']:.1f} ({low:.1f} to {high:.1f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
