"""The shipped search against plain NNI: twelve trials of 15 epochs on digits, two at once.

    python bench/shipped.py [--rounds N]

Ours is config_local.yml as it is: this project's tuner and assessor, trials forked from a preloaded
process. Plain is NNI's TPE with its defaults, no assessor, and `python3 train.py`; search.py
watches both, so that both are checked, guarded, and vote. Space, epochs, trials and machine are
the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]


def configuration(plain: bool, home: Path) -> dict[str, Any]:
    """Return the shipped configuration, or what plain NNI makes of the same search."""
    config = yaml.safe_load((ROOT / "config_local.yml").read_text(encoding="utf-8"))
    config |= {
        "trialCodeDirectory": str(ROOT),
        "searchSpaceFile": str(ROOT / "search_space.json"),
        "experimentWorkingDirectory": str(home / "nni"),
    }
    command = config["trialCommand"]
    if plain:
        command = command.replace("-m ballot.preload ", "")
        config["tuner"] = {"name": "TPE", "classArgs": {"optimize_mode": "maximize"}}
        del config["assessor"]
    else:
        for part in ("tuner", "assessor"):
            config[part]["codeDirectory"] = str(ROOT)
    config["trialCommand"] = f"{command} --out_dir {home}/outputs"
    return config


def search(plain: bool, home: Path, port: int) -> dict[str, float]:
    """Run one search; return its seconds, epochs, and the accuracy of its vote."""
    home.mkdir(parents=True)
    (home / "config.yml").write_text(yaml.safe_dump(configuration(plain, home)))
    words = [sys.executable, str(ROOT / "search.py"), "--config", "config.yml", "--port", str(port)]
    environment = {**os.environ, "HOME": str(home), "BALLOT_PRELOAD": "30"}
    began = time.monotonic()
    subprocess.run(words, cwd=home, env=environment, check=True, stdout=sys.stderr, timeout=900)
    seconds = time.monotonic() - began
    vote = json.loads((home / "ensemble" / "ensemble.json").read_text(encoding="utf-8"))
    results = [json.loads(f.read_text()) for f in (home / "outputs").glob("*/result.json")]
    return {
        "seconds": seconds,
        "epochs": sum(r["epochs"] for r in results),
        "vote": vote["scores"]["test"]["acc"],
    }


def measure(full: bool, rounds: int = 3, port: int = 9840) -> list[dict[str, Any]]:
    """Run both in turns; a ratio above 1 is better for the shipped search."""
    if not full:
        return [
            {
                "what": "a whole search, 12 trials on digits",
                "skipped": "three minutes a round; --full, or bench/shipped.py",
            }
        ]
    seen: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for plain in (False, True):
                seen[plain].append(search(plain, Path(folder, f"{number}{plain}"), port))
    rows = []
    for key, what, more_is_better in (
        ("seconds", "seconds of a whole search", False),
        ("epochs", "epochs of all trials", False),
        ("vote", "test accuracy of the vote", True),
    ):
        ours, other = ([run[key] for run in seen[plain]] for plain in (False, True))
        ratios = [a / b if more_is_better else b / a for a, b in zip(ours, other)]
        rows.append(
            {
                "what": f"{what}, 12 trials on digits",
                "ours": statistics.median(ours),
                "other": statistics.median(other),
                "ratio": statistics.median(ratios),
                "spread": (min(ratios), max(ratios)),
            }
        )
    return rows


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=9840, help="first port to try for NNI")
    args = parser.parse_args()
    for row in measure(True, args.rounds, args.port):
        low, high = row["spread"]
        print(
            f"{row['what']:<48} ours {row['ours']:8.4g}  plain {row['other']:8.4g}  "
            f"ratio {row['ratio']:.3f} ({low:.3f} to {high:.3f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
