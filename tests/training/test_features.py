"""Features of a frozen backbone: computed once, and a classifier fitted to them."""

import csv

import numpy as np
import pytest
import torch
from torch import nn
from trained_for_tests import coloured, run

from ballot.training.features import features_of, fit_classifier, fit_linear
from model import create_model, dropout_before, linear_classifier


def history(folder):
    with (folder / "history.csv").open(newline="") as file:
        return [
            {k: float(row[k]) for k in ("train_loss", "val_loss")} for row in csv.DictReader(file)
        ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return coloured(tmp_path_factory.mktemp("data"), {"train": 16, "val": 8})


def test_a_frozen_backbone_learns_the_same_from_features_that_are_computed_once(data, tmp_path):
    words = ("--epochs", 3, "--image_size", 16, "--freeze", "backbone", "--ema", 0.5)
    once = run(tmp_path, data, "once", *words)
    # A step that never changes an image: it only keeps features from being computed once.
    each = run(tmp_path, data, "each", *words, "--augmentation_args.flip", 1e-12)
    assert "computed once" in (once / "run.log").read_text()
    assert "computed once" not in (each / "run.log").read_text()
    for one, other in zip(history(once), history(each), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    ballots = [
        np.genfromtxt(p / "val.csv", delimiter=",", skip_header=1)[:, 2:] for p in (once, each)
    ]
    np.testing.assert_allclose(*ballots, atol=1e-5)


def test_a_fitted_classifier_is_scikit_learns():
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    x, y = load_iris(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    weight, bias = fit_linear(torch.tensor(x).float(), torch.tensor(y), 3)
    theirs = LogisticRegression(C=0.1, max_iter=1000, tol=1e-6).fit(x, y)
    np.testing.assert_allclose(weight, theirs.coef_, atol=0.01)
    ours = torch.softmax(torch.tensor(x).float() @ weight.T + bias, 1)
    np.testing.assert_allclose(ours, theirs.predict_proba(x), atol=0.005)


def test_a_classifier_is_fitted_to_soft_labels_as_scikit_learn_fits_rows_with_weights():
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    x, y = load_iris(return_X_y=True)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    soft = np.random.default_rng(0).dirichlet(np.ones(3), len(x)).astype(np.float32) / 2
    soft[np.arange(len(x)), y] += 0.5
    layer = nn.Linear(4, 3)
    batches = [
        (torch.tensor(x[k : k + 40]), torch.tensor(soft[k : k + 40])) for k in range(0, 150, 40)
    ]
    fit_classifier(nn.Sequential(layer), layer, batches)
    theirs = LogisticRegression(C=0.1, max_iter=1000, tol=1e-6).fit(
        np.tile(x, (3, 1)), np.repeat(range(3), len(x)), sample_weight=soft.T.ravel()
    )
    np.testing.assert_allclose(layer.weight.detach(), theirs.coef_, atol=0.01)


def test_a_trial_can_start_from_the_fitted_classifier(data, tmp_path):
    small = ("--model", "resnet18", "--image_size", 32, "--epochs", 1)
    other, _ = create_model("resnet18", 5, pretrained="no", image_size=32)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    start = ("--init_from", tmp_path / "other.pt", "--freeze_norm", "--lr", 1e-9)
    fresh = run(tmp_path, data, "fresh", *small, *start)
    fitted = run(tmp_path, data, "fitted", *small, *start, "--classifier_start", "fitted")
    assert history(fresh)[0]["val_loss"] == pytest.approx(np.log(3), rel=0.02)
    assert history(fitted)[0]["val_loss"] < 0.9


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "Efficientnet_b0", "timm:resnet10t", "simple_cnn"]
)
def test_features_are_what_the_classifier_is_given(name):
    model, _ = create_model(name, 3, pretrained="no", image_size=64, args={"dropout": 0.25})
    layer = linear_classifier(model)
    images = torch.randn(4, 3, 64, 64)
    features, targets = features_of(model, layer, [(images, torch.arange(4))])
    assert features.shape == (4, layer.in_features) and targets.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(
        nn.functional.linear(features, layer.weight, layer.bias), model.eval()(images)
    )
    own = getattr(layer, "dropout", 0.0)
    assert dropout_before(model, layer) == (0.0 if own else 0.25)
