"""What a frozen backbone makes of images, and a classifier that is fitted to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ballot.data.batches import Batch, Subset
from ballot.training.heads import Heads
from ballot.training.process import precision

PENALTY = 10.0  # of the squared weights against the sum of the losses: scikit-learn's C = 0.1
STEPS = 200  # of L-BFGS
ROOM = 2**30  # bytes of features that are kept at most

# Weights of classes [K], given for each joint class which of them it has.
ClassWeights = Callable[[Sequence[int]], torch.Tensor | None]


@torch.no_grad()
def features_of(
    model: nn.Module, layer: nn.Module, batches: Iterable[Batch], amp: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `layer` is given for each image, float32 [N, F], and the targets."""
    caught: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: caught.append(given[0].float()))
    was_training = model.training
    model.eval()
    try:
        for images, labels in batches:
            with precision(images, amp):
                model(images)
            targets.append(labels.clone())
    finally:
        handle.remove()
        model.train(was_training)
    return torch.cat(caught).flatten(1).clone(), torch.cat(targets)


def fit_linear(
    features: torch.Tensor,
    targets: torch.Tensor,
    num_classes: int,
    class_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a logistic regression to targets [N] or [N, C]; return weights [C, F] and biases [C]."""
    weight = features.new_zeros(num_classes, features.shape[1]).requires_grad_()
    bias = features.new_zeros(num_classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = features @ weight.T + bias
        each = nn.functional.cross_entropy(logits, targets, class_weights, reduction="sum")
        total = (each + PENALTY / 2 * weight.square().sum()) / len(features)
        total.backward()
        return total

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def fit_classifier(
    model: nn.Module,
    layer: nn.Linear,
    batches: Iterable[Batch],
    amp: torch.dtype | None = None,
    class_weights: ClassWeights = lambda _: None,
    heads: Heads | None = None,
) -> None:
    """Start `layer`, which gives the logits, from a logistic regression on what it is given.

    With `heads` there is one for each attribute; the head of the joint classes adds nothing yet.
    """
    features, targets = features_of(model, layer, batches, amp)
    tasks = [tuple(range(layer.out_features))]
    if heads is not None:
        tasks = [attribute.of_class for attribute in heads.attributes]
    fitted = []
    for of_class in tasks:
        own = _of_task(of_class, targets)
        fitted.append(fit_linear(features, own, max(of_class) + 1, class_weights(of_class)))
    weight, bias = (torch.cat(parts) for parts in zip(*fitted))
    with torch.no_grad():
        layer.weight.zero_()[: len(weight)].copy_(weight)
        if layer.bias is not None:
            layer.bias.zero_()[: len(bias)].copy_(bias)


def _of_task(of_class: Sequence[int], targets: torch.Tensor) -> torch.Tensor:
    """Return the targets of the classes that joint ones have; probabilities [N, C] add up."""
    classes = torch.tensor(of_class, device=targets.device)
    if targets.ndim == 1:
        return classes[targets]
    return targets.new_zeros(len(targets), max(of_class) + 1).index_add(1, classes, targets)


@dataclass
class FrozenFeatures:
    """Features of subsets, computed once, for a network of which only `layer` is trained."""

    model: nn.Module
    layer: nn.Module
    images: Callable[[Subset], Iterable[Batch]]  # every row once, in order
    amp: torch.dtype | None = None
    kept: dict[int, Batch] = field(default_factory=dict)

    def of(self, subset: Subset) -> Batch:
        """Return the features [N, F] of a subset's rows and their targets."""
        if id(subset) not in self.kept:
            batches = self.images(subset)
            self.kept[id(subset)] = features_of(self.model, self.layer, batches, self.amp)
        return self.kept[id(subset)]

    def batches(self, subset: Subset, batch_size: int, **drawn: object) -> Iterator[Batch]:
        """Yield what `subset.batches` would, with features in the place of images."""
        features, targets = self.of(subset)
        for places in subset.places(batch_size, **drawn):  # type: ignore[arg-type]
            rows = torch.from_numpy(places).to(features.device)
            yield features[rows], targets[rows]


def take_features(model: nn.Module, layer: nn.Module, dropout: float) -> None:
    """Let a network take features [N, F] as well as images; `dropout` comes before its `layer`."""
    whole = model.forward

    def forward(given: torch.Tensor) -> torch.Tensor:
        if given.ndim != 2:
            return whole(given)
        return layer(nn.functional.dropout(given, dropout, model.training))

    model.forward = forward
