"""How a network is cut into blocks."""

import pytest
import torch
import torchvision
from torch import nn

from ballot.training.blocks import arrange, blocks, ordered


@pytest.mark.parametrize(
    "name, count, first, last",
    [
        ("resnet18", 10, "conv1.weight", "fc.bias"),
        ("vgg11", 11, "features.0.weight", "classifier.6.bias"),
        ("vit_b_32", 14, "class_token", "heads.head.bias"),
        ("mobilenet_v3_small", 15, "features.0.0.weight", "classifier.3.bias"),
    ],
)
def test_blocks_go_from_the_stem_to_the_classifier(name, count, first, last):
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    found = blocks(model)
    assert len(found) == count
    assert found[0][0] == first and found[-1][-1] == last


def test_every_parameter_stands_in_one_block():
    model = torchvision.models.resnet18()
    names = [name for block in blocks(model) for name in block]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_a_norm_belongs_to_the_block_before_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    assert blocks(model) == [["0.weight", "0.bias", "1.weight", "1.bias"], ["3.weight", "3.bias"]]


def test_a_network_without_parameters_has_no_blocks():
    assert blocks(nn.Flatten()) == []


class Flat(nn.Module):
    """A network as many a person writes it, which cannot `view` a map in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)

    def forward(self, images):
        return self.second(self.first(images)).view(-1, 80)


def test_a_network_of_a_persons_own_keeps_the_order_that_it_was_written_for():
    images = torch.rand(2, 3, 8, 8)
    for network in (Flat(), nn.Sequential(Flat())):
        assert arrange(network, None)(ordered(network, images)).shape == (2, 80)


def test_convolutions_on_a_cpu_take_images_channel_by_channel_unless_told_otherwise():
    images = torch.randn(2, 3, 8, 8)
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    patches = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(), nn.Linear(16, 2))
    for model, said, last in (
        (convolutions, None, True),
        (patches, None, False),
        (patches, True, True),
    ):
        before = model(images)
        taken = ordered(arrange(model, said), images)
        assert taken.is_contiguous(memory_format=torch.channels_last) is last
        torch.testing.assert_close(model(taken), before)
    assert (
        ordered(arrange(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)), False), images)
        is images
    )
