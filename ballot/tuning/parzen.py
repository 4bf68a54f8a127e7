"""Densities over a search space: where good trials lie, and where the others do.

A trial is a point of `ballot.tuning.space`. Here it is a row of numbers: an option with an order
(a range, a choice of rising numbers) lies in 0..1, where its prior is even; of any other choice it
is the index, and nan where missing. A density is a mixture of kernels over whole rows, one a
trial, so that options which only go well together are seen together (Falkner et al., 2018); one
more kernel is the prior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp, ndtr, ndtri

from ballot.tuning.space import Point, Space

WIDTH = 0.18  # of a kernel for a single trial, in an option's range
NARROW = 0.02
CAUTION = 3.0  # how much more than its odds a failure counts
OTHER = 0.7  # probability that a kernel of a single trial gives to the other choices


def latin_hypercube(
    space: Space,
    number: int,
    rng: np.random.Generator,
    begun: Point | None = None,
) -> list[Point]:
    """Draw points of which each option has values from all of its range (McKay et al., 1979).

    What `begun` holds already stays as it is.
    """
    points = [dict(begun or {}) for _ in range(number)]
    for key, dimension in space.items():
        places = (rng.permutation(number) + rng.random(number)) / number
        for point, u in zip(points, places):
            if dimension.is_active(point) and key not in point:
                point[key] = dimension.from_unit(u)
    return points


class Model:
    """Where to try next, given good points, others, and those of them that failed."""

    def __init__(
        self,
        space: Space,
        good: Sequence[Point],
        others: Sequence[Point],
        failed: Sequence[Point],
        prior_weight: float,
    ) -> None:
        self.space = space
        self.ordered = np.array([each.has_order for each in space.values()])
        self.sizes = np.array([float(each.size or 1) for each in space.values()])
        self.good, self.failed = self._rows(good), self._rows(failed)
        self.others = np.vstack([self._rows(others), self.failed])
        self.passed = np.vstack([self.good, self._rows(others)])
        self.prior_weight = prior_weight

    def propose(self, number: int, rng: np.random.Generator) -> list[Point]:
        """Draw from the density of the good and return points, the most promising one first."""
        rows = self._draw(number, rng)
        gain = self._density(rows, self.good) - self._density(rows, self.others)
        gain += self._runs_through(rows)
        return [self._point(row) for row in rows[np.argsort(-gain, kind="stable")]]

    def _rows(self, points: Sequence[Point]) -> np.ndarray:
        rows = np.full((len(points), len(self.space)), np.nan)
        for row, point in zip(rows, points):
            for column, (key, dimension) in enumerate(self.space.items()):
                if key in point:
                    x = point[key]
                    row[column] = dimension.to_unit(x) if self.ordered[column] else x
        return rows  # [N, D]

    def _point(self, row: np.ndarray) -> Point:
        return {
            key: dimension.from_unit(u) if ordered else int(u)
            for (key, dimension), u, ordered in zip(self.space.items(), row, self.ordered)
            if not math.isnan(u)
        }

    def _widths(self, number: int) -> np.ndarray:
        """Return each option's kernel width for so many points: narrower with more of them."""
        shrink = max(number, 1) ** (-1 / (4 + len(self.sizes)))
        floor = np.where(self.sizes > 1, 0.5 / self.sizes, NARROW)
        return np.where(self.ordered, np.maximum(WIDTH * shrink, floor), OTHER * shrink)

    def _draw(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """Draw rows around good ones, a share of them from the whole space."""
        total = len(self.good) + self.prior_weight
        chosen = rng.random(number) * total
        widths = self._widths(len(self.good))
        rows = np.full((number, len(self.space)), np.nan)
        columns = {key: column for column, key in enumerate(self.space)}
        for key, dimension in self.space.items():
            column = columns[key]
            active = np.ones(number, bool)
            if dimension.is_nested:
                active = rows[:, columns[key[:-2]]] == key[-2]
            centre = np.full(number, np.nan)
            near = chosen < len(self.good)
            centre[near] = self.good[chosen[near].astype(int), column]
            drawn = self._draw_option(column, centre, widths[column], rng)
            rows[active, column] = drawn[active]
        return rows

    def _draw_option(
        self, column: int, centre: np.ndarray, width: float, rng: np.random.Generator
    ) -> np.ndarray:
        u, free = rng.random(len(centre)), np.isnan(centre)
        if not self.ordered[column]:
            free |= rng.random(len(centre)) < width
            return np.where(free, np.floor(u * self.sizes[column]), centre)
        low, high = ndtr((0 - centre) / width), ndtr((1 - centre) / width)
        near = np.clip(centre + width * ndtri(low + u * (high - low)), 0.0, 1.0)
        return np.where(free, u, near)

    def _kernels(self, rows: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Return the logarithm of each point's kernel at each row, relative to the prior."""
        found = np.zeros((len(rows), len(points)))  # [M, N]
        widths = self._widths(len(points))
        for column, width in enumerate(widths):
            x, centre = rows[:, column, None], points[None, :, column]
            if self.ordered[column]:
                inside = ndtr((1 - centre) / width) - ndtr((0 - centre) / width)
                each = -0.5 * ((x - centre) / width) ** 2
                each = each - np.log(width * math.sqrt(2 * math.pi) * inside)
            else:
                size = self.sizes[column]
                each = np.log(width + (1 - width) * size * (x == centre))
            found += np.where(np.isnan(x) | np.isnan(centre), 0.0, each)
        return found

    def _density(self, rows: np.ndarray, points: np.ndarray) -> np.ndarray:
        kernels = self._kernels(rows, points)
        prior = np.full((len(rows), 1), math.log(max(self.prior_weight, 1e-9)))
        total = math.log(len(points) + max(self.prior_weight, 1e-9))
        return logsumexp(np.hstack([kernels, prior]), axis=1) - total

    def _runs_through(self, rows: np.ndarray) -> np.ndarray:
        """Return the logarithm of how likely a trial is not to fail, from its neighbours."""
        if not len(self.failed):
            return np.zeros(len(rows))
        failed = np.exp(self._kernels(rows, self.failed)).sum(axis=1)
        passed = np.exp(self._kernels(rows, self.passed)).sum(axis=1)
        usual = (len(self.passed) + 1) / (len(self.passed) + len(self.failed) + 1)
        return CAUTION * np.log((passed + usual) / (passed + failed + 1))
