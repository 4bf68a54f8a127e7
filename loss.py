"""Criteria: what a trial minimises.

Each is an `nn.Module` that takes logits `[N, C]` and targets, either class indices `[N]` (int64) or
probabilities `[N, C]` (mixup, cutmix), and returns a scalar. All of them compute in float32, so
that they stay finite in bf16 and for any finite logit. Class weights follow PyTorch: with indices
the mean is weighted (divided by the sum of the weights met), with probabilities it is over rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ballot.errors import UserError
from ballot.registry import Registry
from ballot.training.heads import HeadsCriterion
from ballot.values import Values

CRITERIA = Registry("criterion")


def create_criterion(
    name: str, num_classes: int, class_weights: Tensor | None = None, /, **args: Any
) -> nn.Module:
    """Build the criterion `name` with its own `args`; `class_weights` is `[C]`.

    The weights may stand among the arguments too (`{"class_weights": [1, 2, 1]}`), but not in both
    places. Unknown names and arguments, and weights that cannot be used, are a `UserError`.
    """
    entry = CRITERIA.entry(name)
    own = args.pop("class_weights", None)
    if own is not None and class_weights is not None:
        raise UserError("class_weights: stand in criterion_args too; use --class_weights none")
    weights = _check_weights(class_weights if own is None else own, num_classes)
    if "class_weights" in inspect.signature(entry.build).parameters:
        return CRITERIA.create(name, num_classes, args=args, class_weights=weights)
    if weights is not None:
        raise UserError(f"class_weights: criterion {name!r} takes none; use class_weights none")
    return CRITERIA.create(name, num_classes, args=args)


def criterion_entrypoint(name: str) -> Callable[..., nn.Module]:
    """Return the builder of `name`; an unknown name is a `UserError`."""
    return CRITERIA.entry(name).build


def create_heads_criterion(
    name: str,
    tasks: Sequence[Sequence[tuple[int, ...]]],
    class_weights: Callable[[Sequence[int]], Tensor | None],
    /,
    *,
    uncertainty: bool = False,
    args: Values | None = None,
) -> HeadsCriterion:
    """Build the criterion `name` for each task of each head, of logits of joint classes.

    `class_weights` returns the weights of a task's classes, given the one of each joint class.
    """
    args = dict(args or {})
    if "class_weights" in args:
        raise UserError(
            "criterion_args: class_weights are of one head's classes; with heads use "
            "--class_weights balanced"
        )

    def make(num_classes: int, of_class: Sequence[int]) -> nn.Module:
        return create_criterion(name, num_classes, class_weights(of_class), **args)

    rest = bool(CRITERIA.entry(name).info.get("one_versus_rest", False))
    return HeadsCriterion(tasks, make, one_versus_rest=rest, uncertainty=uncertainty)


def is_criterion(name: str) -> bool:
    """Say whether there is a criterion called `name`."""
    return name in CRITERIA


@CRITERIA.register("cross_entropy")
def cross_entropy(
    num_classes: int, *, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> nn.Module:
    """Cross entropy, PyTorch's own (`torch.nn.functional.cross_entropy`)."""
    _within("label_smoothing", label_smoothing, 0, 1)
    return CrossEntropy(num_classes, class_weights, label_smoothing=label_smoothing)


@CRITERIA.register("focal")
def focal(
    num_classes: int, *, class_weights: Tensor | None = None, gamma: float = 2.0
) -> nn.Module:
    """Focal loss on the softmax (Lin et al., 2017): cross entropy where `gamma` is 0."""
    _within("gamma", gamma, 0)
    return Focal(num_classes, class_weights, gamma=gamma)


@CRITERIA.register("label_smoothing")
def label_smoothing(
    num_classes: int, *, class_weights: Tensor | None = None, smoothing: float = 0.1
) -> nn.Module:
    """Cross entropy with smoothed labels (Szegedy et al., 2016), PyTorch's own."""
    _within("smoothing", smoothing, 0, 1)
    return CrossEntropy(num_classes, class_weights, label_smoothing=smoothing)


