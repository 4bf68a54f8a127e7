"""A long search of tiny trials: do processes, memory, files, sockets or threads pile up?

    python bench/soak.py [--trials 500] [--engine ray]

Everything that works for the search is looked at every two seconds: search.py, the preloader, and
NNI's manager and tuner, or on Ray the driver, the receiver, a worker, raylet and head. Early (a
tenth of the trials, from the first page of the report on, for which search.py loads libraries once)
is compared with late (the last tenth); trials themselves come and go and are only counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ballot.engines.nni.database import read_trials  # noqa: E402 - the repository is no installed package
from ballot.engines.ray.journal import Journal  # noqa: E402

COMMAND = (
    "python3 -m ballot.preload train.py --resume auto --epochs 1 --dataset dummy "
    "--dataset_args.rows 40 --image_size 16 --no_tensorboard"
)


ROLES = {
    "manager": "main.js",
    "tuner": "--exp_params",
    "driver": "ballot.engines.ray.driver",
    "receiver": "ray::Receiver",
    "worker": "ray::ballot",
    "raylet": "/raylet/raylet",
    "head": "gcs_server",
    "preloader": "ballot.preload.server",
    "search.py": "search.py",
}


def roles(home: Path) -> dict[str, psutil.Process]:
    """Return the processes that last as long as the search, by what they do."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME") != str(home):
                continue
            line = " ".join(process.cmdline())
            for role, mark in ROLES.items():
                if mark in line and not line.startswith(("sh ", "/bin/sh ", "bash ")):
                    oldest = found.get(role)
                    if oldest is None or process.create_time() < oldest.create_time():
                        found[role] = process
    return found


def look(home: Path) -> dict[str, dict[str, float]]:
    """Return memory (MiB), open files and threads of each, and how many processes there are."""
    seen: dict[str, dict[str, float]] = {}
    for role, process in roles(home).items():
        with contextlib.suppress(psutil.Error):
            seen[role] = {
                "memory (MiB)": process.memory_info().rss / 2**20,
                "open files": process.num_fds(),
                "threads": process.num_threads(),
            }
    mine = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mine += process.environ().get("HOME") == str(home)
    seen["all together"] = {"processes": mine}
    return seen


def _config(home: Path, trials: int, engine: str) -> dict[str, Any]:
    """Return the configuration of a search of `trials` tiny trials, two at once."""
    config: dict[str, Any] = {
        "searchSpaceFile": "search_space.json",
        "trialCodeDirectory": str(ROOT),
        "experimentWorkingDirectory": str(home / "nni"),
        "maxTrialNumber": trials,
        "trialConcurrency": 2,
        "trainingService": {"platform": "local"},
        "tuner": {
            "className": "ballot.engines.nni.tuner.Tuner",
            "codeDirectory": str(ROOT),
            "classArgs": {"optimize_mode": "maximize"},
        },
        "trialCommand": f"{COMMAND} --out_dir {home}/outputs",
    }
    if engine == "ray":
        del config["experimentWorkingDirectory"]
        config["trainingService"] = {"platform": "ray", "address": "local"}
    return config


def soak(
    home: Path, trials: int, port: int, engine: str = "nni"
) -> tuple[list[tuple[int, dict]], int, float]:
    """Run the search; return what was seen with how many trials had ended, and the seconds.

    Between them stands how many trials had ended at the first page.
    """
    space = {"lr": {"_type": "loguniform", "_value": [0.0001, 0.1]}}
    (home / "search_space.json").write_text(json.dumps(space))
    config = _config(home, trials, engine)
    (home / "config.yml").write_text(yaml.safe_dump(config))
    words = [sys.executable, str(ROOT / "search.py"), "--config", "config.yml", "--no_probe"]
    words += ["--port", str(port), "--keep_checkpoints", "3"]
    environment = {**os.environ, "HOME": str(home), "BALLOT_PRELOAD": "60"}
    began, seen, paged = time.monotonic(), [], 0
    search = subprocess.Popen(words, cwd=home, env=environment, stdout=sys.stderr)
    while search.poll() is None:
        time.sleep(2)
        ended = ended_trials(home)
        seen.append((ended, look(home)))
        paged = paged or (ended if (home / "report.html").exists() else 0)
    if search.returncode:
        raise RuntimeError(f"the search ended with status {search.returncode}")
    done = len(list((home / "outputs").glob("*.csv")))
    if done != trials:
        raise RuntimeError(f"{done} ballots of {trials} trials")
    return seen, paged, time.monotonic() - began


def ended_trials(home: Path) -> int:
    """Count the trials that have ended, by the record of either engine."""
    folders = list((home / "nni").glob("*/db"))
    records = list((home / ".ballot" / "ray").glob("*/trials.jsonl"))
    found = [trial for folder in folders for trial in read_trials(folder.parent)]
    found += [trial for record in records for trial in Journal(record).read()]
    return sum(trial.has_ended for trial in found)


def rows_of(seen: list[tuple[int, dict]], paged: int, trials: int) -> list[dict[str, Any]]:
    """Compare a tenth of the trials with the last."""
    first = paged if trials / 10 < paged < trials / 2 else trials / 10
    early = [s for ended, s in seen if first <= ended < first + trials / 10]
    late = [s for ended, s in seen if trials * 0.9 <= ended < trials]
    rows = []
    for role in ("all together", *ROLES):
        for what in next((s[role] for s in late if role in s), {}):
            a = [s[role][what] for s in early if role in s]
            b = [s[role][what] for s in late if role in s]
            if a and b:
                before, last = statistics.median(a), statistics.median(b)
                rows.append(
                    {
                        "what": f"{role}: {what}, {trials} trials",
                        "ours": last,
                        "other": before,
                        "ratio": before / last,
                        "spread": (min(a) / max(b), max(a) / min(b)),
                    }
                )
    return rows


def measure(
    full: bool, trials: int | None = None, port: int = 9680, engine: str = "nni"
) -> list[dict[str, Any]]:
    """Return late against early; a ratio well below 1 is something that grows."""
    trials = trials or (500 if full else 30)
    with tempfile.TemporaryDirectory() as folder:
        seen, paged, seconds = soak(Path(folder), trials, port, engine)
    print(f"{trials} trials in {seconds:.0f} s, all with a ballot", file=sys.stderr)
    return rows_of(seen, paged, trials)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--port", type=int, default=9680, help="first port to try for NNI")
    parser.add_argument("--engine", default="nni", choices=("nni", "ray"))
    args = parser.parse_args()
    for row in measure(True, args.trials, args.port, args.engine):
        low, high = row["spread"]
        print(
            f"{row['what']:<44} early {row['other']:8.1f}  late {row['ours']:8.1f}  "
            f"ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
