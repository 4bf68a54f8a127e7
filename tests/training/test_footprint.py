"""What a network costs: counted by hand, measured within limits, held against the bounds."""

import pytest
import torch
from torch import nn

from ballot.config.layers import merge
from ballot.errors import AboveBounds, UserError
from ballot.training.footprint import (
    Footprint,
    check_bounds,
    footprint_of,
    multiply_adds,
)
from ballot.values import Layer


class ReadsAValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, images):
        assert images.sum().item() == 0  # which the meta device does not know
        return self.layer(images.mean((2, 3)))


def small():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(4 * 8 * 8, 5),
    )


def test_parameters_and_multiply_adds_are_those_of_a_count_by_hand():
    found = footprint_of(small(), 8, batch_size=4)
    assert found.parameters == (3 * 9 + 1) * 4 + 8 + (256 + 1) * 5
    assert found.multiply_adds == 64 * 3 * 9 * 4 + 256 * 5
    assert 0 < found.latency < 1 and found.images_per_second > 1


def test_measuring_leaves_the_network_and_the_random_numbers_as_they_were():
    model = small().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    footprint_of(model, 8)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_the_meta_device_cannot_do_is_measured_and_not_counted():
    found = footprint_of(ReadsAValue(), 8)
    assert multiply_adds(ReadsAValue(), 8) is None is found.multiply_adds and found.parameters == 8


@pytest.mark.parametrize(
    "bounds, said",
    [
        ({"max_params": "3.5M"}, None),
        (
            {"max_params": "3499k"},
            r"max_params: simple_cnn has 3,500,000 parameters, more than 3499k",
        ),
        ({"max_params": 3499999}, "more than 3499999"),
        ({"max_latency": "20ms"}, None),
        (
            {"max_latency": "0.019s"},
            "max_latency: simple_cnn takes 20 ms for an image, more than 0.019s",
        ),
    ],
)
def test_a_network_above_a_bound_is_named_with_its_number(bounds, said):
    config, _ = merge([Layer("command line", bounds)])
    found = Footprint(3_500_000, 1, 0.02, 50.0)
    if said is None:
        check_bounds(config, found)
    else:
        with pytest.raises(AboveBounds, match=said):
            check_bounds(config, found)


@pytest.mark.parametrize(
    "bounds, said",
    [
        ({"max_params": "many"}, "max_params is 'many'; it takes a number, as in 500k or 10M"),
        ({"max_params": "0"}, "it takes a number"),
        ({"max_latency": 20}, "max_latency is '20'; it takes a time with its unit, as in 20ms"),
        ({"max_latency": "0ms"}, "it takes a time with its unit"),
    ],
)
def test_a_bound_that_is_no_number_with_a_unit_is_refused(bounds, said):
    with pytest.raises(UserError, match=said):
        merge([Layer("command line", bounds)])
