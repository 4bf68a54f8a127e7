"""A head for each attribute of the label: what a network answers with, and how each is learnt.

Whatever reads a network's answer sees logits [N, C] of the joint classes, as of a network with one
classifier. What a head says is read back from them: the probability of an attribute's class is the
sum over the joint classes that have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ballot.data.attributes import Attribute
from ballot.errors import UserError, suggest

TINY = 1e-12  # keeps the logarithm of 1 - p finite

# Makes the criterion of a head: its number of classes, and for each joint class the head's class.
Make = Callable[[int, Sequence[int]], nn.Module]


@dataclass(frozen=True)
class Heads:
    """A classifier for each attribute, side by side in a network's last layer.

    The logits of a joint class are the sum of its attributes' log-probabilities, as of independent
    ones. With `joint` a head of the joint classes adds what the product leaves out.
    """

    attributes: tuple[Attribute, ...]
    joint: bool = False

    @property
    def num_classes(self) -> int:
        """The number of joint classes."""
        return len(self.attributes[0].of_class)

    @property
    def sizes(self) -> list[int]:
        """The outputs of each head, in the order in which they stand side by side."""
        own = [len(attribute.classes) for attribute in self.attributes]
        return [*own, self.num_classes] if self.joint else own

    @property
    def width(self) -> int:
        """The outputs of all heads."""
        return sum(self.sizes)

    def attach(self, model: nn.Module) -> None:
        """Let a network whose output is [N, `width`] answer with logits [N, C]."""
        starts = torch.tensor(self.sizes).cumsum(0) - torch.tensor(self.sizes)
        places = torch.tensor([attribute.of_class for attribute in self.attributes])
        places += starts[: len(places), None]  # [A, C]: where each joint class reads
        model.register_buffer("head_places", places, persistent=False)
        model.register_forward_hook(self._join)

    def _join(self, model: nn.Module, _given: object, output: Tensor) -> Tensor:
        # Copies, not views: of views the exporter of torch 2.9 wants to know whether N is 1.
        columns = torch.arange(self.width, device=output.device).split(self.sizes)
        parts = [output.float().index_select(1, column) for column in columns]
        own = parts[: len(self.attributes)]
        log_p = torch.cat([part.log_softmax(dim=1) for part in own], dim=1)
        places: Tensor = model.get_buffer("head_places")
        logits = torch.stack([log_p.index_select(1, row) for row in places]).sum(dim=0)
        return logits + parts[-1] if self.joint else logits


def make_heads(kind: str, attributes: Sequence[Attribute]) -> Heads | None:
    """Return the heads of an option: none, product or joint; without attributes a `UserError`."""
    if kind == "none":
        return None
    if not attributes:
        raise UserError(
            f"heads: {kind} needs a label of several attributes; name their columns with "
            "--label_column, as in --label_column mask gender age, or leave heads at none"
        )
    return Heads(tuple(attributes), joint=kind == "joint")


def tasks_of(heads: Heads, ordinal: Sequence[str] = ()) -> list[list[tuple[int, ...]]]:
    """Return what each head learns: tasks, of which each gives every joint class a class.

    A head has one task. That of an attribute with an order (`ordinal`, see `ranks_of`) has one of
    two classes for each threshold: below it or above it. So do Cao et al. (2020), CORAL, whose
    thresholds share their weights to be consistent; those of one softmax are so by themselves.
    """
    ranks = ranks_of(heads.attributes, ordinal)
    tasks: list[list[tuple[int, ...]]] = []
    for attribute in heads.attributes:
        if attribute.name not in ranks:
            tasks.append([attribute.of_class])
            continue
        rank = [ranks[attribute.name][number] for number in attribute.of_class]
        thresholds = range(len(attribute.classes) - 1)
        tasks.append([tuple(int(r > limit) for r in rank) for limit in thresholds])
    if heads.joint:
        tasks.append([tuple(range(heads.num_classes))])
    return tasks


def ranks_of(attributes: Sequence[Attribute], ordinal: Sequence[str]) -> dict[str, list[int]]:
    """Return the rank of each class of the attributes with an order.

    Each is a name, for the order of the attribute's classes, or `name=first,second,...`.
    """
    known = {attribute.name: attribute.classes for attribute in attributes}
    ranks = {}
    for text in ordinal:
        name, equals, names = text.partition("=")
        if name not in known:
            raise UserError(f"ordinal: there is no attribute {name!r}{suggest(name, known)}")
        order = names.split(",") if equals else list(known[name])
        if sorted(order) != sorted(known[name]):
            raise UserError(
                f"ordinal: {text!r} is no order of the classes {', '.join(known[name])}; "
                f"as in {name}={','.join(known[name])}"
            )
        ranks[name] = [order.index(one) for one in known[name]]
    return ranks


class HeadsCriterion(nn.Module):
    """The sum of a criterion over heads; logits [N, C] and targets [N] or [N, C] are joint ones.

    `tasks` are those of `tasks_of`; `one_versus_rest` says that the criterion takes each class by
    itself (a sigmoid, no softmax). With `uncertainty` training weighs the heads by what they leave
    unexplained: exp(-s) loss + s / 2, where the log-variance s is learnt (Kendall et al., 2018).
    Where no gradient is wanted, as in validation, they weigh alike: those losses can be compared.
    """

    log_variances: nn.Parameter | None

    def __init__(
        self,
        tasks: Sequence[Sequence[tuple[int, ...]]],
        make: Make,
        *,
        one_versus_rest: bool = False,
        uncertainty: bool = False,
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.ModuleList(
                Task(of_class, make(max(of_class) + 1, of_class), one_versus_rest=one_versus_rest)
                for of_class in head
            )
            for head in tasks
        )
        self.log_variances = nn.Parameter(torch.zeros(len(tasks))) if uncertainty else None

    @property
    def learnt(self) -> list[nn.Parameter]:
        """What is trained beside the network."""
        return [] if self.log_variances is None else [self.log_variances]

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_p = logits.float().log_softmax(dim=1)
        losses = torch.stack([self._of_head(head, log_p, targets) for head in self.heads])
        if self.log_variances is None or not torch.is_grad_enabled():
            return losses.sum()
        return (torch.exp(-self.log_variances) * losses + self.log_variances / 2).sum()

    def _of_head(self, head: nn.Module, log_p: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([task(log_p, targets) for task in head.children()]).sum()


class Task(nn.Module):
    """A criterion of classes that are made of joint classes: `of_class` says which has which."""

    of_class: Tensor
    order: Tensor

    def __init__(
        self, of_class: Sequence[int], criterion: nn.Module, *, one_versus_rest: bool
    ) -> None:
        super().__init__()
        self.criterion, self.one_versus_rest = criterion, one_versus_rest
        numbers = torch.tensor(of_class)
        self.counts = numbers.bincount().tolist()
        self.register_buffer("of_class", numbers, persistent=False)
        self.register_buffer("order", numbers.argsort(stable=True), persistent=False)

    def forward(self, log_p: Tensor, targets: Tensor) -> Tensor:
        own = torch.stack([part.logsumexp(dim=1) for part in self._parts(log_p)], dim=1)  # [N, K]
        if self.one_versus_rest:  # the logit of which the sigmoid is this probability
            own = own - (-torch.expm1(own)).clamp_min(TINY).log()
        if targets.ndim == 1:
            return self.criterion(own, self.of_class[targets])
        shares = [part.sum(dim=1) for part in self._parts(targets)]
        return self.criterion(own, torch.stack(shares, dim=1))

    def _parts(self, values: Tensor) -> tuple[Tensor, ...]:
        """Split values [N, C] of joint classes by the class that they belong to."""
        return values.index_select(1, self.order).split(self.counts, dim=1)
