"""The arithmetic of a vote: combine, choose, calibrate, stack and score arrays of predictions.

Shapes: `probs` is `[N, C]` float64, `values` of all members `[M, N, C]`, `targets` `[N]` int64.
Every sum runs in one fixed order, so that a vote is the same to the last bit however it is asked.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ballot.errors import UserError

METHODS = ("mean", "geometric", "rank", "hard")
METRICS = ("acc", "f1_macro", "nll")
LOWER_IS_BETTER = {"nll"}

TINY = 1e-7  # float32's step below 1: a smaller probability counts as this, and vetoes nothing
EPS = np.finfo(np.float64).eps  # as scikit-learn's log_loss clips
STEPS = 50


@dataclass(frozen=True)
class Recipe:
    """All that turns members' predictions into one: what `combine` needs and nothing else."""

    method: str
    weights: list[float]
    temperatures: list[float] | None = None
    stack: Stack | None = None


@dataclass(frozen=True)
class Stack:
    """A multinomial logistic regression on the members' probabilities (Wolpert, 1992).

    `coef` is `[M, C, K]` and `intercept` `[K]`, for the K classes (of C) seen in validation.
    """

    coef: np.ndarray
    intercept: np.ndarray
    seen: list[int] = field(default_factory=list)


def log(probs: np.ndarray) -> np.ndarray:
    """Logarithm in which zero counts as `TINY`."""
    return np.log(np.maximum(probs, TINY))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities `[N, C]` of `logits`."""
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exps / exps.sum(axis=1, keepdims=True)


def transform(probs: np.ndarray, method: str) -> np.ndarray:
    """Turn one member's probabilities into what the vote averages.

    mean: as they are; geometric: their logarithm; hard: 1 for the first largest class; rank: each
    row's classes ranked (equal ones share the mean rank), scaled to sum to 1 (Borda's count).
    """
    if method == "mean":
        return probs
    if method == "geometric":
        return log(probs)
    if method == "hard":
        votes = np.zeros_like(probs)
        votes[np.arange(len(probs)), probs.argmax(axis=1)] = 1
        return votes
    from scipy.stats import rankdata

    classes = probs.shape[1]
    return (rankdata(probs, axis=1) - 1) / (classes * (classes - 1) / 2)


def combine(recipe: Recipe, members: Iterable[np.ndarray]) -> np.ndarray:
    """Vote: one running sum over `members`, each `[N, C]`, in the recipe's order."""
    total = None
    for number, probs in enumerate(members):
        if recipe.temperatures is not None:
            probs = apply_temperature(probs, recipe.temperatures[number])
        weight = recipe.weights[number]
        if recipe.stack is not None:
            values = probs @ recipe.stack.coef[number]
        elif weight == 0:
            if total is None:
                total = np.zeros_like(probs)
            continue
        else:
            values = transform(probs, recipe.method)
        if weight != 1:
            values = values * weight
        if total is None:
            total = np.array(values, dtype=np.float64)
        else:
            total += values
    assert total is not None, "a vote has at least one member"
    return _finish(recipe, total, number_of_classes=probs.shape[1])


def _finish(recipe: Recipe, total: np.ndarray, number_of_classes: int) -> np.ndarray:
    if recipe.stack is not None:
        probs = np.zeros((len(total), number_of_classes))
        probs[:, recipe.stack.seen] = softmax(total + recipe.stack.intercept)
        return probs
    total /= math.fsum(recipe.weights)
    return softmax(total) if recipe.method == "geometric" else total


def score(metric: str, probs: np.ndarray, targets: np.ndarray) -> float:
    """Score `probs` by `acc`, `f1_macro` (over the classes that occur) or `nll`."""
    if metric == "nll":
        true = probs[np.arange(len(probs)), targets]
        return math.fsum(-np.log(np.clip(true, EPS, 1 - EPS))) / len(true)
    predicted = probs.argmax(axis=1)
    if metric == "acc":
        return int((predicted == targets).sum()) / len(targets)
    classes = probs.shape[1]
    counts = np.bincount(targets * classes + predicted, minlength=classes**2)
    return float(f1_macro(counts.reshape(1, classes, classes))[0])


def f1_macro(confusion: np.ndarray) -> np.ndarray:
    """Macro F1 `[M]` of confusion matrices `[M, true, predicted]`.

    As scikit-learn has it: the mean over classes that are true or predicted somewhere.
    """
    hits = np.einsum("mcc->mc", confusion)
    sizes = confusion.sum(axis=1) + confusion.sum(axis=2)
    present = sizes > 0
    each = np.where(present, 2 * hits / np.maximum(sizes, 1), 0.0)
    return each.sum(axis=1) / present.sum(axis=1)


