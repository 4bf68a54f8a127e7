"""Metrics: scores of an epoch, from all its predictions at once.

A metric takes probabilities `[N, C]` and class indices `[N]` and returns a float. Names are
scikit-learn's own (`f1_score` with its arguments) and short ones (`acc`, `f1_macro`, `top5`).
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ballot.errors import UserError, suggest
from ballot.registry import Entry, Registry
from ballot.values import Json, Values

log = logging.getLogger(__name__)

METRICS = Registry("metric")

Metric = Callable[..., float]
STAGES = {"train": "train", "val": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Metrics:
    """The metrics asked for: for each stage, each name with the arguments it is called with."""

    stages: Mapping[str, Mapping[str, Values]]

    def names(self, stage: str = "val") -> list[str]:
        """Return the names of the metrics of a stage."""
        return list(self.stages.get(STAGES.get(stage, stage), {}))

    def score(self, probs: np.ndarray, targets: np.ndarray, stage: str = "val") -> dict[str, float]:
        """Score probabilities `[N, C]` against class indices `[N]` by the metrics of a stage.

        A metric that these rows do not define (an AUC where a class is absent) is NaN.
        """
        probs, targets = np.asarray(probs, dtype=np.float64), np.asarray(targets)
        chosen = self.stages.get(STAGES.get(stage, stage), {})
        return {name: _call(name, probs, targets, args) for name, args in chosen.items()}


def create_metrics(spec: object) -> Metrics:
    """Make sense of `spec`: a name, names, `{name: args}`, or `{stage: any of these}`.

    A stage is train, val (or validation) or test; without one the metrics are for all. Arguments
    are tried on made-up rows, so that a wrong one is a `UserError` now, not after the first epoch.
    """
    spec = _read(spec)
    if isinstance(spec, Mapping) and spec and set(spec) <= set(STAGES):
        stages = {STAGES[stage]: _named(part) for stage, part in spec.items()}
    else:
        stages = dict.fromkeys(("train", "val", "test"), _named(spec))
    for name, args in {k: v for part in stages.values() for k, v in part.items()}.items():
        _try(name, args)
    return Metrics(stages)


def lower_is_better(name: str) -> bool:
    """Say whether a smaller value of `name` (without the stage: `loss`, `acc`) is better."""
    if name == "loss":
        return True
    return bool(METRICS.entry(name).info.get("lower_is_better", False))


@METRICS.register("acc")
def acc(probs: np.ndarray, targets: np.ndarray) -> float:
    """Share of rows whose most probable class is right."""
    return float(np.mean(probs.argmax(axis=1) == targets))


def _averaged(function: str, average: str) -> Metric:
    def metric(probs: np.ndarray, targets: np.ndarray) -> float:
        return METRICS.entry(function).build(probs, targets, average=average)

    metric.__doc__ = f"scikit-learn's `{function}` with the {average} average."
    return metric


def _of_labels(function: str) -> Metric:
    """Call scikit-learn's `function(y_true, y_pred)` on the most probable classes."""

    def metric(probs: np.ndarray, targets: np.ndarray, **args: object) -> float:
        call, known = _sklearn(function, args)
        if "average" in known and probs.shape[1] > 2:
            args.setdefault("average", "macro")  # scikit-learn's own default is for two classes
        if "zero_division" in known:
            args.setdefault("zero_division", 0)  # its default, less the warning every epoch
        return float(call(targets, probs.argmax(axis=1), **args))

    metric.__doc__ = f"scikit-learn's `{function}` of the most probable classes."
    return metric


def _of_probs(function: str) -> Metric:
    """Call scikit-learn's `function(y_true, y_score, labels=)` on the probabilities."""

    def metric(probs: np.ndarray, targets: np.ndarray, **args: object) -> float:
        call, known = _sklearn(function, args)
        # float32 rows sum to one only to 1e-7, which scikit-learn would warn about.
        scores = probs / probs.sum(axis=1, keepdims=True)
        if "labels" in known:
            args.setdefault("labels", np.arange(probs.shape[1]))
        if "multi_class" in known:
            args.setdefault("multi_class", "ovr")
        binary = probs.shape[1] == 2 and function != "log_loss"
        return float(call(targets, scores[:, 1] if binary else scores, **args))

    metric.__doc__ = f"scikit-learn's `{function}` of the probabilities."
    return metric


