"""Criteria against PyTorch, torchvision, scikit-learn, timm, and formulas written out."""

import math

import pytest
import torch
from sklearn.metrics import f1_score
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from ballot.errors import UserError
from loss import CRITERIA, create_criterion, criterion_entrypoint, is_criterion

NAMES = CRITERIA.names()
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0])


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(32, 4, generator=generator)
    targets = torch.randint(0, 4, (32,), generator=generator)
    soft = torch.rand(32, 4, generator=generator).softmax(dim=1)
    return logits, targets, soft


def one_hot(targets, classes=4):
    return F.one_hot(targets, classes).float()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_every_criterion_gives_a_finite_scalar_with_a_gradient(name, weights, batch):
    logits, targets, soft = batch
    criterion = create_criterion(name, 4, class_weights=weights)
    for given in (targets[:2], soft[:2]):
        x = logits[:2].clone().requires_grad_()
        loss = criterion(x, given)
        loss.backward()
        assert loss.shape == () and loss.isfinite()
        assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_ten_thousand_leave_loss_and_gradient_finite(name, dtype, sign):
    criterion = create_criterion(name, 4, class_weights=WEIGHTS)
    x = (sign * 1e4 * (2 * one_hot(torch.tensor([0, 1, 1, 0])) - 1)).to(dtype).requires_grad_()
    for targets in (torch.tensor([0, 1, 2, 3]), torch.full((4, 4), 0.25)):
        loss = criterion(x, targets)  # class 3 is never predicted, and right and wrong both occur
        (grad,) = torch.autograd.grad(loss, x)
        assert loss.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["focal", "asymmetric"])
def test_small_exponents_keep_the_gradient_finite(name, gamma):
    args = {"gamma": gamma} if name == "focal" else {"gamma_neg": gamma, "gamma_pos": gamma}
    for scale in (0.0, 30.0, 1e4):
        x = (scale * one_hot(torch.tensor([0, 1, 2]), 3)).requires_grad_()
        create_criterion(name, 3, **args)(x, torch.tensor([0, 1, 1])).backward()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_bf16_logits_give_the_loss_of_the_same_numbers_in_float32(name, batch):
    logits, targets, _ = batch
    rounded = logits.bfloat16()
    criterion = create_criterion(name, 4, class_weights=WEIGHTS)
    loss = criterion(rounded, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, criterion(rounded.float(), targets))


@pytest.mark.parametrize("name", NAMES)
def test_one_hot_probabilities_are_worth_the_indices(name, batch):
    logits, targets, _ = batch
    criterion = create_criterion(name, 4)
    torch.testing.assert_close(criterion(logits, targets), criterion(logits, one_hot(targets)))


@pytest.mark.parametrize("name", NAMES)
def test_equal_class_weights_change_nothing(name, batch):
    logits, targets, _ = batch
    plain = create_criterion(name, 4)(logits, targets)
    weighted = create_criterion(name, 4, class_weights=torch.ones(4))(logits, targets)
    torch.testing.assert_close(plain, weighted)