@CRITERIA.register("f1")
def f1(num_classes: int, *, class_weights: Tensor | None = None) -> nn.Module:
    """Soft macro F1: one minus the mean over classes of 2 TP / (2 TP + FP + FN).

    Counts are sums of probabilities over the batch. On one-hot predictions this is one minus
    scikit-learn's macro F1, which leaves out a class neither predicted nor present.
    """
    return SoftF1(num_classes, class_weights)


@CRITERIA.register("bce", one_versus_rest=True)
def bce(num_classes: int, *, class_weights: Tensor | None = None) -> nn.Module:
    """Binary cross entropy of each class against the rest (Wightman et al., 2021), PyTorch's own.

    The mean is over rows and classes.
    """
    return OneVersusRest(num_classes, class_weights)


@CRITERIA.register("poly1")
def poly1(
    num_classes: int, *, class_weights: Tensor | None = None, epsilon: float = 1.0
) -> nn.Module:
    """PolyLoss with one extra term: cross entropy + `epsilon` (1 - p) (Leng et al., 2022)."""
    _within("epsilon", epsilon, -1)
    return Poly1(num_classes, class_weights, epsilon=epsilon)


@CRITERIA.register("asymmetric", one_versus_rest=True)
def asymmetric(
    num_classes: int,
    *,
    class_weights: Tensor | None = None,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
) -> nn.Module:
    """Asymmetric loss of each class against the rest (Ridnik et al., 2021).

    Easy negatives are focused away by `gamma_neg` and dropped below a probability of `clip`. The
    sum is over classes, the mean over rows.
    """
    _within("gamma_neg", gamma_neg, 0)
    _within("gamma_pos", gamma_pos, 0)
    _within("clip", clip, 0, 1)
    return Asymmetric(
        num_classes, class_weights, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip
    )


