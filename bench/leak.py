"""Run the same search on a random split and on a split by person, and ask people never seen.

    python bench/leak.py DIR TRUTH [--trials N]

DIR has the mask competition's layout, TRUTH is a CSV of `ImageID,ans` for its evaluation images.
Both searches have the same seed, configurations and epochs; only the validation rows differ.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ballot.config.command_line import Parser  # noqa: E402
from ballot.errors import UserError  # noqa: E402
from ballot.scripts import script_main  # noqa: E402

SPLITS = {"MaskBaseDataset": "random rows", "MaskSplitByProfileDataset": "by person"}
SPACE = {
    "lr": {"_type": "loguniform", "_value": [0.001, 0.01]},
    "batch_size": {"_type": "choice", "_value": [16, 32, 64]},
}


def search(folder: Path, dataset: str, data_dir: Path, trials: int) -> list[Path]:
    """Run one search in `folder` and return its ballots."""
    folder.mkdir()
    (folder / "space.json").write_text(json.dumps(SPACE))
    config = {
        "searchSpaceFile": "space.json",
        "trialCommand": f"python3 train.py --resume auto --data_dir '{data_dir}' "
        f"--dataset {dataset} --model simple_cnn --image_size 64 --epochs 20 "
        "--near_duplicates ignore "  # faces with other masks drawn on; a random split parts them
        f"--out_dir '{folder / 'outputs'}' --no_tensorboard",
        "trialCodeDirectory": str(ROOT),
        "maxTrialNumber": trials,
        "trialConcurrency": 2,
        "tuner": {"name": "TPE", "classArgs": {"optimize_mode": "maximize", "seed": 1}},
        "trainingService": {"platform": "local"},
    }
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    command = [sys.executable, str(ROOT / "search.py"), "--config", "config.yml", "--no_probe"]
    if subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL).returncode != 0:
        raise UserError(f"{dataset}: its search did not come to its end")
    return sorted((folder / "outputs").glob("*.csv"))


def accuracy(submission: Path, truth: dict[str, str]) -> float:
    """Share of the evaluation images that a submission answers rightly."""
    with submission.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return sum(row["ans"] == truth[row["ImageID"]] for row in rows) / len(rows)


@script_main
def main(argv: list[str] | None = None) -> int:
    """Print a table of both searches."""
    parser = Parser(prog="bench/leak.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--trials", type=int, default=6)
    args = parser.parse_args(argv)
    with args.truth.open(newline="") as file:
        truth = {row["ImageID"]: row["ans"] for row in csv.DictReader(file)}
    with tempfile.TemporaryDirectory() as scratch:
        for dataset, words in SPLITS.items():
            ballots = search(Path(scratch, dataset), dataset, args.data_dir.resolve(), args.trials)
            pairs = []
            for ballot in ballots:
                run = ballot.with_suffix("")
                score = json.loads((run / "result.json").read_text())["score"]
                pairs.append((score, accuracy(run / "submission.csv", truth)))
            promised, given = zip(*sorted(pairs))
            print(
                f"{words}: validation {', '.join(f'{v:.2f}' for v in promised)}; on unseen "
                f"people {min(given):.2f} to {max(given):.2f}; the best trial promises "
                f"{promised[-1]:.2f} and gives {given[-1]:.2f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
