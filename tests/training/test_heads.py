"""Heads: joint logits out of a classifier for each attribute, and a criterion for each of them."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ballot.data.attributes import Attribute
from ballot.errors import UserError
from ballot.training.features import fit_classifier
from ballot.training.heads import Heads, make_heads, tasks_of
from ballot.training.state import make_ema
from loss import create_criterion, create_heads_criterion
from model import create_model, linear_classifier, start_classifier_at_zero

# All six combinations of three and two classes, and four of them.
WHOLE = (
    Attribute("a", ("x", "y", "z"), (0, 0, 1, 1, 2, 2)),
    Attribute("b", ("p", "q"), (0, 1, 0, 1, 0, 1)),
)
SOME = (Attribute("a", ("x", "y", "z"), (0, 1, 1, 2)), Attribute("b", ("p", "q"), (1, 0, 1, 0)))


def unweighted(_):
    return None


def network(heads):
    """Return a network, and a way to see what its last layer gives."""
    model, _ = create_model("simple_cnn", heads.num_classes, pretrained="no", heads=heads)
    seen = []
    linear_classifier(model).register_forward_hook(lambda _, __, out: seen.append(out))
    return model.eval(), seen


@pytest.mark.parametrize("attributes", [WHOLE, SOME])
@pytest.mark.parametrize("joint", [False, True])
def test_the_joint_class_is_the_product_of_its_attributes(attributes, joint):
    torch.manual_seed(0)
    heads = Heads(attributes, joint=joint)
    model, seen = network(heads)
    probs = model(torch.randn(4, 3, 32, 32)).softmax(dim=1)
    a, b, *rest = seen[0].split(heads.sizes, dim=1)
    wanted = torch.stack(
        [
            a.softmax(1)[:, i] * b.softmax(1)[:, j] * (rest[0][:, c].exp() if joint else 1)
            for c, (i, j) in enumerate(zip(attributes[0].of_class, attributes[1].of_class))
        ],
        dim=1,
    )
    torch.testing.assert_close(probs, wanted / wanted.sum(1, keepdim=True))


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "label_smoothing", "f1", "poly1"])
@pytest.mark.parametrize("soft", [False, True])
def test_the_criterion_is_the_sum_over_what_each_head_says(name, soft):
    torch.manual_seed(0)
    model, seen = network(Heads(WHOLE))
    logits, targets = model(torch.randn(5, 3, 32, 32)), torch.tensor([0, 3, 5, 2, 2])
    own = [torch.tensor(attribute.of_class)[targets] for attribute in WHOLE]
    if soft:  # two images mixed
        mix = 0.7 * F.one_hot(targets, 6) + 0.3 * F.one_hot(targets.flip(0), 6)
        own = [0.7 * F.one_hot(t) + 0.3 * F.one_hot(t.flip(0)) for t in own]
        targets = mix
    criterion = create_heads_criterion(name, tasks_of(Heads(WHOLE)), unweighted)
    wanted = sum(
        create_criterion(name, part.shape[1])(part, target)
        for part, target in zip(seen[0].split([3, 2], dim=1), own)
    )
    torch.testing.assert_close(criterion(logits, targets), wanted)


def test_a_criterion_of_one_class_against_the_rest_sees_probabilities():
    torch.manual_seed(0)
    model, seen = network(Heads(WHOLE))
    targets = torch.tensor([0, 3, 5, 2, 2])
    loss = create_heads_criterion("bce", tasks_of(Heads(WHOLE)), unweighted)(
        model(torch.randn(5, 3, 32, 32)), targets
    )
    wanted = 0.0
    for part, attribute in zip(seen[0].split([3, 2], dim=1), WHOLE):
        own = F.one_hot(torch.tensor(attribute.of_class)[targets]).float()
        wanted += F.binary_cross_entropy(part.softmax(1), own)
    torch.testing.assert_close(loss, wanted)


def test_the_head_of_the_joint_class_has_a_loss_of_its_own():
    logits, targets = torch.randn(5, 6), torch.tensor([0, 3, 5, 2, 2])
    product, joint = (
        create_heads_criterion("cross_entropy", tasks_of(Heads(WHOLE, joint)), unweighted)(
            logits, targets
        )
        for joint in (False, True)
    )
    torch.testing.assert_close(joint, product + F.cross_entropy(logits, targets))


def test_class_weights_are_those_of_each_heads_classes():
    asked = []
    create_heads_criterion("cross_entropy", tasks_of(Heads(SOME)), lambda k: asked.append(k))
    assert asked == [attribute.of_class for attribute in SOME]
    with pytest.raises(UserError, match="class_weights are of one head's classes"):
        create_heads_criterion("focal", [], unweighted, args={"class_weights": [1]})


def test_a_far_off_answer_has_a_finite_loss_and_gradient():
    for name in ("cross_entropy", "focal", "bce", "asymmetric"):
        logits = torch.tensor([[300.0, 0, 0, 0, 0, -300.0]], requires_grad=True)
        create_heads_criterion(name, tasks_of(Heads(WHOLE)), unweighted)(
            logits, torch.tensor([5])
        ).backward()
        assert logits.grad.isfinite().all(), name


@pytest.mark.parametrize("joint", [False, True])
def test_a_new_classifier_begins_undecided_in_every_head(joint):
    heads = Heads(WHOLE, joint)
    model, _ = network(heads)
    start_classifier_at_zero(model)
    logits = model(torch.randn(4, 3, 32, 32))
    torch.testing.assert_close(logits.softmax(1), torch.full((4, 6), 1 / 6))
    loss = create_heads_criterion("cross_entropy", tasks_of(heads), unweighted)(
        logits, torch.tensor([0] * 4)
    )
    assert loss.item() == pytest.approx((1 + joint) * math.log(6), rel=1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_a_fitted_classifier_is_fitted_to_each_attribute(soft):
    torch.manual_seed(0)
    heads = Heads(SOME, joint=True)
    model, seen = network(heads)
    # Which stripe is bright says the class; bright enough for the penalty on weights to be small.
    labels = torch.arange(40) % 4
    images = torch.randn(40, 3, 32, 32) * 0.1
    for row, label in enumerate(labels):
        images[row, :, :, 8 * label : 8 * label + 8] += 300
    targets = F.one_hot(labels, 4) * 0.96 + 0.01 if soft else labels
    fit_classifier(model, linear_classifier(model), [(images, targets)], heads=heads)
    assert (model(images).argmax(1) == labels).float().mean() > 0.9
    a, b, joint = seen[-1].split(heads.sizes, dim=1)
    assert not joint.any()  # it adds nothing yet
    for part, attribute in zip((a, b), SOME):
        right = part.argmax(1) == torch.tensor(attribute.of_class)[labels]
        assert right.float().mean() > 0.9


def test_averaged_weights_keep_the_table_of_classes():
    torch.manual_seed(0)
    heads = Heads(tuple(Attribute("n", tuple("abcdefg"), tuple(range(7))) for _ in range(2)))
    model, _ = network(heads)
    ema = make_ema(model, 0.9)
    for _ in range(50):
        ema.update_parameters(model)
    assert torch.equal(ema.module.head_places, model.head_places)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ema(images), model(images))


def test_heads_need_attributes():
    assert make_heads("none", SOME) is None
    assert isinstance(make_heads("joint", SOME), Heads)
    with pytest.raises(UserError, match="heads: product needs a label of several attributes"):
        make_heads("product", ())
    assert "head_places" not in nn.Module.state_dict(network(Heads(SOME))[0])


def test_an_ordered_attribute_is_learnt_by_its_thresholds():
    torch.manual_seed(0)
    model, seen = network(Heads(WHOLE))
    targets = torch.tensor([0, 3, 5, 2, 2])
    logits = model(torch.randn(5, 3, 32, 32))
    tasks = tasks_of(Heads(WHOLE), ["a=y,x,z"])  # y < x < z
    a, b = (part.softmax(1) for part in seen[0].split([3, 2], dim=1))
    labels = torch.tensor(WHOLE[0].of_class)[targets]
    wanted = F.nll_loss(b.log(), torch.tensor(WHOLE[1].of_class)[targets])
    wanted += F.binary_cross_entropy(a[:, 0] + a[:, 2], (labels != 1).float())  # above y
    wanted += F.binary_cross_entropy(a[:, 2], (labels == 2).float())  # above x
    criterion = create_heads_criterion("cross_entropy", tasks, unweighted)
    torch.testing.assert_close(criterion(logits, targets), wanted)


def test_what_is_no_order_is_named():
    with pytest.raises(UserError, match="there is no attribute 'ab'"):
        tasks_of(Heads(WHOLE), ["ab"])
    with pytest.raises(UserError, match="'a=x,y' is no order of the classes x, y, z; as in a=x,y"):
        tasks_of(Heads(WHOLE), ["a=x,y"])


def test_uncertainty_weighs_the_head_that_is_learnt_well_more():
    torch.manual_seed(0)
    criterion = create_heads_criterion(
        "cross_entropy", tasks_of(Heads(WHOLE)), unweighted, uncertainty=True
    )
    # Nothing is known of a; b is right in nine of ten.
    b = torch.tensor([[0.9, 0.1]]).log().repeat(1, 3)
    logits, targets = b.expand(10, 6), torch.tensor([0, 2, 4, 0, 2, 4, 0, 2, 4, 1])
    optimizer = torch.optim.Adam(criterion.learnt, lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        criterion(logits, targets).backward()
        optimizer.step()
    losses = torch.tensor([math.log(3), -0.9 * math.log(0.9) - 0.1 * math.log(0.1)])
    # The minimum of exp(-s) loss + s / 2 is at s = ln(2 loss).
    torch.testing.assert_close(criterion.log_variances.data, (2 * losses).log(), atol=1e-3, rtol=0)
    with torch.no_grad():  # as in validation
        assert criterion(logits, targets).item() == pytest.approx(losses.sum().item())
