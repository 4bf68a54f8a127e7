"""Tuners and stopping rules side by side, in process, on recorded and made-up objectives.

    python bench/search.py [--full] [--seeds 20]

A ratio is that of mean regrets (the best possible score minus the best found): above 1 ours is the
better one; its range is two standard errors over the seeds, each seed drawing for both sides. The
recorded objective is a regression (extremely randomised trees, scikit-learn) over the trials of
bench/curves.csv, which are real runs of train.py.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
import logging
import math
import random
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nni import NoMoreTrialError  # noqa: E402
from nni.algorithms.hpo.medianstop_assessor import MedianstopAssessor  # noqa: E402
from nni.algorithms.hpo.random_tuner import RandomTuner  # noqa: E402
from nni.algorithms.hpo.tpe_tuner import TpeTuner  # noqa: E402
from nni.assessor import AssessResult  # noqa: E402

from ballot.engines.nni.assessor import Assessor  # noqa: E402 - no installed package
from ballot.engines.nni.tuner import Tuner  # noqa: E402
from ballot.tuning.space import Space, parse, point_of  # noqa: E402

TABLE = ROOT / "bench" / "curves.csv"
FIRST = 3  # of 15 epochs: what the assessor takes by itself, and the best Medianstop here


@dataclass(frozen=True)
class Objective:
    """A search space and its score (None: the trial fails), of which `best` is the greatest."""

    name: str
    space: dict[str, Any]
    score: Callable[[dict[str, Any]], float | None]
    best: float
    fails: bool = False


# ---------------------------------------------------------------------------------- objectives


def read_curves() -> list[dict[str, Any]]:
    """Read the recorded trials: values, status, and validation accuracies by epoch."""
    with TABLE.open(newline="") as file:
        return [
            {
                **row,
                "values": json.loads(row["values"]),
                "seconds": float(row["seconds"]),
                "val_acc": [float(word) for word in row["val_acc"].split()],
            }
            for row in csv.DictReader(file)
        ]


def recorded() -> Objective:
    """Return the best epoch's validation accuracy on the digits, as 120 trials tell it."""
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

    space = json.loads(TABLE.with_name("curves_space.json").read_text())
    dimensions, rows = parse(space), read_curves()
    points = np.array([features(dimensions, row["values"]) for row in rows])
    failed = np.array([row["status"] == "failed" for row in rows])
    scores = np.array([max(row["val_acc"], default=0.0) for row in rows])
    trees = dict(n_estimators=100, random_state=0)
    fit = ExtraTreesRegressor(min_samples_leaf=2, **trees).fit(points[~failed], scores[~failed])
    table = _table(fit)
    fails = _table(ExtraTreesClassifier(**trees).fit(points, failed)) if failed.any() else None

    def score(values: dict[str, Any]) -> float | None:
        x = features(dimensions, values)
        if fails is not None and fails(x) > 0.5:
            return None
        return table(x)

    tuner = RandomTuner(seed=0)
    tuner.update_search_space(space)
    drawn = [score(tuner.generate_parameters(i)) for i in range(5000)]
    return Objective("recorded trials", space, score, max(s for s in drawn if s is not None))


def _table(forest: Any) -> Callable[[np.ndarray], float]:
    """Return a forest's prediction of one row, without scikit-learn's 10 ms of checks."""
    trees = [tree.tree_ for tree in forest.estimators_]

    def predict(x: np.ndarray) -> float:
        row = x.astype(np.float32)[None]
        values = [tree.predict(row).reshape(-1) for tree in trees]
        return float(np.mean([v[-1] if len(v) > 1 else v[0] for v in values]))

    return predict


def features(space: Space, values: dict[str, Any]) -> np.ndarray:
    """Return a configuration as numbers: options with an order in 0..1, others one column each."""
    point = point_of(space, values) or {}
    numbers: list[float] = []
    for key, dimension in space.items():
        if dimension.has_order:
            numbers.append(dimension.to_unit(point[key]) if key in point else -0.5)
        else:
            numbers += [float(point.get(key, -1) == k) for k in range(dimension.size or 0)]
    return np.array(numbers)


def choice(*values: Any) -> dict[str, Any]:
    """Return a choice in NNI's words."""
    return {"_type": "choice", "_value": list(values)}


def ranged(kind: str, *values: float) -> dict[str, Any]:
    """Return a range in NNI's words."""
    return {"_type": kind, "_value": list(values)}


