"""A model, a loss and an augmentation of your own, without touching Ballot:

    python train.py --plugins examples/plugins/my_components.py \
        --model my_net --model_args '{"width": 16}' --criterion my_loss --augmentation my_colours

Copy this file to wherever your experiments live and change it. The names work everywhere: on the
command line, in a configuration file, in a search space, in the error messages.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ballot.data.augment import Recipe, flip
from ballot.data.images import Geometry
from dataset import AUGMENTATIONS
from loss import CRITERIA
from model import MODELS


# A model is a function of the number of classes. What stands behind the star can be set with
# --model_args; `pretrained` is true only where `weights=` says where published weights are.
@MODELS.register("my_net", input_size=64)
def my_net(num_classes: int, pretrained: bool, *, width: int = 32) -> nn.Module:  # noqa: ARG001
    """Three convolutions, each half as large and twice as wide, and their mean."""

    def stage(before: int, after: int) -> nn.Module:
        convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True))

    return nn.Sequential(
        stage(3, width),
        stage(width, 2 * width),
        stage(2 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )


# A loss takes logits [N, C] and targets, indices [N] or probabilities [N, C]. One with an argument
# `class_weights` is handed those of --class_weights; without it they are refused.
@CRITERIA.register("my_loss")
def my_loss(num_classes: int, *, q: float = 0.7) -> nn.Module:
    """Generalised cross entropy, for labels of which some are wrong (Zhang and Sabuncu, 2018)."""
    return GeneralisedCrossEntropy(num_classes, q)


class GeneralisedCrossEntropy(nn.Module):
    """The mean of (1 - p^q) / q: cross entropy where q is near 0, absolute error where it is 1."""

    def __init__(self, num_classes: int, q: float) -> None:
        super().__init__()
        self.num_classes, self.q = num_classes, q

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if targets.ndim == 1:
            targets = F.one_hot(targets, self.num_classes)
        log_p = logits.float().log_softmax(dim=1)
        return (targets * -torch.expm1(self.q * log_p) / self.q).sum(dim=1).mean()


# An augmentation says how images become squares of `size`, and lists steps. A step takes a batch
# [B, 3, H, W] with values in 0..255 and a generator, from which all its chance must come: that is
# what lets an interrupted run continue to the same result.
@AUGMENTATIONS.register("my_colours")
def my_colours(size: int, *, strength: float = 0.2) -> Recipe:
    """Mirror, and make each channel of each image a little stronger or weaker."""

    def tint(images: Tensor, rng: np.random.Generator) -> Tensor:
        factors = rng.uniform(1 - strength, 1 + strength, (len(images), 3, 1, 1))
        factors = torch.from_numpy(factors.astype(np.float32)).to(images.device)
        return (images.float() * factors).clamp(0, 255)

    return Recipe(Geometry(size), (flip(0.5), tint))
