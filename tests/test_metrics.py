"""Metrics against scikit-learn's functions, called by hand."""

import math

import numpy as np
import pytest
import sklearn.metrics as sk

from ballot.errors import UserError
from metrics import METRICS, create_metrics, lower_is_better

NAMES = METRICS.names(families=False)
REQUIRED = {"fbeta_score": {"beta": 2.0}}


def rows(classes, count=60, seed=0):
    random = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(classes), random.integers(0, classes, count - classes)])
    probs = random.dirichlet(np.ones(classes), count) + 0.5 * np.eye(classes)[targets]
    return (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32), targets


def score(name, probs, targets, args=None):
    return create_metrics({name: args}).score(probs, targets)[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [2, 5])
def test_every_metric_gives_a_finite_float(name, classes):
    value = score(name, *rows(classes), REQUIRED.get(name))
    assert isinstance(value, float) and math.isfinite(value)


LABELS = {
    "accuracy_score": {},
    "balanced_accuracy_score": {},
    "f1_score": {"average": "macro"},
    "fbeta_score": {"beta": 0.5, "average": "weighted"},
    "precision_score": {"average": "macro"},
    "recall_score": {"average": "micro"},
    "jaccard_score": {"average": "macro"},
    "cohen_kappa_score": {"weights": "quadratic"},
    "matthews_corrcoef": {},
    "hamming_loss": {},
    "zero_one_loss": {"normalize": False},
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("classes", [2, 5])
def test_metrics_of_labels_equal_scikit_learns(name, classes):
    probs, targets = rows(classes)
    expected = getattr(sk, name)(targets, probs.argmax(axis=1), **LABELS[name])
    assert score(name, probs, targets, LABELS[name]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "name, args, expected",
    [
        ("top_k_accuracy_score", {"k": 3}, lambda y, p: sk.top_k_accuracy_score(y, p, k=3)),
        ("roc_auc_score", {}, lambda y, p: sk.roc_auc_score(y, p, multi_class="ovr")),
        (
            "roc_auc_score",
            {"multi_class": "ovo", "average": "weighted"},
            lambda y, p: sk.roc_auc_score(y, p, multi_class="ovo", average="weighted"),
        ),
        ("log_loss", {}, sk.log_loss),
        ("average_precision_score", {}, sk.average_precision_score),
    ],
)
def test_metrics_of_probabilities_equal_scikit_learns(name, args, expected):
    probs, targets = rows(5)
    exact = probs.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    assert score(name, probs, targets, args) == pytest.approx(expected(targets, exact), abs=1e-12)


def test_two_classes_are_scored_as_scikit_learn_scores_them():
    probs, targets = rows(2)
    assert score("f1_score", probs, targets) == sk.f1_score(targets, probs.argmax(axis=1))
    assert score("auc", probs, targets) == pytest.approx(sk.roc_auc_score(targets, probs[:, 1]))
    assert score("brier_score_loss", probs, targets) == pytest.approx(
        sk.brier_score_loss(targets, probs[:, 1].astype(np.float64)), abs=1e-6
    )


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("short", ["f1", "precision", "recall", "jaccard"])
def test_short_names_stand_for_an_average(short, average):
    probs, targets = rows(4)
    function = getattr(sk, f"{short}_score")
    expected = function(targets, probs.argmax(axis=1), average=average)
    assert score(f"{short}_{average}", probs, targets) == pytest.approx(expected)


@pytest.mark.parametrize(
    "short, function",
    [
        ("acc", sk.accuracy_score),
        ("balanced_acc", sk.balanced_accuracy_score),
        ("kappa", sk.cohen_kappa_score),
        ("mcc", sk.matthews_corrcoef),
    ],
)
def test_short_names_stand_for_a_function(short, function):
    probs, targets = rows(4)
    assert score(short, probs, targets) == pytest.approx(function(targets, probs.argmax(axis=1)))


def test_macro_f1_leaves_out_a_class_that_is_nowhere_as_scikit_learn_does():
    probs = np.eye(4)[[0, 1, 0, 1]] * 0.9 + 0.025
    targets = np.array([0, 1, 1, 1])
    assert score("f1_macro", probs, targets) == sk.f1_score(targets, [0, 1, 0, 1], average="macro")


def test_top5_is_the_share_of_rows_with_the_target_among_five():
    probs, targets = rows(12)
    order = np.argsort(-probs, axis=1)
    expected = np.mean([t in row[:5] for t, row in zip(targets, order)])
    assert score("top5", probs, targets) == pytest.approx(expected)
    assert score("top1", probs, targets) == score("acc", probs, targets)


def test_top5_of_three_classes_is_one():
    assert score("top5", *rows(3)) == 1.0


def test_calibration_error_equals_its_definition():
    probs, targets = rows(3, count=500)
    confidence, right = probs.max(axis=1).astype(float), probs.argmax(axis=1) == targets
    expected = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert score("ece", probs, targets) == pytest.approx(expected)


def test_a_score_that_the_rows_do_not_define_is_not_a_number_and_is_said(caplog):
    probs, _ = rows(3)
    value = score("auc", probs, np.zeros(60, dtype=int))
    assert math.isnan(value) and "auc" in caplog.text


def test_names_hold_for_every_stage():
    metrics = create_metrics(("acc", "f1_macro"))
    for stage in ("train", "val", "test"):
        assert list(metrics.score(*rows(3), stage=stage)) == ["acc", "f1_macro"]


def test_stages_have_metrics_of_their_own():
    spec = {
        "validation": {"accuracy_score": None, "top_k_accuracy_score": {"k": 5}},
        "train": ["acc"],
    }
    metrics = create_metrics(spec)
    assert metrics.names("val") == ["accuracy_score", "top_k_accuracy_score"]
    assert metrics.names("train") == ["acc"] and metrics.names("test") == []


def test_one_word_of_json_is_a_specification_too():
    metrics = create_metrics(['{"validation": {"f1_score": {"average": "macro"}}}'])
    probs, targets = rows(3)
    assert metrics.score(probs, targets) == {"f1_score": score("f1_macro", probs, targets)}


@pytest.mark.parametrize(
    "spec, said",
    [
        ("f1_marco", "did you mean 'f1_macro'"),
        ({"validation": {"f1_score": {"avrage": "macro"}}}, "did you mean 'average'"),
        ({"f1_score": {"average": "makro"}}, "makro"),
        ({"fbeta_score": None}, "beta"),
        ({"acc": {"k": 1}}, "takes no argument 'k'"),
        ({"acc": 3}, "arguments are an object"),
        ({"valid": {"acc": None}}, "unknown metric 'valid'"),
        ("top0", "unknown metric"),
        ([1], "not understood"),
        (None, "not understood"),
        (["{"], "no JSON"),
    ],
)
def test_a_specification_that_makes_no_sense_is_refused_at_once(spec, said):
    with pytest.raises(UserError, match=said):
        create_metrics(spec)


def test_losses_are_better_when_lower():
    lower = {"loss", *NAMES} & {name for name in ["loss", *NAMES] if lower_is_better(name)}
    assert lower == {
        "loss",
        "log_loss",
        "hamming_loss",
        "zero_one_loss",
        "brier_score_loss",
        "ece",
    }
    assert not lower_is_better("top3")
    with pytest.raises(UserError, match="did you mean 'acc'"):
        lower_is_better("accc")
