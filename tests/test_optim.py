"""Optimisers and schedules against PyTorch's own."""

import inspect
import itertools
import json
import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from ballot.errors import UserError
from optim import OPTIMIZERS, SCHEDULERS, create_optimizer, create_scheduler, param_groups

TORCH = OPTIMIZERS.names(families=False)
TIMM = [name for name in OPTIMIZERS.names() if name.startswith("timm:")]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )


def losses(name, steps=10, lr=1e-3, args=None):
    """The loss before each of some steps on one batch."""
    model = network()
    optimizer = create_optimizer(name, model, lr=lr, weight_decay=1e-2, args=args)
    images, targets = torch.randn(6, 3, 8, 8), torch.arange(6) % 3
    seen = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


@pytest.mark.parametrize(
    "name", [*TORCH, *(pytest.param(name, marks=pytest.mark.slow) for name in TIMM)]
)
def test_every_optimizer_lowers_the_loss_of_a_batch(name):
    seen = losses(name)
    assert min(seen[1:]) < seen[0] and all(map(math.isfinite, seen))


def test_every_optimizer_of_pytorch_is_there_but_for_the_special_ones():
    every = {
        name
        for name, cls in vars(torch.optim).items()
        if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)
    }
    assert every - set(TORCH) == {"Optimizer", "LBFGS", "SparseAdam", "Muon"}


@pytest.mark.parametrize("name", [name for name in TORCH if name != "Rprop"])
def test_an_optimizer_takes_the_same_steps_as_pytorchs(name):
    ours, theirs = network(), network()
    for model in (ours, theirs):  # before a batch norm its gradient is rounding errors alone
        model[0].bias = None
    mine = create_optimizer(name, ours, lr=1e-2, weight_decay=1e-2)
    its = getattr(torch.optim, name)(theirs.parameters(), lr=1e-2, weight_decay=1e-2)
    images = torch.randn(4, 3, 8, 8)
    for model, optimizer in ((ours, mine), (theirs, its)):
        for _ in range(3):
            optimizer.zero_grad()
            model(images).square().sum().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_a_step_is_one_kernel_where_pytorch_has_it_and_nobody_says_otherwise(name):
    def build(model, **args):
        return create_optimizer(name, model, lr=1e-2, weight_decay=0, args=args)

    assert build(network()).defaults["fused"] is True
    assert not build(network(), foreach=True).defaults["fused"]
    assert build(network(), fused=False).defaults["fused"] is False
    assert build(network().to("meta")).defaults["fused"] is False


def test_arguments_reach_the_optimizer_and_lists_become_tuples():
    optimizer = create_optimizer(
        "AdamW", network(), lr=1e-3, weight_decay=0, args={"betas": [0.8, 0.9]}
    )
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    optimizer = create_optimizer("timm:sgd", network(), lr=1e-3, weight_decay=0.1)
    assert optimizer.defaults["momentum"] == 0.9
    assert all(group["weight_decay"] == 0.1 for group in optimizer.param_groups)


@pytest.mark.parametrize(
    "name, args, said",
    [
        ("adamw", {}, "did you mean 'AdamW'"),
        ("LBFGS", {}, "unknown optimizer"),
        ("timm:adamww", {}, "unknown optimizer"),
        ("SGD", {"momentun": 0.9}, "did you mean 'momentum'"),
        ("SGD", {"momentum": -1}, "Invalid momentum"),
        ("SGD", {"nesterov": True}, "Nesterov"),
        ("AdamW", {"betas": [2, 3]}, "Invalid beta"),
        ("AdamW", {"betas": 1}, "refuses them"),
        ("AdamW", {"lr": 1}, "takes no argument 'lr'"),
        ("timm:lion", {"beta": 1}, "did you mean 'betas'"),
    ],
)
def test_names_and_arguments_that_make_no_sense_are_refused(name, args, said):
    with pytest.raises(UserError, match=said):
        create_optimizer(name, network(), lr=1e-3, weight_decay=0, args=args)


