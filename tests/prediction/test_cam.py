"""Class activation maps: against a map by hand, and of networks that have none."""

import pytest
import torch
from torch import nn

from ballot.prediction.cam import class_activation_maps
from model import create_model


class MeanThenLinear(nn.Module):
    """A convolution, the mean over places, a linear layer: what Zhou et al. (2016) look at."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(inplace=True)
        )
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 4)

    def forward(self, images):
        return self.head(self.pool(self.features(images)).flatten(1))


def test_the_map_is_the_weighted_sum_of_features_where_a_mean_and_a_linear_layer_follow():
    torch.manual_seed(0)
    model, images = MeanThenLinear().train(), torch.randn(5, 3, 16, 16)
    classes = torch.tensor([0, 1, 2, 3, 1])
    found = class_activation_maps(model, images, classes)
    with torch.no_grad():
        features = model.features(images)  # [5, 6, 8, 8]
        sums = torch.einsum("bk,bkhw->bhw", model.head.weight[classes], features).relu()
    sums -= sums.amin((1, 2), keepdim=True)
    wanted = sums / sums.amax((1, 2), keepdim=True)
    torch.testing.assert_close(found, wanted)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


def test_it_finds_the_patch_that_a_class_is_made_of():
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():  # class 0 is red, class 1 is blue
        model[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 1]])[..., None, None])
    images = torch.zeros(1, 3, 8, 8)
    images[0, 0, :2, :2], images[0, 2, 6:, 6:] = 1.0, 1.0
    for number, place in enumerate(((slice(0, 2), slice(0, 2)), (slice(6, 8), slice(6, 8)))):
        (found,) = class_activation_maps(model, images, torch.tensor([number]))
        assert found[place].min() == 1 and found.sum() == 4


@pytest.mark.parametrize("name, side", [("simple_cnn", 2), ("resnet18", 2), ("densenet121", 2)])
def test_networks_of_the_catalogue_have_maps(name, side):
    model, _ = create_model(name, 3, pretrained="no", image_size=64)
    found = class_activation_maps(model, torch.randn(2, 3, 64, 64), torch.tensor([0, 2]))
    assert found.shape[0] == 2 and min(found.shape[1:]) >= side
    assert found.min() >= 0 and found.max() <= 1


def test_a_transformer_of_patches_and_a_network_without_places_have_none():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    assert class_activation_maps(flat, torch.randn(1, 3, 8, 8), torch.tensor([0])) is None
    model, _ = create_model("timm:vit_tiny_patch16_224", 3, pretrained="no", image_size=224)
    assert class_activation_maps(model, torch.randn(1, 3, 224, 224), torch.tensor([0])) is None
