"""The blocks of a network in the order of depth: what is frozen first and learns slowest."""

from __future__ import annotations

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList)
NORMS = ("BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm", "InstanceNorm")


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
