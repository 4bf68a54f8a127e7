"""The answer of `search.py --data_dir` beside Optuna's, plain NNI's and a logistic regression's.

    python bench/peers.py DATA_DIR [--minutes 10] [--splits 3] [--who ours optuna nni]

All labelled photos are cut into a training and a test part, several times; the mask competition's
by person, and scored by macro F1, others by accuracy. Each searcher has the same minutes, the same
machine, the same `train.py` and weights, two trials at once, and answers for the test part: ours
with what `search.py` leaves in `ensemble/`, the others with their best trial by validation score.
Optuna (`pip install optuna`) searches with TPE and a median pruner, NNI with its TPE.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import yaml
from linear_probe import HERE, cuts, features, labelled, link, probe

from ballot.data.tables import Table
from metrics import create_metrics

if TYPE_CHECKING:
    import optuna

ROOT = HERE.parent
PROBE_SIZE = 160
# What somebody who knows fine-tuning would search: the network and the weights are given.
NETWORK = ["--model", "timm:tf_efficientnet_lite0", "--recipe", "auto"]
SPACE: dict[str, dict[str, object]] = {
    "lr": {"_type": "loguniform", "_value": [1e-5, 1e-2]},
    "weight_decay": {"_type": "loguniform", "_value": [1e-4, 1e-1]},
    "criterion_args.label_smoothing": {"_type": "choice", "_value": [0.0, 0.1]},
    "augmentation": {
        "_type": "choice",
        "_value": ["BaseAugmentation", "TrivialAugment", "RandAugment"],
    },
    "classifier_start": {"_type": "choice", "_value": ["fitted", "fresh"]},
    "image_size": {"_type": "choice", "_value": [128, 160, 192, 224]},
}


@dataclass(frozen=True)
class Answer:
    """What a searcher came to: probabilities of the test rows by id, and how."""

    probs: pd.DataFrame  # index: id; a column for each class
    seconds: float
    words: str


@dataclass(frozen=True)
class Contest:
    """One cut of the data, and the time that each searcher has."""

    data: Path
    home: Path
    seconds: float
    port: int


def ours(contest: Contest) -> Answer:
    """Run the one command."""
    words = ["--data_dir", contest.data, "--max_duration", f"{contest.seconds:.0f}s"]
    began = time.monotonic()
    _run(contest, "search.py", *words, "--port", contest.port)
    seconds = time.monotonic() - began
    place = next((contest.home / "searches").iterdir())
    results = [json.loads(f.read_text()) for f in place.glob("outputs/*/result.json")]
    members = json.loads((place / "ensemble" / "ensemble.json").read_text())["members"]
    voters = sum(member["weight"] > 0 for member in members)
    return Answer(
        _read(place / "ensemble" / "soft.csv"),
        seconds,
        f"{len(results)} trials, {voters} of them answer, first ballot after {_first(place)}",
    )


def nni(contest: Contest) -> Answer:
    """Run NNI's TPE on plain processes; `search.py` only watches it."""
    (contest.home / "space.json").write_text(json.dumps(SPACE))
    command = ["python3", "train.py", *_trial_words(contest)]
    config = {
        "experimentWorkingDirectory": str(contest.home / "nni"),
        "searchSpaceFile": "space.json",
        "trialCommand": " ".join(command),
        "trialCodeDirectory": str(ROOT),
        "trialConcurrency": 2,
        "maxExperimentDuration": f"{contest.seconds:.0f}s",
        "tuner": {"name": "TPE", "classArgs": {"optimize_mode": "maximize"}},
        "trainingService": {"platform": "local"},
    }
    (contest.home / "config.yml").write_text(yaml.safe_dump(config))
    began = time.monotonic()
    _run(contest, "search.py", "--config", "config.yml", "--port", contest.port)
    return _best(contest.home / "outputs", time.monotonic() - began)