@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_weighs_nothing_may_fill_the_batch(name):
    criterion = create_criterion(name, 3, class_weights=torch.tensor([0.0, 1.0, 1.0]))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = criterion(x, torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize(
    "name, args, smoothing",
    [
        ("cross_entropy", {}, 0.0),
        ("cross_entropy", {"label_smoothing": 0.2}, 0.2),
        ("label_smoothing", {}, 0.1),
        ("label_smoothing", {"smoothing": 0.3}, 0.3),
        ("focal", {"gamma": 0.0}, 0.0),
        ("poly1", {"epsilon": 0.0}, 0.0),
    ],
)
def test_the_cross_entropies_equal_pytorchs(name, args, smoothing, kind, weights, batch):
    logits, targets, soft = batch
    given = targets if kind == "indices" else soft
    expected = F.cross_entropy(logits, given, weight=weights, label_smoothing=smoothing)
    found = create_criterion(name, 4, class_weights=weights, **args)(logits, given)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_of_two_classes_equals_torchvisions(gamma, batch):
    x, targets = batch[0][:, 0], batch[1] % 2
    logits = torch.stack([torch.zeros_like(x), x], dim=1)  # softmax of (0, x) is sigmoid of x
    expected = sigmoid_focal_loss(x, targets.float(), alpha=-1, gamma=gamma, reduction="mean")
    found = create_criterion("focal", 2, gamma=gamma)(logits, targets)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_focal_of_many_classes_equals_its_formula(batch):
    logits, targets, _ = batch
    total = weight = 0.0
    for row, target in zip(logits.double(), targets):
        p = row.softmax(dim=0)[target].item()
        w = WEIGHTS[target].item()
        total, weight = total - w * (1 - p) ** 2 * math.log(p), weight + w
    found = create_criterion("focal", 4, class_weights=WEIGHTS, gamma=2.0)(logits, targets)
    assert found.item() == pytest.approx(total / weight, abs=1e-6)


@pytest.mark.parametrize("present", [4, 3, 2])
def test_f1_equals_scikit_learns_macro_f1_on_one_hot_predictions(present):
    generator = torch.Generator().manual_seed(present)
    targets = torch.randint(0, present, (50,), generator=generator)
    predicted = torch.randint(0, min(present + 1, 4), (50,), generator=generator)
    expected = 1 - f1_score(targets.numpy(), predicted.numpy(), average="macro", zero_division=0)
    found = create_criterion("f1", 4)(1e4 * one_hot(predicted), targets)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_f1_with_weights_equals_the_weighted_mean_of_scikit_learns(batch):
    logits, targets, _ = batch
    predicted = logits.argmax(dim=1)
    scores = f1_score(targets.numpy(), predicted.numpy(), average=None)
    expected = 1 - (scores * WEIGHTS.numpy()).sum() / WEIGHTS.sum().item()
    found = create_criterion("f1", 4, class_weights=WEIGHTS)(1e4 * one_hot(predicted), targets)
    assert found.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_bce_equals_pytorchs(weights, batch):
    logits, targets, soft = batch
    for given, probabilities in ((targets, one_hot(targets)), (soft, soft)):
        expected = F.binary_cross_entropy_with_logits(logits, probabilities, weight=weights)
        found = create_criterion("bce", 4, class_weights=weights)(logits, given)
        torch.testing.assert_close(found, expected)


def test_poly1_equals_its_formula(batch):
    logits, targets, _ = batch
    p = logits.softmax(dim=1)[torch.arange(32), targets]
    expected = (-p.log() + 2.0 * (1 - p)).mean()
    torch.testing.assert_close(create_criterion("poly1", 4, epsilon=2.0)(logits, targets), expected)


@pytest.mark.parametrize("clip", [0.0, 0.05, 0.2])
def test_asymmetric_equals_its_formula_and_timms(clip, batch):
    from timm.loss import AsymmetricLossMultiLabel

    logits, targets, _ = batch
    args = {"gamma_neg": 4, "gamma_pos": 1, "clip": clip}
    criterion, reference = (
        create_criterion("asymmetric", 4, **args),
        AsymmetricLossMultiLabel(**args),
    )
    for row, target in zip(logits, targets):
        expected = 0.0
        for k, p in enumerate(row.double().sigmoid().tolist()):
            kept = max(p - clip, 0)
            own = (1 - p) * math.log(p) if k == target else kept**4 * math.log(1 - kept)
            expected -= own
        found = criterion(row[None], target[None]).item()
        assert found == pytest.approx(expected, rel=1e-5)
        assert found == pytest.approx(reference(row[None], one_hot(target[None])).item(), rel=1e-3)


def test_asymmetric_without_focus_is_binary_cross_entropy(batch):
    logits, targets, soft = batch
    criterion = create_criterion("asymmetric", 4, gamma_neg=0, gamma_pos=0, clip=0)
    for given, probabilities in ((targets, one_hot(targets)), (soft, soft)):
        expected = F.binary_cross_entropy_with_logits(logits, probabilities, reduction="sum") / 32
        torch.testing.assert_close(criterion(logits, given), expected)


def test_names_are_found_and_told_apart():
    assert criterion_entrypoint("focal") is CRITERIA.entry("focal").build
    assert is_criterion("f1") and not is_criterion("f2")
    with pytest.raises(UserError, match="did you mean 'focal'"):
        create_criterion("focale", 3)


@pytest.mark.parametrize(
    "args, said",
    [
        ({"gama": 2}, "did you mean 'gamma'"),
        ({"gamma": -1}, "gamma is -1"),
        ({"gamma": "two"}, "gamma is 'two'"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"class_weights": [1.0, 2.0]}, "3 classes"),
        ({"class_weights": torch.tensor([1.0, -1.0, 1.0])}, "not negative"),
        ({"class_weights": torch.tensor([1.0, float("inf"), 1.0])}, "finite"),
        ({"class_weights": torch.zeros(3)}, "not all zero"),
        ({"class_weights": ["a", "b", "c"]}, "no numbers"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(args, said):
    with pytest.raises(UserError, match=said):
        create_criterion("focal", 3, **args)


def test_class_weights_may_stand_among_the_arguments_but_not_in_both_places(batch):
    logits, targets, _ = batch
    given = create_criterion("focal", 4, WEIGHTS)(logits, targets)
    listed = create_criterion("focal", 4, None, class_weights=WEIGHTS.tolist())(logits, targets)
    assert given == listed
    with pytest.raises(UserError, match="use --class_weights none"):
        create_criterion("focal", 4, WEIGHTS, class_weights=[1, 2, 3, 4])


def test_a_readers_own_criterion_need_not_take_class_weights():
    @CRITERIA.register("own-test-loss")
    def own(num_classes):  # noqa: ARG001
        return torch.nn.CrossEntropyLoss()

    try:
        assert create_criterion("own-test-loss", 3)(torch.zeros(2, 3), torch.tensor([0, 1])) > 0
        with pytest.raises(UserError, match="class_weights none"):
            create_criterion("own-test-loss", 3, class_weights=torch.ones(3))
    finally:
        del CRITERIA._entries["own-test-loss"]


def test_class_weights_move_with_the_criterion_and_stay_out_of_its_state():
    criterion = create_criterion("focal", 4, class_weights=WEIGHTS)
    assert criterion.to("meta").class_weights.device.type == "meta"
    assert not criterion.state_dict()
