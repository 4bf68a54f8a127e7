"""Search spaces in numbers: values and points, the distributions, and the grid of all of them."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats
from spaces_for_tests import EVERY_TYPE

from ballot.errors import UserError
from ballot.tuning import parzen
from ballot.tuning.space import grid, parse, partial_point, point_of, values_of


def test_ranges_and_rising_numbers_have_an_order_and_names_have_none():
    space = parse({**EVERY_TYPE, "sizes": {"_type": "choice", "_value": [16, 32, 64]}})
    unordered = [key[-1] for key, dimension in space.items() if not dimension.has_order]
    assert unordered == ["choice", "nested"]
    for values in ([32, 16, 64], [True, False], ["1", "2"], [1, 2]):
        (dimension,) = parse({"x": {"_type": "choice", "_value": values}}).values()
        assert not dimension.has_order


def test_a_number_comes_back_from_its_place():
    space = parse(EVERY_TYPE)
    for dimension in space.values():
        if dimension.has_order:
            for u in (0.05, 0.5, 0.9):
                x = dimension.from_unit(u)
                assert dimension.from_unit(dimension.to_unit(x)) == pytest.approx(x)
    assert space[("normal",)].to_unit(3.7) == pytest.approx(stats.norm(3, 0.5).cdf(3.7))


@pytest.mark.parametrize(
    "kind, reference",
    [
        ("uniform", stats.uniform(-1, 2)),
        ("loguniform", stats.loguniform(0.0003, 0.7)),
        ("normal", stats.norm(3, 0.5)),
        ("lognormal", stats.lognorm(1)),
    ],
)
def test_each_kind_is_drawn_as_its_distribution_says(kind, reference):
    space = parse({kind: EVERY_TYPE[kind]})
    drawn = parzen.latin_hypercube(space, 2000, np.random.default_rng(0))
    values = [values_of(space, point)[kind] for point in drawn]
    assert stats.kstest(values, reference.cdf).pvalue > 0.001


@pytest.mark.parametrize(
    "kind, reference, shares",
    [
        ("quniform", stats.uniform(0.1, 0.85), {0.1: (0.1, 0.15), 0.5: (0.45, 0.55)}),
        ("qloguniform", stats.loguniform(1, 100), {1: (1, 2.5), 5: (2.5, 7.5), 100: (97.5, 100)}),
        ("qnormal", stats.norm(3, 0.5), {3: (2.875, 3.125), 3.75: (3.625, 3.875)}),
        ("qlognormal", stats.lognorm(0.5, scale=math.exp(4)), {50.0: (49.75, 50.25)}),
        ("randint", stats.uniform(-2, 11), {-2: (-2, -1), 8: (8, 9)}),
    ],
)
def test_steps_have_the_share_of_what_is_rounded_to_them(kind, reference, shares):
    space = parse({kind: EVERY_TYPE[kind]})
    drawn = parzen.latin_hypercube(space, 2000, np.random.default_rng(0))
    values = [values_of(space, point)[kind] for point in drawn]
    for value, (low, high) in shares.items():
        share = reference.cdf(high) - reference.cdf(low)
        assert values.count(value) / 2000 == pytest.approx(share, abs=0.002), value


def test_values_lie_at_the_point_that_they_came_from():
    space = parse(EVERY_TYPE)
    for point in parzen.latin_hypercube(space, 50, np.random.default_rng(1)):
        values = values_of(space, point)
        assert json.loads(json.dumps(values)) == values
        assert values_of(space, point_of(space, values)) == values
    assert point_of(space, {**values, "nested": {"_name": "none"}}).keys() >= {("nested",)}
    for wrong in ({"nested": "one"}, {"uniform": 2}, {"choice": "c"}, {"randint": 9}):
        assert point_of(space, {**values, **wrong}) is None
    assert point_of(space, {}) is None


def test_numbers_are_given_as_a_person_would_write_them():
    space = parse(
        {"lr": {"_type": "loguniform", "_value": [0.0001, 1]}, "q": EVERY_TYPE["quniform"]}
    )
    values = values_of(space, {("lr",): math.log(0.001), ("q",): 0.31})
    assert values == {"lr": 0.001, "q": 0.3}


SMALL = {
    "x": {"_type": "quniform", "_value": [0, 1, 0.25]},
    "n": {
        "_type": "choice",
        "_value": [{"_name": "a", "k": {"_type": "randint", "_value": [0, 3]}}, {"_name": "b"}],
    },
}


def test_a_grid_holds_each_configuration_of_a_finite_space_and_ends():
    space = parse(SMALL)
    found = [values_of(space, point) for point in grid(space)]
    names = [*({"_name": "a", "k": k} for k in range(3)), {"_name": "b"}]
    wanted = [{"x": x, "n": n} for x in (0, 0.25, 0.5, 0.75, 1) for n in names]
    assert len(found) == len(wanted) and all(values in found for values in wanted)
    for finite in ({"x": {"_type": "qnormal", "_value": [0, 1, 1]}}, {"x": EVERY_TYPE["quniform"]}):
        space = parse(finite)
        values = [values_of(space, point)["x"] for point in grid(space)]
        assert len(set(values)) == len(values) >= 9
    assert list(grid({})) == []


def test_a_grid_of_a_range_becomes_finer():
    space = parse({"x": {"_type": "uniform", "_value": [0, 8]}, "y": EVERY_TYPE["choice"]})
    found = [(p[("x",)], p[("y",)]) for p in itertools.islice(grid(space), 14)]
    assert found[:2] == [(4, 0), (4, 1)]
    assert sorted(found) == [(x, y) for x in range(1, 8) for y in (0, 1)]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"uniform": 2}, "first: uniform is 2, outside of the search space (uniform [-1, 1]);"),
        ({"choice": "c"}, "first: choice is 'c', outside of the search space (choice ['a', 'b']);"),
        ({"unifrom": 1}, "first: unifrom is not searched; did you mean 'uniform'?"),
        ({"nested": {"_name": "one", "inner": 1}}, "first: nested.inner is 1, outside"),
        ({"nested": {"_name": "one", "iner": 0.01}}, "nested.iner is not searched; did you mean"),
        ({"nested": {"_name": "three"}}, "nested is 'three', outside of the search space (choice "),
        ({"nested": {"_name": "none", "inner": 0.01}}, "first: nested.inner is not searched"),
    ],
)
def test_values_that_are_not_in_the_space_are_one_line(values, message):
    with pytest.raises(UserError) as caught:
        partial_point(parse(EVERY_TYPE), values, "first")
    assert message in str(caught.value)


def test_values_need_not_be_complete():
    space = parse({**EVERY_TYPE, "freeze": {"_type": "choice", "_value": ["all", None]}})
    assert partial_point(space, {"nested": {"_name": "two", "other": 4}}, "x") == {
        ("nested",): 1,
        ("nested", 1, "other"): 1,
    }
    assert partial_point(space, {"freeze": None}, "x") == {("freeze",): 1}
    assert partial_point(space, {}, "x") == {}