def test_an_optimizer_without_weight_decay_says_so(caplog):
    create_optimizer("Rprop", network(), lr=1e-3, weight_decay=1e-2)
    assert "Rprop has no weight decay" in caplog.text


def test_norms_and_biases_are_spared_the_weight_decay():
    model = network()
    groups = param_groups(model, lr=1.0, weight_decay=0.1, no_decay_norm=True)
    spared = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    assert spared == {id(p) for p in (model[0].bias, *model[1].parameters(), model[4].bias)}


def test_what_a_model_spares_by_name_is_spared():
    model = network()
    model.no_weight_decay = lambda: {"0.weight"}
    groups = param_groups(model, lr=1.0, weight_decay=0.1, no_decay_norm=True)
    decayed = [p for g in groups if g["weight_decay"] for p in g["params"]]
    assert [id(p) for p in decayed] == [id(model[4].weight)]


def test_layer_decay_multiplies_the_rate_from_block_to_block():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    groups = param_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    assert [group["lr"] for group in groups] == [0.125, 0.25, 0.5, 1.0]
    for layer, group in zip(model, groups):
        assert {id(p) for p in group["params"]} == {id(p) for p in layer.parameters()}


def test_only_what_is_trained_is_optimised():
    model = network()
    model[0].requires_grad_(False)
    (group,) = param_groups(model, lr=1.0, weight_decay=0.1)
    assert len(group["params"]) == 4
    with pytest.raises(UserError, match="no parameter is left"):
        param_groups(model.requires_grad_(False), lr=1.0, weight_decay=0.1)


# ---------------------------------------------------------------------------------- schedules

EPOCHS, STEPS = 30, 4


def optimizer_of(lr=0.1):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def rates(name, args=None, warmup=0.0, epochs=EPOCHS, scores=None):
    """The learning rate of every step."""
    schedule = create_scheduler(
        name, optimizer_of(), epochs=epochs, steps_per_epoch=STEPS, warmup_epochs=warmup, args=args
    )
    seen = []
    for epoch in range(epochs):
        for _ in range(STEPS):
            seen.append(schedule.lr)
            schedule.step_batch()
        schedule.step_epoch(scores[epoch] if scores else None)
    return seen


def pytorch_rates(make, per_step, scores=None):
    optimizer = optimizer_of()
    scheduler = make(optimizer)
    seen = []
    for epoch in range(EPOCHS):
        for _ in range(STEPS):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if per_step:
                scheduler.step()
        if not per_step:
            scheduler.step(*([scores[epoch]] if scores else []))
    return seen


@pytest.mark.parametrize(
    "name, args, make, per_step",
    [
        ("multistep", {}, lambda o: lr_scheduler.MultiStepLR(o, [10, 20, 25]), False),
        (
            "multistep",
            {"milestones": [7, 3], "gamma": 0.5},
            lambda o: lr_scheduler.MultiStepLR(o, [3, 7], gamma=0.5),
            False,
        ),
        (
            "step",
            {"step_size": 4, "gamma": 0.3},
            lambda o: lr_scheduler.StepLR(o, 4, 0.3),
            False,
        ),
        ("cosine", {}, lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS * STEPS), True),
        (
            "cosine",
            {"min_factor": 0.1},
            lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS * STEPS, eta_min=0.01),
            True,
        ),
        ("constant", {}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0), False),
    ],
)
def test_schedules_equal_pytorchs(name, args, make, per_step):
    assert rates(name, args) == pytest.approx(pytorch_rates(make, per_step), abs=1e-12)


def test_onecycle_is_pytorchs_to_within_one_step():
    def make(optimizer):
        return lr_scheduler.OneCycleLR(optimizer, 0.1, EPOCHS * STEPS, cycle_momentum=False)

    ours, theirs = rates("onecycle"), pytorch_rates(make, per_step=True)
    assert ours[0] == pytest.approx(theirs[0]) and max(ours) == pytest.approx(0.1)
    largest_step = max(abs(a - b) for a, b in itertools.pairwise(theirs))
    assert max(abs(a - b) for a, b in zip(ours, theirs)) <= largest_step


