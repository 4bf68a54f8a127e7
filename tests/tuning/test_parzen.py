"""Densities over a search space, against integration by hand and SciPy's own."""

import numpy as np
import pytest
from scipy import stats

from ballot.tuning import parzen
from ballot.tuning.space import parse

SPACE = {
    "range": {"_type": "uniform", "_value": [-2, 2]},
    "log": {"_type": "loguniform", "_value": [0.01, 1]},
    "whole": {"_type": "randint", "_value": [3, 10]},
    "sizes": {"_type": "choice", "_value": [16, 32, 64]},
    "names": {"_type": "choice", "_value": ["a", "b", "c"]},
    "nested": {
        "_type": "choice",
        "_value": [
            {"_name": "one", "inner": {"_type": "normal", "_value": [5, 2]}},
            {"_name": "two"},
        ],
    },
}


@pytest.fixture
def space():
    return parse(SPACE)


def test_the_first_draws_cover_each_range_evenly(space):
    points = parzen.latin_hypercube(space, 12, np.random.default_rng(0))
    assert sorted(int((p[("range",)] + 2) * 3) for p in points) == list(range(12))
    names = [p[("names",)] for p in points]
    assert [names.count(k) for k in range(3)] == [4, 4, 4]
    for point in points:
        assert (("nested", 0, "inner") in point) == (point[("nested",)] == 0)
    begun = {("range",): 1.5, ("nested",): 0}
    for point in parzen.latin_hypercube(space, 3, np.random.default_rng(0), begun):
        assert point[("range",)] == 1.5 and ("nested", 0, "inner") in point


def test_a_density_is_one_in_all(space):
    rng = np.random.default_rng(0)
    points = parzen.latin_hypercube(space, 5, rng)
    model = parzen.Model(space, points, [], [], 1.0)
    everywhere = model._rows(parzen.latin_hypercube(space, 200_000, rng))
    ratio = np.exp(model._density(everywhere, model.good))  # to the prior, of which these are
    assert ratio.mean() == pytest.approx(1, abs=0.1) and ratio.std() > 0.5


def test_a_kernel_is_scipys_truncated_normal():
    space = parse({"x": {"_type": "uniform", "_value": [0, 1]}})
    model = parzen.Model(space, [{("x",): 0.9}], [], [], 1.0)
    (width,) = model._widths(1)
    x = np.linspace(0, 1, 50)
    kernel = stats.truncnorm(-0.9 / width, 0.1 / width, 0.9, width)
    assert np.exp(model._kernels(x[:, None], model.good))[:, 0] == pytest.approx(kernel.pdf(x))
    mixture = np.exp(model._density(x[:, None], model.good))
    assert mixture == pytest.approx((kernel.pdf(x) + 1) / 2)
    drawn = model._draw(20_000, np.random.default_rng(0))[:, 0]
    assert stats.kstest(drawn, lambda v: (kernel.cdf(v) + v) / 2).pvalue > 0.001


def test_what_is_proposed_lies_with_the_good_and_not_with_the_others():
    space = parse({"x": {"_type": "uniform", "_value": [0, 1]}})

    def first(good, others, failed):
        points = [[{("x",): x} for x in xs] for xs in (good, others, failed)]
        model = parzen.Model(space, *points, 1.0)
        return np.mean([model.propose(32, np.random.default_rng(s))[0][("x",)] for s in range(40)])

    assert first([0.5], [0.1, 0.3], []) > 0.5 > first([0.5], [0.7, 0.9], [])
    assert first([0.5], [0.1], [0.7]) < first([0.5], [0.1], [0.3])
