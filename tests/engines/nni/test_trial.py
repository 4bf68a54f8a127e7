"""What a tuner may set."""

import pytest

from ballot.config.search_space import FIXED
from ballot.engines.nni.trial import SEARCHED, Trial, layer_of
from ballot.errors import UserError


@pytest.mark.parametrize("key", [*FIXED, "model-dir"])
def test_no_tuner_sets_what_is_not_a_hyperparameter_even_where_it_is_searched(key, monkeypatch):
    monkeypatch.setenv(SEARCHED, f'["{key}"]')
    with pytest.raises(UserError, match=f"tuner: {key.replace('-', '_')} cannot be searched"):
        layer_of(Trial({key: "x"}))


@pytest.mark.parametrize("key", ["epochs", "lr ", "optimizer.momentum", "data_dir", "OPTIMIZER"])
def test_a_tuner_sets_what_is_searched_and_nothing_else(key, monkeypatch):
    monkeypatch.setenv(SEARCHED, '["lr", "optimizer"]')
    own = {"lr": 0.1, "optimizer": {"_name": "SGD", "momentum": 0.9}}
    assert layer_of(Trial(own)).values == own
    assert layer_of(Trial({**own, "fold": 1, "folds": 2, "seed": 3, "split_seed": 4}))
    with pytest.raises(UserError, match=f"tuner: {key} is not in the search space"):
        layer_of(Trial({**own, key: 1}))


def test_without_the_guard_the_search_space_is_unknown_to_a_trial(monkeypatch):
    monkeypatch.delenv(SEARCHED, raising=False)
    assert layer_of(Trial({"epochs": 3})).values == {"epochs": 3}