def mixed() -> Objective:
    """Return a made-up training: three optimisers with rates of their own, sizes, a schedule."""
    space = {
        "optimizer": choice(
            {"_name": "a", "lr": ranged("loguniform", 1e-5, 1e-1)},
            {
                "_name": "b",
                "lr": ranged("loguniform", 1e-4, 1),
                "momentum": ranged("uniform", 0, 1),
            },
            {"_name": "c"},
        ),
        "batch_size": choice(16, 32, 64, 128, 256),
        "depth": ranged("randint", 1, 9),
        "dropout": ranged("quniform", 0, 0.6, 0.1),
        "decay": ranged("lognormal", -5, 2),
        "schedule": choice("flat", "steps", "cosine", "cycle"),
    }

    def score(values: dict[str, Any]) -> float:
        o, size = values["optimizer"], math.log2(values["batch_size"] / 64)
        loss = {"flat": 0.06, "steps": 0.02, "cosine": 0.0, "cycle": 0.03}[values["schedule"]]
        if o["_name"] == "a":  # a larger batch wants a larger rate
            loss += 0.05 * (math.log10(o["lr"]) + 2.7 - 0.2 * size) ** 2
        elif o["_name"] == "b":
            rate = math.log10(o["lr"] / (1.001 - o["momentum"]))
            loss += 0.02 + 0.05 * (rate - 0.2 * size) ** 2 + 0.03 * (o["momentum"] - 0.9) ** 2
        else:
            loss += 0.15
        loss += 0.004 * (values["depth"] - 6) ** 2 + 0.2 * (values["dropout"] - 0.3) ** 2
        loss += 0.004 * (math.log(values["decay"]) + 6) ** 2 + 0.01 * size**2
        return 1 - loss

    return Objective("mixed and conditional", space, score, 1.0)


def failing() -> Objective:
    """Return a made-up training of which 40 % fail: too little memory, or a rate too high."""
    space = {
        "model": choice("small", "middle", "large", "huge"),
        "image_size": choice(96, 128, 160, 192, 224, 256, 320),
        "batch_size": choice(16, 32, 64, 128, 256),
        "lr": ranged("loguniform", 1e-5, 1),
        "dropout": ranged("uniform", 0, 0.6),
    }
    cost = {"small": 1, "middle": 2, "large": 4, "huge": 8}
    gain = {"small": 0.10, "middle": 0.05, "large": 0.02, "huge": 0.0}

    def score(values: dict[str, Any]) -> float | None:
        memory = cost[values["model"]] * values["image_size"] ** 2 * values["batch_size"]
        if memory > 1.4e7 or values["lr"] > 0.2:
            return None
        rate = math.log10(values["lr"]) + 3 - 0.15 * math.log2(values["batch_size"] / 64)
        loss = gain[values["model"]] + 0.04 * rate**2 + 0.1 * (values["dropout"] - 0.2) ** 2
        return 1 - loss - 0.08 * math.log2(320 / values["image_size"])

    tuner = RandomTuner(seed=0)
    tuner.update_search_space(space)
    drawn = [score(tuner.generate_parameters(i)) for i in range(20000)]
    assert abs(sum(s is None for s in drawn) / len(drawn) - 0.4) < 0.02
    return Objective("40 % fail", space, score, 1.0, fails=True)


def hartmann() -> Objective:
    """Return Hartmann's function of six numbers, a usual test of optimisers (best: 3.32237)."""
    a = np.array(
        [
            [10, 3, 17, 3.5, 1.7, 8],
            [0.05, 10, 17, 0.1, 8, 14],
            [3, 3.5, 1.7, 10, 17, 8],
            [17, 8, 0.05, 10, 0.1, 14],
        ]
    )
    p = 1e-4 * np.array(
        [
            [1312, 1696, 5569, 124, 8283, 5886],
            [2329, 4135, 8307, 3736, 1004, 9991],
            [2348, 1451, 3522, 2883, 3047, 6650],
            [4047, 8828, 8732, 5743, 1091, 381],
        ]
    )
    weights = np.array([1.0, 1.2, 3.0, 3.2])

    def score(values: dict[str, Any]) -> float:
        x = np.array([values[f"x{k}"] for k in range(6)])
        return float(weights @ np.exp(-(a * (x - p) ** 2).sum(axis=1)))

    space = {f"x{k}": ranged("uniform", 0, 1) for k in range(6)}
    return Objective("Hartmann 6", space, score, 3.32237)


# -------------------------------------------------------------------------------------- tuners