def with_optuna(contest: Contest) -> Answer:
    """Run Optuna's TPE with its median pruner: two trials at once, each a process of train.py."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(),
    )
    began = time.monotonic()
    end = began + contest.seconds
    study.optimize(
        lambda trial: _optuna_trial(trial, contest, end),
        timeout=contest.seconds,
        n_jobs=2,
        catch=(subprocess.SubprocessError,),
    )
    return _best(contest.home / "outputs", time.monotonic() - began)


def _optuna_trial(trial: optuna.Trial, contest: Contest, end: float) -> float:
    """Run one trial, and tell Optuna the validation score of each of its epochs."""
    import optuna

    words = ["--run_name", f"t{trial.number:03}"]
    for name, each in SPACE.items():
        value = each["_value"]
        assert isinstance(value, list)
        drawn = (
            trial.suggest_categorical(name, value)
            if each["_type"] == "choice"
            else trial.suggest_float(name, *value, log=True)
        )
        words += [f"--{name}", str(drawn)]
    history = contest.home / "outputs" / f"t{trial.number:03}" / "history.csv"
    process = _start(contest, "train.py", *_trial_words(contest), *words)
    told = 0
    while process.poll() is None:
        time.sleep(0.5)
        scores = pd.read_csv(history)["val_acc"].tolist() if history.exists() else []
        for epoch in range(told, len(scores)):
            trial.report(scores[epoch], epoch)
        pruned = len(scores) > told and trial.should_prune()
        told = len(scores)
        if pruned or time.monotonic() > end:
            process.send_signal(signal.SIGINT)  # train.py leaves the ballot of its best epoch
            process.wait()
            if pruned:
                raise optuna.TrialPruned
    scores = pd.read_csv(history)["val_acc"].tolist() if history.exists() else []
    if not scores:
        raise subprocess.SubprocessError("no epoch")
    return max(scores)


def _trial_words(contest: Contest) -> list[str]:
    words = ["--data_dir", str(contest.data), "--out_dir", str(contest.home / "outputs")]
    return [*words, *NETWORK, "--no_tensorboard"]


def _start(contest: Contest, script: str, *words: object) -> subprocess.Popen[bytes]:
    threads = max(1, (os.cpu_count() or 1) // 2)
    environment = {**os.environ, "HOME": str(contest.home)}
    if script == "train.py":
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, str(ROOT / script), *map(str, words)]
    log = (contest.home / "log.txt").open("ab")
    with log:
        return subprocess.Popen(command, cwd=contest.home, env=environment, stdout=log, stderr=log)


def _run(contest: Contest, script: str, *words: object) -> None:
    process = _start(contest, script, *words)
    if process.wait():
        sys.exit((contest.home / "log.txt").read_text()[-2000:])


@contextlib.contextmanager
def _place(keep: Path | None, name: str) -> Iterator[Path]:
    """Give a folder for one search: a new one in `keep`, or one that goes."""
    if keep is not None:
        (keep / name).mkdir(parents=True)
        yield keep / name
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _first(place: Path) -> str:
    """Return the seconds from the search's first file to its first ballot."""
    began = (place / "search_space.json").stat().st_mtime
    return f"{min(f.stat().st_mtime for f in place.glob('outputs/*.csv')) - began:.0f} s"


def _best(outputs: Path, seconds: float) -> Answer:
    """Return the ballot of the best trial by validation score."""
    results = [json.loads(f.read_text()) for f in outputs.glob("*/result.json")]
    done = [r for r in results if (outputs / f"{r['run']}.csv").exists() and r["score"] is not None]
    best = max(done, key=lambda result: result["score"])
    words = f"{len(results)} trials, validation score {best['score']:.3f}"
    return Answer(_read(outputs / f"{best['run']}.csv"), seconds, words)


def _read(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, dtype={"id": str}).set_index("id")


WHO: dict[str, Callable[[Contest], Answer]] = {"ours": ours, "optuna": with_optuna, "nni": nni}


def score_of(answer: Answer, table: Table, asked: dict[str, int], metric: str) -> float:
    """Return the test score of an answer."""
    rows = np.array([asked[name] for name in answer.probs.index])
    probs = answer.probs[list(table.classes)].to_numpy()
    return create_metrics((metric,)).score(probs, table.labels[rows], stage="val")[metric]


def main() -> int:
    """Print a row for each cut and searcher, then their means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--splits", type=int, default=3, help="cuts that are used, of five")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the cuts to run")
    parser.add_argument("--keep", type=Path, help="folder for all that the searches leave")
    parser.add_argument("--who", nargs="*", choices=WHO, default=list(WHO))
    parser.add_argument("--port", type=int, default=9860, help="first port to try for NNI")
    args = parser.parse_args()
    table = labelled(args.data_dir)
    table = replace(table, classes=list(table.classes))
    metric = "acc" if table.groups is None else "f1_macro"
    x = features(table, PROBE_SIZE)
    scores: dict[str, list[float]] = {"probe": [], **{who: [] for who in args.who}}
    for number, (train, test) in enumerate(cuts(table, 5, 0.2)[: args.splits]):
        if args.only and number not in args.only:
            continue
        found = create_metrics((metric,)).score(
            probe(x, table, train, test), table.labels[test], stage="val"
        )[metric]
        scores["probe"].append(found)
        print(f"{number} {'probe':<7} {found:.4f}  logistic regression at {PROBE_SIZE} px")
        for who in args.who:
            with _place(args.keep, f"{number}-{who}") as folder:
                data, home = Path(folder, "photos"), Path(folder, "home")
                home.mkdir()
                asked = link(table, train, test, data)
                answer = WHO[who](Contest(data, home, 60 * args.minutes, args.port))
                found = score_of(answer, table, asked, metric)
            scores[who].append(found)
            print(f"{number} {who:<7} {found:.4f}  {answer.seconds:.0f} s, {answer.words}")
            sys.stdout.flush()
    for who, each in scores.items():
        error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else float("nan")
        print(f"mean {who:<7} {statistics.mean(each):.4f} +- {error:.4f}   test {metric}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
