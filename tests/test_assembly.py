"""What a configuration stands for, where several layers decide together."""

from __future__ import annotations

import pytest

from assembly import configure
from ballot.values import Layer


@pytest.mark.parametrize(
    "command, tuned, seeds",
    [
        ({}, {"seed": 7}, (7, 42)),
        ({"seed": 3}, {"seed": 7}, (7, 3)),
        ({"split_seed": 5}, {"seed": 7}, (7, 5)),
        ({"seed": 3}, {"lr": 0.1}, (3, None)),
        ({"seed": 3}, {"seed": 7, "split_seed": 1, "folds": 3, "fold": 0}, (7, 1)),  # --finalize
    ],
)
def test_trials_with_other_seeds_share_the_split(command, tuned, seeds):
    config, origin = configure([Layer("command line", command), Layer("tuner", tuned)])
    assert (config.seed, config.split_seed) == seeds
    added = "split_seed" not in {**command, **tuned} and "seed" in tuned
    assert (origin["split_seed"] == "search") is added
