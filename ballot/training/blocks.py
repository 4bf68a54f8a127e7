"""The blocks of a network in the order of depth: what is frozen first and learns slowest."""

from __future__ import annotations

import torch
from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList)
NORMS = ("BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm", "InstanceNorm")
# Libraries whose layers take channels last.
ANY_ORDER = {"torch", "torchvision", "timm", "efficientnet_pytorch", "model", "ballot"}


def blocks(model: nn.Module) -> list[list[str]]:
    """Split the names of all parameters into blocks, from the input to the classifier.

    A block is a child of the network, where a plain container, and a child that holds more than
    half of all parameters, stands for its own children. A norm belongs to the block before it and
    a loose parameter (a class token, a position) to the first one.
    """
    half = sum(p.numel() for p in model.parameters()) / 2
    found: list[list[str]] = []
    loose: list[str] = []
    _walk(model, "", half, found, loose)
    if loose:
        found[:1] = [loose + (found[0] if found else [])]
    return found


def _walk(
    module: nn.Module, prefix: str, half: float, found: list[list[str]], loose: list[str]
) -> None:
    loose += [prefix + name for name, _ in module.named_parameters(recurse=False)]
    for name, child in module.named_children():
        names = [f"{prefix}{name}.{inner}" for inner, _ in child.named_parameters()]
        if not names:
            continue
        large = sum(p.numel() for p in child.parameters()) > half
        if list(child.children()) and (type(child) in CONTAINERS or large):
            _walk(child, f"{prefix}{name}.", half, found, loose)
        elif found and any(word in type(child).__name__ for word in NORMS):
            found[-1] += names
        else:
            found.append(names)


def arrange(model: nn.Module, channels_last: bool | None) -> nn.Module:
    """Put a model's weights into the memory order that was chosen; None chooses by the device.

    Where it convolves (a patch embedding is not meant) a CPU is 1.0 to 1.7 times as fast in
    channels-last order, and a transformer is not; on other devices it is left to whoever measures.
    A network of a person's own keeps the order that it was written for.
    """
    if channels_last is None:
        convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
        device = next(model.parameters()).device
        channels_last = device.type == "cpu" and convolutions > 1 and _takes_any_order(model)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def _takes_any_order(model: nn.Module) -> bool:
    """Whether all layers are of libraries that work in either order: others may `view` a map."""
    return {type(layer).__module__.partition(".")[0] for layer in model.modules()} <= ANY_ORDER


def ordered(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return images [B, 3, H, W] in the memory order of the model's weights."""
    weights = (p for p in model.parameters() if p.ndim == 4)
    if any(not p.is_contiguous() for p in weights):  # a kernel of 1 x 1 is of both orders
        return images.contiguous(memory_format=torch.channels_last)
    return images
