"""What a tuner may set."""

import pytest

from ballot.config.search_space import FIXED
from ballot.engines.trial import FINAL, Trial
from ballot.errors import UserError


@pytest.mark.parametrize("key", [*sorted(FIXED.keys() - set(FINAL)), "model-dir"])
def test_no_tuner_sets_what_is_not_a_hyperparameter_even_where_it_is_searched(key):
    with pytest.raises(UserError, match=f"tuner: {key.replace('-', '_')} cannot be searched"):
        Trial({key: "x"}, searched=(key,)).layer()


@pytest.mark.parametrize("key", ["epochs", "lr ", "optimizer.momentum", "data_dir", "OPTIMIZER"])
def test_a_tuner_sets_what_is_searched_and_nothing_else(key):
    searched = ("lr", "optimizer")
    own = {"lr": 0.1, "optimizer": {"_name": "SGD", "momentum": 0.9}}
    assert Trial(own, searched=searched).layer().values == own
    finals = {"fold": 1, "folds": 2, "seed": 3, "split_seed": 4}
    assert Trial({**own, **finals}, searched=searched).layer()
    with pytest.raises(UserError, match=f"tuner: {key} is not in the search space"):
        Trial({**own, key: 1}, searched=searched).layer()


def test_a_trial_goes_on_from_a_run_of_its_own_search_alone():
    values = {"lr": 0.1, "continues": "s-001-abc"}
    trial = Trial(values, id="t", experiment="s", sequence=4, searched=("lr",))
    assert trial.layer().values == {"lr": 0.1} and trial.continues == "s-001-abc"
    assert Trial({"lr": 0.1}).continues is None
    for name in ("../s-001-abc", "other-001-abc", "s-001-abc/..", "", 3):
        with pytest.raises(UserError, match="names an earlier run of the search"):
            _ = Trial({"continues": name}, id="t", experiment="s").continues


def test_without_the_guard_the_search_space_is_unknown_to_a_trial():
    assert Trial({"epochs": 3}).layer().values == {"epochs": 3}
