"""Which rule of voting answers best: rules over random subsets of recorded trials.

    python bench/answers.py [--draws 20] [--all]

Every bank in bench/banks holds what trials of a search answered on validation and on test rows
(bench/record_banks.py). From each, subsets of 6, 12 and 24 trials are drawn; each rule sees their
validation rows and is judged on test rows. A figure is the test error against that of the best
single trial by validation, in per cent, and its standard error over test rows: -20 ±5 says that a
fifth of the errors is gone. `--all` shows every candidate, else those that docs/vote.md has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from ballot.vote import combine  # noqa: E402
from ballot.vote.comparison import SharedRows, independent_share  # noqa: E402
from ballot.vote.options import VoteOptions  # noqa: E402
from ballot.vote.rules import mixture_weights, weigh  # noqa: E402
from ballot.vote.selection import rehearse  # noqa: E402

SIZES = (6, 12, 24)
SINGLE, SHIPPED = "best single by validation", "**`--select auto` (what is done)**"
VOTED = "`--select auto`, were the vote always taken"
CAREFUL = "`--select auto`, the single trial from one standard error on"


@dataclass(frozen=True)
class Trials:
    """Trials of a bank: `val` `[M, N, C]` and `test` `[M, T, C]`, labels, groups and networks."""

    val: np.ndarray
    test: np.ndarray
    val_targets: np.ndarray
    test_targets: np.ndarray
    groups: list[str] | None
    models: list[str]

    def part(self, chosen: np.ndarray) -> Trials:
        """Return some of the trials."""
        models = [self.models[i] for i in chosen]
        return Trials(
            self.val[chosen],
            self.test[chosen],
            self.val_targets,
            self.test_targets,
            self.groups,
            models,
        )

    def scores(self, metric: str) -> np.ndarray:
        """Return each trial's score on validation rows."""
        return np.array([combine.score(metric, probs, self.val_targets) for probs in self.val])


Rule = Callable[[Trials], np.ndarray]  # trials -> weights [M]


def read_bank(path: Path) -> Trials:
    """Read a bank; its numbers are kept in two bytes, so that rows have to be normalised."""
    bank = np.load(path)
    val, test = (bank[key].astype(np.float64) for key in ("val", "test"))
    val, test = (probs / probs.sum(axis=2, keepdims=True) for probs in (val, test))
    groups = [str(number) for number in bank["groups"]] or None
    models = [json.loads(text)["model"] for text in bank["about"]]
    val_targets, test_targets = (bank[f"{key}_targets"].astype(int) for key in ("val", "test"))
    return Trials(val, test, val_targets, test_targets, groups, models)


# Rules


def best(number: int, trials: Trials, metric: str = "acc") -> np.ndarray:
    """Weigh the best `number` trials alike."""
    kept = combine.ranking(metric, trials.scores(metric).tolist())[:number]
    return np.isin(np.arange(len(trials.val)), kept) / number