class Nni:
    """A tuner of NNI's, told what NNI's dispatcher tells it; of a crash nothing but the end."""

    def __init__(self, tuner: Any, space: dict[str, Any], floor: float | None = None) -> None:
        self.tuner, self.floor = tuner, floor
        tuner.update_search_space(space)

    def ask(self, trial: int) -> dict[str, Any]:
        """Return a configuration."""
        return self.tuner.generate_parameters(trial)

    def tell(self, trial: int, values: dict[str, Any], score: float | None) -> None:
        """Report how it went."""
        told = self.floor if score is None else score
        if told is not None:
            self.tuner.receive_trial_result(trial, values, told)
        if hasattr(self.tuner, "trial_end"):
            self.tuner.trial_end(trial, told is not None)


class Optuna:
    """Optuna's TPE with its own defaults, told of failures in its own way."""

    def __init__(self, space: dict[str, Any], seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.TPESampler(seed=seed)
        self.space, self.failed = space, optuna.trial.TrialState.FAIL
        self.study, self.trials = optuna.create_study(direction="maximize", sampler=sampler), {}

    def ask(self, trial: int) -> dict[str, Any]:
        """Return a configuration."""
        self.trials[trial] = self.study.ask()
        return self._values(self.trials[trial], self.space, "")

    def tell(self, trial: int, _values: dict[str, Any], score: float | None) -> None:
        """Report how it went."""
        failed = {"state": self.failed} if score is None else {}
        self.study.tell(self.trials[trial], score, **failed)

    def _values(self, trial: Any, space: dict[str, Any], path: str) -> dict[str, Any]:
        return {
            key: self._value(trial, spec["_type"], spec["_value"], path + key)
            for key, spec in space.items()
        }

    def _value(self, trial: Any, kind: str, v: list[Any], name: str) -> Any:
        if kind == "choice" and isinstance(v[0], dict):
            number = trial.suggest_categorical(name, list(range(len(v))))
            inner = {key: spec for key, spec in v[number].items() if key != "_name"}
            return {"_name": v[number]["_name"], **self._values(trial, inner, f"{name}{number}")}
        if kind == "choice":
            return trial.suggest_categorical(name, v)
        if kind == "randint":
            return trial.suggest_int(name, v[0], v[1] - 1)
        if kind == "lognormal":  # Optuna has none: the range in which 95 % of it lie
            return math.exp(trial.suggest_float(name, v[0] - 2 * v[1], v[0] + 2 * v[1]))
        step = {"step": v[2]} if kind == "quniform" else {}
        return trial.suggest_float(name, v[0], v[1], log="log" in kind, **step)


def make(name: str, space: dict[str, Any], seed: int, trials: int) -> Any:
    """Make a tuner as a person would who takes its defaults."""
    if name == "ours":
        return Nni(Tuner("maximize", seed, max_trials=trials), space)
    if name == "NNI's TPE":
        return Nni(TpeTuner("maximize", seed), space)
    if name == "NNI's TPE, told a floor":
        return Nni(TpeTuner("maximize", seed), space, floor=0.0)
    if name == "NNI's Random":
        return Nni(RandomTuner(seed), space)
    return Optuna(space, seed)


def run(
    name: str, objective: Objective, trials: int, at_once: int, seed: int
) -> list[float | None]:
    """Return the scores in the order of the trials' starts; each takes its own time."""
    tuner, clock = make(name, objective.space, seed, trials), random.Random(seed)
    running: list[tuple[float, int, dict[str, Any]]] = []
    scores: list[float | None] = []
    now = 0.0
    while len(scores) < trials or running:
        if len(scores) < trials and len(running) < at_once:
            try:
                values = tuner.ask(len(scores))
            except NoMoreTrialError:
                break
            heapq.heappush(running, (now + clock.lognormvariate(0, 0.3), len(scores), values))
            scores.append(objective.score(values))
            continue
        now, trial, values = heapq.heappop(running)
        tuner.tell(trial, values, scores[trial])
    return scores


def regret(objective: Objective, scores: list[float | None]) -> float:
    """Return how far the best of the scores is from the best there is."""
    return objective.best - max((s for s in scores if s is not None), default=0.0)


# ------------------------------------------------------------------------------------ stopping


def stopped_search(assessor: Any, curves: list[list[float]], at_once: int) -> tuple[float, int]:
    """Let trials run, an epoch of each in turn, and return the best score and the epochs run."""
    waiting, running = list(enumerate(curves))[::-1], dict[int, int]()
    best, epochs = 0.0, 0
    while waiting or running:
        while waiting and len(running) < at_once:
            running[waiting.pop()[0]] = 0
        for trial in list(running):
            running[trial] += 1
            seen = curves[trial][: running[trial]]
            best, epochs = max(best, *seen), epochs + 1
            good = assessor is None or assessor.assess_trial(str(trial), seen) is AssessResult.Good
            if not good or len(seen) == len(curves[trial]):
                del running[trial]
                if assessor is not None:
                    assessor.trial_end(str(trial), good)
    return best, epochs


def measure_stopping(trials: int, at_once: int, seeds: int) -> Iterator[dict[str, Any]]:
    """Compare the epochs of a search with stopping and of the same one without."""
    curves = [row["val_acc"] for row in read_curves() if row["val_acc"]]
    rules = {
        "halving": lambda: Assessor("maximize", start_step=FIRST),
        "Medianstop": lambda: MedianstopAssessor("maximize", start_step=FIRST),
    }
    for name, build in rules.items():
        pairs = []
        for seed in range(seeds):
            order = random.Random(seed).sample(curves, trials)
            pairs.append(
                (*stopped_search(build(), order, at_once), *stopped_search(None, order, at_once))
            )
        ratios = [whole / short for _, short, _, whole in pairs]
        lost = statistics.mean(full - found for found, _, full, _ in pairs)
        same = sum(found == full for found, _, full, _ in pairs)
        yield {
            "what": f"epochs, {name}, {trials} trials, {at_once} at once "
            f"(the same best in {same}/{seeds}, mean loss {lost:.4f})",
            "ours": statistics.mean(short for _, short, _, _ in pairs),
            "other": statistics.mean(whole for *_, whole in pairs),
            "ratio": statistics.median(ratios),
            "spread": (min(ratios), max(ratios)),
        }


# ---------------------------------------------------------------------------------- the table


def compare(what: str, ours: list[float], other: list[float]) -> dict[str, Any]:
    """Return a row: means, their ratio, and the range of two standard errors of it (bootstrap)."""
    draws = np.random.default_rng(0).integers(len(ours), size=(1000, len(ours)))
    a, b = np.array(ours)[draws].mean(axis=1), np.array(other)[draws].mean(axis=1)
    low, high = np.quantile(b / np.maximum(a, 1e-9), [0.025, 0.975])
    mean, theirs = statistics.mean(ours), statistics.mean(other)
    return {
        "what": what,
        "ours": mean,
        "other": theirs,
        "ratio": theirs / max(mean, 1e-9),
        "spread": (float(low), float(high)),
    }


def measure_tuners(
    objective: Objective, trials: list[int], at_once: int, seeds: int
) -> Iterator[dict[str, Any]]:
    """Compare our tuner with each other one, by regret, and by failures where trials fail."""
    others = ["NNI's TPE", "NNI's Random", "Optuna's TPE"]
    if objective.fails:
        others.insert(1, "NNI's TPE, told a floor")
    runs = {
        name: [run(name, objective, max(trials), at_once, seed) for seed in range(seeds)]
        for name in others
    }
    for number in trials:
        mine = [run("ours", objective, number, at_once, seed) for seed in range(seeds)]
        lost = [regret(objective, scores) for scores in mine]
        for name in others:
            where = f"{objective.name}, {number} trials, {at_once} at once, {name}"
            theirs = [scores[:number] for scores in runs[name]]
            yield compare(f"regret: {where}", lost, [regret(objective, s) for s in theirs])
            if objective.fails:
                failed = [[s.count(None) / number for s in of] for of in (mine, theirs)]
                yield compare(f"failed: {where}", *failed)


def rows_of(full: bool, seeds: int) -> Iterator[dict[str, Any]]:
    """Yield everything, as it is measured."""
    for name in ("nni", "medianstop_Assessor"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for trials, at_once in ((12, 2), (20, 4), (50, 4)) if full else ((50, 4),):
        yield from measure_stopping(trials, at_once, seeds)
    for build in (recorded, failing, mixed, hartmann) if full else (failing,):
        objective = build()
        for at_once in (1, 4):
            trials, repeats = ([20, 50, 80], seeds) if full else ([20, 50], min(seeds, 10))
            yield from measure_tuners(objective, trials, at_once, repeats)


def measure(full: bool) -> list[dict[str, Any]]:
    """Measure everything; `ratio` above 1 says that ours is better."""
    return list(rows_of(full, 20))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="what the claims are about")
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    print(f"{'':<74} {'ours':>8} {'other':>8} {'ratio':>6}  95 %")
    for row in rows_of(args.full, args.seeds):
        low, high = row["spread"]
        print(
            f"{row['what']:<74} {row['ours']:>8.4f} {row['other']:>8.4f} {row['ratio']:>6.2f}  "
            f"{low:.2f}..{high:.2f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
