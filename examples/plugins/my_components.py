"""A custom model, loss and augmentation, without changing Ballot:

    python train.py --plugins examples/plugins/my_components.py \
        --model my_net --model_args '{"width": 16}' --criterion my_loss --augmentation my_colours

Copy this file to your experiments and change it. The names work on the command line, in
configuration files and in search spaces, and appear in error messages.
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


# A model is a function of the number of classes. Arguments after the star can be set with
# --model_args; `pretrained` can be true only if the model is registered with `weights=`.
@MODELS.register("my_net", input_size=64)
def my_net(num_classes: int, pretrained: bool, *, width: int = 32) -> nn.Module:  # noqa: ARG001
    """Three convolutions that halve the resolution and double the width, then global pooling."""

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


# A loss takes logits [N, C] and targets: indices [N] or probabilities [N, C]. A function with an
# argument `class_weights` gets those of --class_weights; otherwise that option is an error.
@CRITERIA.register("my_loss")
def my_loss(num_classes: int, *, q: float = 0.7) -> nn.Module:
    """Generalised cross entropy, robust to label noise (Zhang and Sabuncu, 2018)."""
    return GeneralisedCrossEntropy(num_classes, q)


class GeneralisedCrossEntropy(nn.Module):
    """The mean of (1 - p^q) / q: cross entropy for q near 0, absolute error for q = 1."""

    def __init__(self, num_classes: int, q: float) -> None:
        super().__init__()
        self.num_classes, self.q = num_classes, q

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if targets.ndim == 1:
            targets = F.one_hot(targets, self.num_classes)
        log_p = logits.float().log_softmax(dim=1)
        return (targets * -torch.expm1(self.q * log_p) / self.q).sum(dim=1).mean()


# An augmentation defines how images become squares of `size`, and lists steps. A step takes a batch
# [B, 3, H, W] with values in 0..255 and a random generator. Use no other source of randomness, so
# that an interrupted run continues to the same result.
@AUGMENTATIONS.register("my_colours")
def my_colours(size: int, *, strength: float = 0.2) -> Recipe:
    """Flip, and scale each channel of each image by a random factor."""

    def tint(images: Tensor, rng: np.random.Generator) -> Tensor:
        factors = rng.uniform(1 - strength, 1 + strength, (len(images), 3, 1, 1))
        factors = torch.from_numpy(factors.astype(np.float32)).to(images.device)
        return (images.float() * factors).clamp(0, 255)

    return Recipe(Geometry(size), (flip(0.5), tint))
