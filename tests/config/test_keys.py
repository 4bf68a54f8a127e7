"""Keys of other templates in a search space."""

from __future__ import annotations

import pytest

from ballot.config.layers import merge
from ballot.config.search_space import find_problems
from ballot.config.templates.keys import is_theirs, space_in_our_words
from ballot.errors import UserError
from ballot.values import Layer

CHOICE = {"_type": "choice", "_value": [1]}


@pytest.mark.parametrize(
    "key, values, ours, translated",
    [
        ("optimizer;args;lr", [0.1, 1], "lr", [0.1, 1]),
        ("optimizer.args.momentum", [0.9], "optimizer_args.momentum", [0.9]),
        ("optimizer;type", ["sgd", "Adam"], "optimizer", ["SGD", "Adam"]),
        ("arch;type", ["ResNet18", "LeNet5"], "model", ["resnet18", "simple_cnn"]),
        ("arch;args;num_blocks", [[1, 1, 1, 1]], "model_args.num_blocks", [[1, 1, 1, 1]]),
        ("model;cls_head;dropout_ratio", [0.2], "model_args.dropout", [0.2]),
        ("lr_scheduler;args;gamma", [0.5], "scheduler_args.gamma", [0.5]),
        ("data_loader;args;batch_size", [4, 8], "batch_size", [4, 8]),
        ("trainer.epochs", [3], "epochs", [3]),
        ("TRAIN.LR", [0.1], "lr", [0.1]),
        ("TRAIN.OPTIMIZER_TYPE", ["sgd"], "optimizer", ["SGD"]),
    ],
)
def test_a_key_of_another_template_is_renamed_with_its_values(key, values, ours, translated):
    space = space_in_our_words({key: {"_type": "choice", "_value": values}}, "space.json")
    assert space == {ours: {"_type": "choice", "_value": translated}}
    config, _ = merge([Layer("tuner", {key: values[0]})])  # where nnictl starts the search
    head, _, argument = ours.partition(".")
    value = getattr(config, head)
    assert (value[argument] if argument else value) == translated[0]


def test_a_range_keeps_its_numbers():
    spec = {"_type": "loguniform", "_value": [1e-4, 0.1]}
    assert space_in_our_words({"optimizer;args;lr": spec}, "s") == {"lr": spec}


@pytest.mark.parametrize("key", ["lr", "optimizer.momentum", "optimizer_args.momentum", "model"])
def test_our_own_keys_stay(key):
    assert not is_theirs(key)
    assert space_in_our_words({key: CHOICE}, "s") == {key: CHOICE}


def test_a_key_without_a_counterpart_is_refused_with_the_reason():
    space = space_in_our_words({"trainer;verbosity": {"_type": "choice", "_value": [0]}}, "s")
    (error,) = find_problems(space, "s")
    assert "'trainer;verbosity' has no counterpart (--log_config" in str(error)


def test_two_keys_of_one_option_are_refused():
    with pytest.raises(UserError, match=r"TRAIN.LR and another key both set lr"):
        space_in_our_words({"optimizer;args;lr": CHOICE, "TRAIN.LR": CHOICE}, "s")