@pytest.mark.parametrize("args", [{}, {"patience": 0, "factor": 0.5, "cooldown": 2}])
def test_plateau_decides_as_pytorchs(args):
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(EPOCHS, generator=generator).tolist()
    full = {"patience": 3, "factor": 0.1, **args}

    def make(optimizer):
        return lr_scheduler.ReduceLROnPlateau(optimizer, "max", threshold_mode="abs", **full)

    ours = rates("plateau", args, scores=scores)
    assert ours == pytest.approx(pytorch_rates(make, per_step=False, scores=scores))
    assert min(ours) < 0.1


def test_a_score_that_is_no_number_is_no_better():
    seen = rates("plateau", {"patience": 1}, scores=[0.5] + [math.nan] * (EPOCHS - 1))
    assert seen[-1] < 0.1


@pytest.mark.parametrize("name", SCHEDULERS.names())
def test_warm_up_rises_in_a_line_to_the_schedule(name):
    seen = rates(name, warmup=2.0)
    start = rates(name)[0]
    assert seen[:8] == pytest.approx([start * (k + 1) / 8 for k in range(8)])
    assert seen[8] == pytest.approx(start)


def test_steps_stay_at_their_epochs_behind_a_warm_up():
    assert rates("multistep", warmup=2.0)[8:] == rates("multistep")[8:]


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 30])
def test_the_default_never_starts_below_and_falls_at_most_once_an_epoch(epochs):
    ends = rates("multistep", epochs=epochs)[::STEPS]
    assert ends[0] == 0.1
    assert all(
        b == pytest.approx(a) or b == pytest.approx(a / 10) for a, b in itertools.pairwise(ends)
    )


@pytest.mark.parametrize("name", SCHEDULERS.names())
@pytest.mark.parametrize("stop", [0, 5, 13])
def test_a_schedule_continues_from_its_state_as_if_undisturbed(name, stop):
    def run(schedule, optimizer, first):
        seen = []
        for epoch in range(first, 20):
            for _ in range(STEPS):
                seen.append(optimizer.param_groups[0]["lr"])
                schedule.step_batch()
            schedule.step_epoch(1.0 if epoch < 2 else 0.5)
            if epoch + 1 == stop:
                states.append(json.loads(json.dumps(schedule.state_dict(), allow_nan=True)))
                states.append(optimizer.state_dict())
        return seen

    def fresh():
        optimizer = optimizer_of()
        settings = {"epochs": 20, "steps_per_epoch": STEPS, "warmup_epochs": 1.5}
        return create_scheduler(name, optimizer, **settings), optimizer

    states = []
    schedule, optimizer = fresh()
    states += [schedule.state_dict(), optimizer.state_dict()] if stop == 0 else []
    whole = run(schedule, optimizer, 0)
    schedule, optimizer = fresh()
    optimizer.load_state_dict(states[1])
    schedule.load_state_dict(states[0])
    assert run(schedule, optimizer, stop) == whole[stop * STEPS :]


def test_groups_keep_their_ratio():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = create_optimizer("SGD", model, lr=1.0, weight_decay=0, layer_decay=0.5)
    schedule = create_scheduler("cosine", optimizer, epochs=4, steps_per_epoch=1)
    schedule.step_epoch()
    schedule.step_epoch()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.25, 0.5])
    assert schedule.lr == pytest.approx(0.5)


@pytest.mark.parametrize(
    "name, args, warmup, said",
    [
        ("cosin", {}, 0, "did you mean 'cosine'"),
        ("cosine", {"t_max": 3}, 0, "takes no argument 't_max'"),
        ("multistep", {"milestones": 3}, 0, "list of epochs"),
        ("multistep", {"milestones": ["a"]}, 0, "milestones is 'a'"),
        ("step", {"step_size": 0}, 0, "greater than 0"),
        ("plateau", {"patience": -1}, 0, "0 or more"),
        ("plateau", {"factor": "x"}, 0, "it takes a number"),
        ("cosine", {}, 30, "30 epochs of warm-up in 30"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(name, args, warmup, said):
    with pytest.raises(UserError, match=said):
        rates(name, args, warmup=warmup)