class Criterion(nn.Module):
    """What the criteria above share: class weights that move with `.to()`, targets, the mean."""

    class_weights: Tensor | None

    def __init__(self, num_classes: int, class_weights: Tensor | None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("class_weights", class_weights, persistent=False)

    def soft(self, targets: Tensor) -> Tensor:
        """Return the targets as float32 probabilities `[N, C]`."""
        if targets.ndim == 1:
            targets = F.one_hot(targets, self.num_classes)
        return targets.float()

    def weighted(self, values: Tensor) -> Tensor:
        """Multiply values `[N, C]` by the weight of their class."""
        return values if self.class_weights is None else values * self.class_weights

    def mean(self, values: Tensor, targets: Tensor) -> Tensor:
        """Reduce `[N, C]`, not yet weighted, to the mean over rows that PyTorch would take."""
        total = self.weighted(values).sum()
        if self.class_weights is None or targets.ndim == 2:
            return total / len(values)
        # A batch of classes that weigh nothing has no loss; it must not be 0/0.
        return total / self.class_weights[targets].sum().clamp_min(TINY)


# Keeps the slope of x**gamma finite at 0 for 0 < gamma < 1, and a division by nothing at 0.
TINY = 1e-12


class CrossEntropy(Criterion):
    """See `cross_entropy`."""

    def __init__(
        self, num_classes: int, class_weights: Tensor | None, *, label_smoothing: float
    ) -> None:
        super().__init__(num_classes, class_weights)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if targets.ndim == 2:
            targets = targets.float()
        total = F.cross_entropy(
            logits.float(),
            targets,
            weight=self.class_weights,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        if self.class_weights is None or targets.ndim == 2:
            return total / len(logits)
        return total / self.class_weights[targets].sum().clamp_min(TINY)


class Focal(Criterion):
    """See `focal`."""

    def __init__(self, num_classes: int, class_weights: Tensor | None, *, gamma: float) -> None:
        super().__init__(num_classes, class_weights)
        self.gamma = gamma

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_p = logits.float().log_softmax(dim=1)
        # 1 - p by expm1: where p is close to 1 the difference itself has no digits left.
        hardness = (-torch.expm1(log_p)).clamp_min(TINY) ** self.gamma
        return self.mean(-hardness * log_p * self.soft(targets), targets)


class SoftF1(Criterion):
    """See `f1`."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        p, t = logits.float().softmax(dim=1), self.soft(targets)
        met = p.sum(dim=0) + t.sum(dim=0)  # [C]: 2 TP + FP + FN
        scores = 2 * (p * t).sum(dim=0) / met.clamp_min(TINY)
        weights = self.weighted((met > 0).float())
        return 1 - (weights * scores).sum() / weights.sum().clamp_min(TINY)


class OneVersusRest(Criterion):
    """See `bce`."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            logits.float(), self.soft(targets), weight=self.class_weights
        )


class Poly1(Criterion):
    """See `poly1`."""

    def __init__(self, num_classes: int, class_weights: Tensor | None, *, epsilon: float) -> None:
        super().__init__(num_classes, class_weights)
        self.epsilon = epsilon

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_p = logits.float().log_softmax(dim=1)
        values = -log_p - self.epsilon * torch.expm1(log_p)
        return self.mean(values * self.soft(targets), targets)


class Asymmetric(Criterion):
    """See `asymmetric`."""

    def __init__(
        self,
        num_classes: int,
        class_weights: Tensor | None,
        *,
        gamma_neg: float,
        gamma_pos: float,
        clip: float,
    ) -> None:
        super().__init__(num_classes, class_weights)
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, clip

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        x, t = logits.float(), self.soft(targets)
        miss = torch.sigmoid(-x)  # 1 - p, exact where p is close to 1
        found = (torch.sigmoid(x) - self.clip).clamp_min(TINY)
        # Without a margin log(1 - p) has to be taken in one piece to stay finite.
        log_miss = (miss + self.clip).clamp_max(1).log() if self.clip else F.logsigmoid(-x)
        positive = miss.clamp_min(TINY) ** self.gamma_pos * F.logsigmoid(x)
        negative = found**self.gamma_neg * log_miss
        return -self.weighted(t * positive + (1 - t) * negative).sum() / len(x)


def check_soft_targets(criterion: nn.Module, name: str, num_classes: int) -> None:
    """Refuse a criterion that cannot take probabilities `[N, C]` as targets."""
    targets = torch.full((2, num_classes), 1 / num_classes)
    try:
        loss = criterion(torch.zeros(2, num_classes), targets)
        fine = isinstance(loss, Tensor) and loss.ndim == 0 and bool(loss.isfinite())
    except (TypeError, ValueError, RuntimeError, IndexError):
        fine = False
    if not fine:
        raise UserError(
            f"soft_labels: criterion {name!r} takes no probabilities as targets; "
            "use one that does, such as cross_entropy"
        )


def _check_weights(weights: Tensor | None, num_classes: int) -> Tensor | None:
    if weights is None:
        return None
    try:
        weights = torch.as_tensor(weights, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"class_weights: {weights!r} are no numbers, one a class") from None
    if weights.shape != (num_classes,):
        raise UserError(
            f"class_weights: there are {num_classes} classes but weights of shape "
            f"{list(weights.shape)}; give one weight a class"
        )
    if not weights.isfinite().all() or (weights < 0).any() or not weights.any():
        raise UserError("class_weights: weights must be finite, not negative and not all zero")
    return weights


def _within(name: str, value: Any, low: float, high: float | None = None) -> None:
    """Refuse an argument that is no number from `low` to `high`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and low <= value < float("inf") and (high is None or value <= high):
        return
    limits = f"a number from {low}" + (f" to {high}" if high is not None else "")
    raise UserError(f"criterion_args: {name} is {value!r}; it takes {limits}")
