"""Attributes: the parts of a label that is made of several, such as mask, gender and age.

A joint class is one combination of them. Only combinations that occur are classes: ballots stay
small, and none is offered that no image has ever shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Attribute:
    """One part of the label: its classes, and which of them each joint class has."""

    name: str
    classes: tuple[str, ...]
    of_class: tuple[int, ...]  # for each joint class the index of the attribute's class

    def labels(self, joint: np.ndarray) -> np.ndarray:
        """Return the attribute's labels int64 [N] for joint labels [N]; unknown ones stay so."""
        return np.where(joint < 0, joint, np.array(self.of_class, dtype=np.int64)[joint])

    def probs(self, joint: np.ndarray) -> np.ndarray:
        """Sum joint probabilities [N, C] to the attribute's [N, K]."""
        return joint @ np.eye(len(self.classes), dtype=joint.dtype)[list(self.of_class)]


def renumbered(attributes: Sequence[Attribute], place: Sequence[int]) -> tuple[Attribute, ...]:
    """Follow joint classes to other numbers: the class c is now the class `place[c]`."""
    order = np.argsort(place)
    return tuple(
        replace(one, of_class=tuple(one.of_class[before] for before in order)) for one in attributes
    )
