"""Search spaces against the options of a trial."""

import math

import pytest

from ballot.config.search_space import corners, count, each_component, find_problems, keys_of

GOOD = {
    "lr": {"_type": "loguniform", "_value": [0.0001, 0.1]},
    "batch_size": {"_type": "choice", "_value": [16, 32]},
    "optimizer_args.momentum": {"_type": "uniform", "_value": [0, 0.9]},
    "optimizer": {
        "_type": "choice",
        "_value": [
            {"_name": "AdamW"},
            {
                "_name": "SGD",
                "momentum": {"_type": "uniform", "_value": [0.5, 0.9]},
                "lr": {"_type": "uniform", "_value": [0.01, 0.1]},
            },
        ],
    },
}


def test_a_good_search_space_passes():
    assert find_problems(GOOD, "space.json") == []


@pytest.mark.parametrize(
    "key, spec, message",
    [
        ("learning_rate", GOOD["lr"], "unknown option 'learning_rate'; did you mean 'lr'"),
        ("lr", [0.1, 0.2], 'write lr: {"_type"'),
        ("lr", {"_type": "logunifrm", "_value": [1, 2]}, "did you mean 'loguniform'"),
        ("lr", {"_type": "uniform", "_value": [0.1]}, "takes 2 values"),
        ("lr", {"_type": "uniform", "_value": [0.2, 0.1]}, "put the lower value first"),
        ("lr", {"_type": "loguniform", "_value": [0, 0.1]}, "must start above 0"),
        ("lr", {"_type": "uniform", "_value": ["a", "b"]}, "takes numbers"),
        ("lr", {"_type": "uniform", "_value": [-1, 0.1]}, "must be greater than 0"),
        ("batch_size", {"_type": "choice", "_value": [16, "many"]}, "takes a whole number"),
        ("batch_size", {"_type": "choice", "_value": []}, "one or more values"),
        ("epochs", {"_type": "choice", "_value": [0]}, "at least 1"),
        (
            "optimizer",
            {
                "_type": "choice",
                "_value": [{"_name": "SGD", "lr": {"_type": "uniform", "_value": [-2, -1]}}],
            },
            "must be greater than 0",
        ),
        ("lr.x", GOOD["lr"], "has no arguments"),
        ("monitor", {"_type": "choice", "_value": ["val_acc"]}, "cannot be compared"),
        ("split_seed", {"_type": "randint", "_value": [0, 9]}, "fix it in the trial command"),
        ("lr", {"_type": "quniform", "_value": [0.1, 1, 0]}, "it must be greater than 0"),
        (
            "optimizer",
            {"_type": "choice", "_value": ["AdamW", {"_name": "SGD", "lr": GOOD["lr"]}]},
            "mixes names",
        ),
        (
            "optimizer",
            {"_type": "choice", "_value": [{"_name": "SGD", "momentum": 0.9}]},
            "is fixed to",
        ),
    ],
)
def test_a_bad_search_space_is_named_by_file_and_key(key, spec, message):
    (problem,) = find_problems({key: spec}, "space.json")
    assert str(problem).startswith("space.json: ") and message in str(problem)


def test_every_problem_of_a_search_space_is_found():
    space = {**GOOD, "learning_rate": GOOD["lr"], "epochs": {"_type": "choice", "_value": [0, -1]}}
    assert len(find_problems(space, "s")) == 3


@pytest.mark.parametrize(
    "space, expected",
    [
        ({"batch_size": {"_type": "choice", "_value": [16, 32, 64]}}, 3),
        ({"epochs": {"_type": "randint", "_value": [2, 7]}}, 5),
        ({"batch_size": {"_type": "quniform", "_value": [16, 64, 16]}}, 4),
        (
            {
                "lr": {"_type": "uniform", "_value": [0, 1]},
                "epochs": {"_type": "randint", "_value": [2, 7]},
            },
            math.inf,
        ),
        (
            {
                "criterion": {
                    "_type": "choice",
                    "_value": [
                        {"_name": "a"},
                        {"_name": "b", "gamma": {"_type": "choice", "_value": [1, 2, 3]}},
                    ],
                },
                "folds": {"_type": "choice", "_value": [1, 5]},
            },
            8,
        ),
    ],
)
def test_the_configurations_of_a_space_are_counted(space, expected):
    assert count(space) == expected


def test_the_corners_are_the_ends_of_every_range_and_each_model():
    space = {
        **GOOD,
        "model": {"_type": "choice", "_value": ["a", {"_name": "b"}]},
        "batch_size": {"_type": "quniform", "_value": [10, 50, 16]},
        "accum_steps": {"_type": "choice", "_value": [1, 4]},
    }
    low, first, second = corners(space)
    assert (low["model"], first["model"], second["model"]) == ("a", "a", {"_name": "b"})
    assert low["batch_size"] == 16 and first["batch_size"] == second["batch_size"] == 48
    assert low["accum_steps"] == 4 and first["accum_steps"] == 1
    assert (low["lr"], first["lr"]) == (0.0001, 0.1)
    assert low["optimizer"] == {"_name": "AdamW"}


def test_each_choice_of_a_component_is_tried_at_both_ends():
    tried = [made["optimizer"] for made in each_component(GOOD)]
    assert tried == [
        {"_name": "AdamW"},
        {"_name": "SGD", "momentum": 0.5, "lr": 0.01},
        {"_name": "SGD", "momentum": 0.9, "lr": 0.1},
    ]


def test_the_options_of_a_space_are_listed_with_nested_ones():
    assert set(keys_of(GOOD)) == {"lr", "batch_size", "optimizer_args.momentum", "optimizer"}