def ranking(metric: str, scores: Sequence[float]) -> list[int]:
    """Order members from the best score to the worst; equal ones keep their order."""
    sign = 1 if metric in LOWER_IS_BETTER else -1
    return sorted(range(len(scores)), key=lambda i: sign * scores[i])


def ece(probs: np.ndarray, targets: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error with equal-width bins of confidence (Guo et al., 2017)."""
    confidence = probs.max(axis=1)
    hit = (probs.argmax(axis=1) == targets).astype(np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(place, hit - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(targets))


def apply_temperature(probs: np.ndarray, temperature: float) -> np.ndarray:
    """Return `softmax(log(probs) / temperature)`, its first largest class kept the largest."""
    if temperature == 1:
        return probs
    logits = log(probs)
    top = probs.argmax(axis=1)
    rows = np.arange(len(probs))
    exps = np.exp((logits - logits[rows, top, None]) / temperature)
    # Two neighbouring numbers may round to one; the answer of a member must not change by that.
    np.minimum(exps, 1 - 2 * EPS, out=exps)
    exps[rows, top] = 1
    return exps / exps.sum(axis=1, keepdims=True)


def fit_temperature(probs: np.ndarray, targets: np.ndarray) -> float:
    """Find the temperature in 0.05..20 of the least negative log likelihood.

    The likelihood is convex in 1/temperature, so the root of its slope is found by bisection.
    """
    logits = log(probs)
    logits = logits - logits.max(axis=1, keepdims=True)
    true = logits[np.arange(len(logits)), targets].mean()

    def slope(inverse: float) -> float:
        exps = np.exp(logits * inverse)
        return float(((exps * logits).sum(axis=1) / exps.sum(axis=1)).mean() - true)

    low, high = 1 / 20, 20.0
    if slope(low) >= 0:
        return 1 / low
    if slope(high) <= 0:
        return 1 / high
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / math.sqrt(low * high)


class Electorate:
    """Members' values laid out so that every candidate of a greedy step is scored at once.

    `cube` is `[C, N, M]`: of the rows that are still open, the members lie side by side.
    """

    def __init__(self, values: np.ndarray, targets: np.ndarray, metric: str) -> None:
        self.metric, self.targets = metric, targets
        self.cube = np.ascontiguousarray(values.transpose(2, 1, 0))
        self.classes, self.rows, self.members = self.cube.shape
        # No member can move two classes of a row apart or together by more than this.
        spread = self.cube.max(axis=0) - self.cube.min(axis=0)
        self.reach = spread.max(axis=1) * (1 + 1e-9) + 1e-12

    def candidates(self, total: np.ndarray, size: int) -> np.ndarray:
        """Score the ensemble with each member added: `[M]`; `total` `[C, N]` sums its `size`."""
        total = np.ascontiguousarray(total)
        if self.metric == "nll":
            at = self.targets, np.arange(self.rows)
            mean = (total[at][:, None] + self.cube[at]) / (size + 1)
            return -np.log(np.clip(mean, EPS, 1 - EPS)).mean(axis=0)
        settled, open_rows = self._split(total)
        if self.metric == "acc":
            hits = int((settled == self.targets).sum())
            predicted = self._predict(total, open_rows)
            return (hits + (predicted == self.targets[open_rows, None]).sum(axis=0)) / self.rows
        return f1_macro(self._confusion(total, settled, open_rows))

    def _split(self, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what each row predicts (-1 where open) and the rows one member could turn."""
        first = total[0].copy()
        second = np.full(self.rows, -np.inf)
        for values in total[1:]:
            np.maximum(second, np.minimum(first, values), out=second)
            np.maximum(first, values, out=first)
        is_open = first - second <= self.reach
        return np.where(is_open, -1, total.argmax(axis=0)), np.flatnonzero(is_open)

    def _predict(self, total: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Predict the open rows with each member added: `[U, M]`; the first largest class wins."""
        best = self.cube[0][rows] + total[0][rows, None]
        predicted = np.zeros(best.shape, dtype=np.int32)
        for number in range(1, self.classes):
            values = self.cube[number][rows]
            values += total[number][rows, None]
            np.putmask(predicted, values > best, number)
            np.maximum(best, values, out=best)
        return predicted

    def _confusion(self, total: np.ndarray, settled: np.ndarray, rows: np.ndarray) -> np.ndarray:
        done = settled >= 0
        size = self.classes**2
        fixed = np.bincount(self.targets[done] * self.classes + settled[done], minlength=size)
        cells = self.targets[rows, None] * self.classes + self._predict(total, rows)
        cells += np.arange(self.members) * size
        moved = np.bincount(cells.ravel(), minlength=self.members * size)
        return (fixed + moved.reshape(self.members, size)).reshape(-1, self.classes, self.classes)


def greedy(
    values: np.ndarray,
    targets: np.ndarray,
    metric: str = "acc",
    *,
    steps: int = STEPS,
    bags: int = 1,
    seed: int = 0,
) -> list[float]:
    """Choose members with replacement; return how often each was taken (Caruana et al., 2004).

    Starts from the best prefix of the members sorted by their own score, then adds, `steps` times,
    the member that helps most, and keeps the best ensemble on the way: the smaller one, and the
    member of the better own score, where scores are equal. With `bags` > 1 each round draws half
    of the members (Caruana et al., 2006) and the shares of all rounds are added.
    """
    alone = [score(metric, member, targets) for member in values]
    order = ranking(metric, alone)
    if bags == 1:
        return _greedy_round(values, targets, metric, steps, order)
    random = np.random.default_rng(seed)
    shares = np.zeros(len(values))
    for _ in range(bags):
        drawn = set(random.permutation(len(values))[: max(1, (len(values) + 1) // 2)].tolist())
        counts = _greedy_round(values, targets, metric, steps, [i for i in order if i in drawn])
        shares += np.array(counts) / sum(counts)
    return [float(share) for share in shares]


def _greedy_round(
    values: np.ndarray, targets: np.ndarray, metric: str, steps: int, order: list[int]
) -> list[float]:
    members = values[order]
    electorate = Electorate(members, targets, metric)
    prefix = np.zeros(members.shape[1:])
    scores: list[float] = []
    for place, member in enumerate(members):
        prefix += member
        # Dividing changes no answer, but it could make two classes equal that are not.
        scores.append(score(metric, prefix / (place + 1) if metric == "nll" else prefix, targets))
    start = ranking(metric, scores)[0] + 1
    scores = scores[start - 1 : start]
    path = list(range(start))  # places in `order`
    total = np.zeros_like(prefix)
    for place in path:
        total += members[place]
    for _ in range(steps):
        each = electorate.candidates(total.T, len(path))
        place = int(each.argmin() if metric in LOWER_IS_BETTER else each.argmax())
        path.append(place)
        scores.append(float(each[place]))
        total += members[place]
    best = ranking(metric, scores)[0]
    counts = np.zeros(len(values))
    np.add.at(counts, np.array(order)[path[: start + best]], 1)
    return counts.tolist()


def fit_stack(values: np.ndarray, targets: np.ndarray) -> Stack:
    """Fit scikit-learn's logistic regression, with its own penalty, on `values` `[M, N, C]`."""
    from sklearn.linear_model import LogisticRegression

    members, rows, classes = values.shape
    if len(np.unique(targets)) < 2:
        raise UserError("--stack: the validation rows are all of one class; it needs two")
    features = values.transpose(1, 0, 2).reshape(rows, members * classes)
    model = LogisticRegression(max_iter=1000).fit(features, targets)
    coef, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps one row then: the logit of the second
        coef, intercept = np.vstack([-coef, coef]) / 2, np.array([-1, 1]) * intercept / 2
    coef = coef.T.reshape(members, classes, len(model.classes_))
    return Stack(coef, intercept, [int(c) for c in model.classes_])


def split_parts(
    ids: Sequence[str], targets: np.ndarray, groups: Sequence[str] | None, parts: int, seed: int
) -> np.ndarray:
    """Deal rows into `parts` by a hash of their ids, each class (or whole groups) spread evenly.

    The order of rows plays no role.
    """
    keys = [hashlib.blake2b(f"{seed}:{i}".encode(), digest_size=8).digest() for i in ids]
    part = np.empty(len(ids), dtype=np.int64)
    if groups is None:
        order = sorted(range(len(ids)), key=lambda i: (targets[i], keys[i]))
        part[order] = np.arange(len(ids)) % parts
        return part
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    sizes = [0] * parts
    for rows in sorted(members.values(), key=lambda rows: (-len(rows), min(keys[r] for r in rows))):
        smallest = sizes.index(min(sizes))
        part[rows] = smallest
        sizes[smallest] += len(rows)
    return part


def cross_fit(
    fit: Callable[[np.ndarray, np.ndarray], Recipe],
    values: np.ndarray,
    targets: np.ndarray,
    part: np.ndarray,
) -> np.ndarray:
    """Predict every row by the recipe that `fit` makes of the other parts: `[N, C]`."""
    probs = np.empty(values.shape[1:])
    for number in np.unique(part):
        held = part == number
        probs[held] = combine(fit(values[:, ~held], targets[~held]), values[:, held])
    return probs
