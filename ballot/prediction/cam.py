"""Where a convolutional network looks for a class: class activation maps.

Grad-CAM (Selvaraju et al., 2017) on the last feature map that has more than one place; where a mean
over places and a linear layer follow, it is the map of Zhou et al. (2016).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def class_activation_maps(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor | None:
    """Return what speaks for the class number of each image: float32 `[B, h, w]`, least 0, most 1.

    `images` `[B, 3, H, W]` are as the network takes them, `classes` `[B]`. None where a network has
    no feature map `[B, K, h, w]` of more than one place, as a transformer of patches.
    """
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.shape[2:].numel() > 1:
            seen[:] = [output]  # the last one stays

    inner = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(keep) for module in inner]
    try:
        with _gradients_of_features_alone(model):
            logits = model(images.clone().requires_grad_())
            if not seen or not is_feature_map(seen[0]):
                return None
            chosen = logits.gather(1, classes.to(logits.device)[:, None]).sum()
            (slopes,) = torch.autograd.grad(chosen, seen[0])
    finally:
        for handle in handles:
            handle.remove()
    weights = slopes.mean((2, 3), keepdim=True)
    maps = (weights * seen[0]).sum(1).relu().detach().float()
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)


def is_feature_map(output: Tensor) -> bool:
    """Tell whether a layer's output has channels before places, as many across as down.

    Images are square here; what has channels last, or a row of tokens, is a transformer's.
    """
    return output.ndim == 4 and output.shape[2] == output.shape[3]


@contextmanager
def _gradients_of_features_alone(model: nn.Module) -> Iterator[None]:
    """Let no weight ask for a gradient, and leave training and gradients as they were."""
    training, asking = model.training, [p for p in model.parameters() if p.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(training)
        for parameter in asking:
            parameter.requires_grad_(True)