def _sklearn(function: str, args: Values) -> tuple[Callable, list[str]]:
    """Return the function of that name and its parameters; refuse `args` that it does not take."""
    import sklearn.metrics

    call = getattr(sklearn.metrics, function)
    known = list(inspect.signature(call).parameters)[2:]
    for key in args:
        if key not in known:
            raise UserError(f"metrics: {function} takes no argument {key!r}{suggest(key, known)}")
    return call, known


for _name in (
    "accuracy_score",
    "balanced_accuracy_score",
    "f1_score",
    "fbeta_score",
    "precision_score",
    "recall_score",
    "jaccard_score",
    "cohen_kappa_score",
    "matthews_corrcoef",
):
    METRICS.register(_name)(_of_labels(_name))
for _name in ("hamming_loss", "zero_one_loss"):
    METRICS.register(_name, lower_is_better=True)(_of_labels(_name))
for _name in ("top_k_accuracy_score", "roc_auc_score", "average_precision_score"):
    METRICS.register(_name)(_of_probs(_name))
for _name in ("log_loss", "brier_score_loss"):
    METRICS.register(_name, lower_is_better=True)(_of_probs(_name))

# What people type: the score, then its average.
for _short in ("f1", "precision", "recall", "jaccard"):
    for _average in ("macro", "micro", "weighted"):
        METRICS.register(f"{_short}_{_average}")(_averaged(f"{_short}_score", _average))
for _short, _name in {
    "balanced_acc": "balanced_accuracy_score",
    "kappa": "cohen_kappa_score",
    "mcc": "matthews_corrcoef",
    "auc": "roc_auc_score",
}.items():
    METRICS.register(_short)(METRICS.entry(_name).build)


@METRICS.register("ece", lower_is_better=True)
def ece(probs: np.ndarray, targets: np.ndarray, *, bins: int = 15) -> float:
    """Expected calibration error: how far confidence is from accuracy (Guo et al., 2017)."""
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == targets
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    which = np.digitize(confidence, edges, right=True)  # bins are (low, high]
    gaps = [
        abs(right[which == b].mean() - confidence[which == b].mean()) * np.mean(which == b)
        for b in np.unique(which)
    ]
    return float(sum(gaps))


@METRICS.family("top", lambda: [f"top{k}" for k in range(1, 101)])
def _top(name: str) -> Entry:
    k = int(name.removeprefix("top"))

    def metric(probs: np.ndarray, targets: np.ndarray) -> float:
        return METRICS.entry("top_k_accuracy_score").build(probs, targets, k=k)

    return Entry(name, metric)


def _read(spec: object) -> object:
    """A whole specification may be one word of JSON on the command line."""
    words = [spec] if isinstance(spec, str) else spec
    if isinstance(words, (list, tuple)) and len(words) == 1 and str(words[0]).startswith("{"):
        try:
            return json.loads(words[0]) if isinstance(words[0], str) else words[0]
        except json.JSONDecodeError as error:
            raise UserError(f"metrics: {words[0]!r} is no JSON ({error})") from None
    return words


def _named(spec: object) -> dict[str, Json]:
    if isinstance(spec, str):
        spec = [spec]
    if isinstance(spec, Mapping):
        pairs: Iterable[tuple[Any, object]] = spec.items()
    elif isinstance(spec, (list, tuple)) and all(isinstance(name, str) for name in spec):
        pairs = [(name, None) for name in spec]
    else:
        raise UserError(f"metrics: {spec!r} is not understood; as in 'acc' or ['acc', 'f1_macro']")
    chosen = {}
    for name, args in pairs:
        METRICS.entry(name)
        if not isinstance(args, (Mapping, type(None))):
            raise UserError(f"metrics: {name} is given {args!r}; its arguments are an object")
        chosen[name] = dict(args or {})
    return chosen


def _try(name: str, args: Json) -> None:
    """Call a metric on made-up rows of two and of six classes; one of them must succeed."""
    METRICS.check_args(name, args, skip=2)
    reasons = []
    for classes in (6, 2):
        targets = np.arange(4 * classes) % classes
        probs = np.full((len(targets), classes), 0.1) + 0.5 * np.eye(classes)[targets]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                METRICS.entry(name).build(probs, targets, **args)
            return
        except (TypeError, ValueError) as error:
            reasons.append(str(error))
    raise UserError(f"metrics: {name} with {args}: {reasons[0]}")


def _call(name: str, probs: np.ndarray, targets: np.ndarray, args: Values) -> float:
    value, why = math.nan, "these rows do not define it"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's remarks on rows without some class
            value = METRICS.entry(name).build(probs, targets, **args)
    except ValueError as error:
        why = str(error)
    if math.isnan(value):
        log.warning("metric %s has no value here: %s", name, why)
    return value