def better_half(trials: Trials, metric: str = "acc") -> np.ndarray:
    """Weigh the better half alike."""
    return best((len(trials.val) + 1) // 2, trials, metric)


def greedy(trials: Trials, metric: str = "nll", bags: int = 20) -> np.ndarray:
    """Choose greedily with replacement, in bags."""
    counts = np.array(combine.greedy(trials.val, trials.val_targets, metric, bags=bags))
    return counts / counts.sum()


def shrunk(rows: float, trials: Trials) -> np.ndarray:
    """Pull the greedy weights to those of the better half, the harder the fewer rows there are."""
    share = rows / (rows + len(trials.val_targets))
    return share * better_half(trials) + (1 - share) * greedy(trials)


def by_score(pull: float, trials: Trials) -> np.ndarray:
    """Weigh by a softmax of the validation accuracy."""
    weights = np.exp(pull * (trials.scores("acc") - trials.scores("acc").max()))
    return weights / weights.sum()


def of_each_model(number: int, trials: Trials) -> np.ndarray:
    """Weigh the best few trials of each architecture alike."""
    scores, weights = trials.scores("acc"), np.zeros(len(trials.val))
    for model in set(trials.models):
        own = [i for i in np.argsort(-scores, kind="stable") if trials.models[i] == model]
        weights[own[:number]] = 1
    return weights / weights.sum()


def likeliest(rows: float, trials: Trials) -> np.ndarray:
    """Weigh by what makes the validation rows likeliest, the better half being the start."""
    start = better_half(trials)
    true = trials.val[:, np.arange(len(trials.val_targets)), trials.val_targets]
    return mixture_weights(true, start, rows)


def poll_of(trials: Trials) -> SharedRows:
    """Return the trials' validation rows as a vote reads them."""
    ids = [str(row) for row in range(len(trials.val_targets))]
    members = list(range(len(trials.val)))
    return SharedRows(members, ids, trials.val_targets, trials.groups, trials.val)


def weighed(trials: Trials) -> np.ndarray:
    """Weigh as `--select auto` does where the vote is taken."""
    share = independent_share(poll_of(trials))
    return np.array(weigh(trials.val, trials.val_targets, "acc", share))


def shipped(trials: Trials, errors: float = np.inf) -> np.ndarray:
    """Weigh as `--select auto` does; the best single trial answers where the vote was worse.

    A loss of more than `errors` standard errors counts as worse, too: of 0, every loss does.
    """
    equal = [1.0] * len(trials.val)
    honest = rehearse(VoteOptions(select="auto"), equal, poll_of(trials)).honest
    assert honest.error is not None  # accuracy has one
    if honest.worse or honest.gain < -errors * honest.error:
        return best(1, trials)
    return weighed(trials)


SHOWN: dict[str, Rule] = {
    SINGLE: partial(best, 1),
    "mean of all": lambda trials: np.full(len(trials.val), 1 / len(trials.val)),
    "mean of the better half": better_half,
    "mean of the best 5": partial(best, 5),
    "softmax of 20 x accuracy": partial(by_score, 20),
    "greedy by accuracy, 20 bags": partial(greedy, metric="acc"),
    "greedy by log loss, 20 bags": greedy,
    "the same, shrunk to the better half": partial(shrunk, 100),
    "the best 3 of each architecture": partial(of_each_model, 3),
    "likeliest weights from the better half": partial(likeliest, 50),
    VOTED: weighed,
    SHIPPED: shipped,
    CAREFUL: partial(shipped, errors=1),
    "`--select auto`, the single trial at any loss": partial(shipped, errors=0),
}
OTHERS: dict[str, Rule] = {
    "better half by log loss": partial(better_half, metric="nll"),
    "greedy by log loss, one round": partial(greedy, bags=1),
    "softmax of 10 x accuracy": partial(by_score, 10),
    "softmax of 40 x accuracy": partial(by_score, 40),
    "shrunk, 400 rows": partial(shrunk, 400),
    "likeliest weights, 200 rows": partial(likeliest, 200),
}
BEFORE = "temperature before pooling, then "


def heated(trials: Trials) -> Trials:
    """Give each trial the temperature that suits its validation rows."""
    warmth = [combine.fit_temperature(probs, trials.val_targets) for probs in trials.val]
    val, test = (
        np.stack([combine.apply_temperature(p, t) for p, t in zip(side, warmth, strict=True)])
        for side in (trials.val, trials.test)
    )
    return Trials(val, test, trials.val_targets, trials.test_targets, trials.groups, trials.models)


# Measurement


def subsets(trials: Trials, draws: int) -> Iterator[Trials]:
    """Draw random subsets; the same ones every time."""
    rng, most = np.random.default_rng(0), len(trials.val)
    for size in sorted({min(size, most - 1) for size in SIZES}):
        for _ in range(draws):
            yield trials.part(np.sort(rng.permutation(most)[:size]))


def errors(trials: Trials, rules: dict[str, Rule], draws: int) -> dict[str, np.ndarray]:
    """Return for each rule which test rows each of its votes answers wrongly `[V, T]`."""
    wrong = {name: [] for name in rules}  # type: dict[str, list[np.ndarray]]
    for few in subsets(trials, draws):
        warm = heated(few) if any(name.startswith(BEFORE) for name in rules) else few
        for name, rule in rules.items():
            seen = warm if name.startswith(BEFORE) else few
            probs = np.tensordot(rule(seen), seen.test, 1)
            wrong[name].append(probs.argmax(axis=1) != seen.test_targets)
    return {name: np.array(each, dtype=float) for name, each in wrong.items()}


def against(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return by how many per cent of `other` an error is larger, and its standard error."""
    change = (one - other).mean(axis=0)
    return (
        100 * change.mean() / other.mean(),
        100 * change.std(ddof=1) / np.sqrt(len(change)) / other.mean(),
    )


def banks() -> dict[str, Trials]:
    """Return all banks by name."""
    return {path.stem: read_bank(path) for path in sorted((HERE / "banks").glob("*.npz"))}


def measure(full: bool) -> list[dict[str, object]]:
    """Compare the test error of the shipped vote with that of the best single trial."""
    rules = {name: SHOWN[name] for name in (SINGLE, SHIPPED)}
    rows: list[dict[str, object]] = []
    for name, trials in banks().items():
        found = errors(trials, rules, 20 if full else 5)
        single, voted = (float(found[each].mean()) for each in (SINGLE, SHIPPED))
        what = f"test error of the vote of {name}, to that of the best single trial"
        rows.append({"what": what, "ours": voted, "other": single, "ratio": single / voted})
    return rows


def verdict(found: dict[str, dict[str, np.ndarray]], other: str) -> str:
    """Say on how many banks the shipped rule is worse than another by more than its error."""
    changes = [against(each[SHIPPED], each[other]) for each in found.values()]
    worse = sum(change > error for change, error in changes)
    ratios = [np.log(each[SHIPPED].mean() / each[other].mean()) for each in found.values()]
    mean = 100 * (np.exp(np.mean(ratios)) - 1)
    return (
        f"shipped against {other}: {mean:+.1f} % on average, worse by more than a standard "
        f"error on {worse} of {len(found)} banks"
    )


def single_votes(found: dict[str, dict[str, np.ndarray]], rule: str) -> str:
    """Say how many votes of all banks are better and worse than the best single trial."""
    better = worse = count = 0
    for each in found.values():
        change = each[rule] - each[SINGLE]
        mean, error = change.mean(axis=1), change.std(axis=1, ddof=1) / np.sqrt(change.shape[1])
        better, worse = better + int((mean < -error).sum()), worse + int((mean > error).sum())
        count += len(change)
    return (
        f"{rule}: of {count} votes {better} are better and {worse} worse than the single trial "
        "by more than a standard error"
    )


def main() -> int:
    """Print the table: a line for each rule, a column for each bank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=20, help="subsets of each size")
    parser.add_argument("--all", action="store_true", help="show every candidate")
    args = parser.parse_args()
    rules = SHOWN | (OTHERS if args.all else {})
    warm = ("mean of the better half", "greedy by log loss, 20 bags", SHIPPED)
    rules |= {BEFORE + name: rules[name] for name in warm[: None if args.all else 1]}
    found = {name: errors(trials, rules, args.draws) for name, trials in banks().items()}
    print("| rule |" + "".join(f" {name} |" for name in found) + " average |")
    print("| --- |" + " --- |" * (len(found) + 1))
    for rule in rules:
        cells, ratios = [], []
        for each in found.values():
            change, error = against(each[rule], each[SINGLE])
            cells.append(
                f"{each[rule].mean():.3f}" if rule == SINGLE else f"{change:+.0f} ±{error:.0f}"
            )
            ratios.append(np.log(each[rule].mean() / each[SINGLE].mean()))
        mean = 100 * (np.exp(np.mean(ratios)) - 1)
        print(f"| {rule} | " + " | ".join(cells) + f" | {mean:+.1f} |")
    for other in (SINGLE, "mean of the better half", "greedy by log loss, 20 bags"):
        print(verdict(found, other))
    for rule in (VOTED, SHIPPED, CAREFUL):
        print(single_votes(found, rule))
    return 0


if __name__ == "__main__":
    sys.exit(main())
