"""From the end of one trial to the first training step of the next, in real searches.

    python bench/overhead.py [--full]

With trials that are forked from a preloaded process and with plain starts, against what a start
cannot do without: NNI's own gap, and `python -c "import torch, torchvision"`. Where Ray is
installed, the same on a cluster of this machine alone, beside NNI. The end is read from the
engine's record, the step is written down by a plugin in the trial.
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
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ballot.engines.nni.database import read_trials  # noqa: E402 - the repository is no installed package
from ballot.engines.ray.asked import installed  # noqa: E402
from ballot.engines.ray.journal import Journal  # noqa: E402
from ballot.runs.trials import TrialRecord  # noqa: E402

# Writes down when this process took its first step.
PLUGIN = """
import json, os, time
from pathlib import Path
from torch.optim.optimizer import register_optimizer_step_post_hook

def note(*_):
    handle.remove()
    told = os.environ.get("BALLOT_RAY_TRIAL")
    name = json.loads(Path(told).read_text())["id"] if told else os.environ["NNI_TRIAL_JOB_ID"]
    Path({folder!r}, name).write_text(str(time.time()))

handle = register_optimizer_step_post_hook(note)
"""


def search(
    home: Path, trials: int, preloaded: bool, port: int, engine: str = "nni"
) -> list[dict[str, float]]:
    """Run a search of tiny trials, one after the other; return each gap and the engine's part."""
    steps = home / "steps"
    steps.mkdir(parents=True)
    (home / "plugin.py").write_text(PLUGIN.format(folder=str(steps)))
    space = {"lr": {"_type": "uniform", "_value": [0.001, 0.002]}}
    (home / "search_space.json").write_text(json.dumps(space))
    config = _config(home, trials, preloaded, engine)
    (home / "config.yml").write_text(yaml.safe_dump(config))
    # As many threads with either engine: NNI's trials would share all cores, Ray's have one each.
    environment = {**os.environ, "HOME": str(home), "BALLOT_PRELOAD": "30", "OMP_NUM_THREADS": "1"}
    words = ["--config", "config.yml", "--no_probe", "--port", str(port)]
    subprocess.run(
        [sys.executable, str(ROOT / "search.py"), *words],
        cwd=home,
        env=environment,
        check=True,
        stdout=sys.stderr,
        timeout=600,
    )
    if engine == "ray":
        (record,) = (home / ".ballot" / "ray").glob("*/trials.jsonl")
        return list(gaps(Journal(record).read(), steps))
    return list(gaps(read_trials((home / "nni" / "_latest").resolve()), steps))


def _config(home: Path, trials: int, preloaded: bool, engine: str) -> dict[str, Any]:
    """Return the configuration of a search whose trials run one after the other."""
    how = "-m ballot.preload " if preloaded else ""
    config: dict[str, Any] = {
        "searchSpaceFile": "search_space.json",
        "trialCodeDirectory": str(ROOT),
        "experimentWorkingDirectory": str(home / "nni"),
        "maxTrialNumber": trials,
        "trialConcurrency": 1,
        "tuner": {"name": "Random"},
        "trainingService": {"platform": "local"},
        "trialCommand": f"python3 {how}train.py --epochs 1 --resume auto --no_tensorboard "
        f"--plugins {home}/plugin.py --out_dir {home}/outputs",
    }
    if engine == "ray":
        del config["experimentWorkingDirectory"]
        config["tuner"] = {"name": "TPE"}
        config["trainingService"] = {"platform": "ray", "address": "local"}
    return config


def gaps(trials: Iterable[TrialRecord], steps: Path) -> Iterable[dict[str, float]]:
    """Read the seconds from each trial's end to the next one's start, and to its first step."""
    found = [trial for trial in trials if trial.started and trial.ended]
    found.sort(key=lambda trial: trial.started)
    for before, trial in pairwise(found[1:]):  # the first one also starts the preloader
        stepped = float((steps / trial.id).read_text())
        yield {
            "step": stepped - before.ended,
            "nni": trial.started - before.ended,
            "own": stepped - trial.started,
            "whole": stepped - float((steps / before.id).read_text()),
        }


def import_seconds() -> float:
    """Time what a start of a process that trains images cannot do without."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, torchvision"], check=True)
    return time.perf_counter() - began


def measure(full: bool, port: int = 9280) -> list[dict[str, Any]]:
    """Measure both ways of starting; `ratio` above 0.8 is what this project asks of itself."""
    import_seconds()  # reads the files into memory
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for preloaded in (True, False):
            seen = search(Path(folder, f"p{preloaded}"), 7 if full else 4, preloaded, port)
            imports = statistics.median(import_seconds() for _ in range(3))
            rows += rows_of("preloaded" if preloaded else "a plain start", seen, imports)
            if preloaded and installed() is not None:
                home = Path(folder, "ray")
                rows += beside(search(home, 7 if full else 4, True, port, "ray"), seen)
    return rows


def beside(ray: list[dict[str, float]], nni: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Return the rows that compare Ray (ours) with NNI (other), both preloaded, in one run."""
    rows = []
    for key, what in (
        ("step", "a trial's end to the next one's first step, Ray and NNI (s)"),
        ("whole", "from first step to first step, Ray and NNI (s)"),
    ):
        ours, other = (statistics.median(gap[key] for gap in gaps) for gaps in (ray, nni))
        ratios = [other / gap[key] for gap in ray]
        spread = min(ratios), max(ratios)
        rows.append(
            {"what": what, "ours": ours, "other": other, "ratio": other / ours, "spread": spread}
        )
    return rows


def rows_of(how: str, seen: list[dict[str, float]], imports: float) -> list[dict[str, Any]]:
    """Return the rows of one search."""
    ours = statistics.median(gap["step"] for gap in seen)
    nni = statistics.median(gap["nni"] for gap in seen)
    other, ratios = imports + nni, [(imports + nni) / gap["step"] for gap in seen]
    own = [gap["own"] for gap in seen]
    return [
        {
            "what": f"a trial's end to the next one's first step, {how} (s)",
            "ours": ours,
            "other": other,
            "ratio": other / ours,
            "spread": (min(ratios), max(ratios)),
        },
        {
            "what": f"of that, from NNI's start of the trial, {how} (s)",
            "ours": statistics.median(own),
            "other": imports,
            "ratio": imports / statistics.median(own),
            "spread": (imports / max(own), imports / min(own)),
        },
    ]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="more trials")
    parser.add_argument("--port", type=int, default=9280, help="first port to try for NNI")
    args = parser.parse_args()
    print(f"{'':<66} {'ours':>7} {'other':>7} {'ratio':>6}  range")
    for row in measure(args.full, args.port):
        low, high = row["spread"]
        print(
            f"{row['what']:<66} {row['ours']:>7.2f} {row['other']:>7.2f} {row['ratio']:>6.2f}"
            f"  {low:.2f}..{high:.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
