"""Search spaces against the options of a trial."""

import pytest

from harness.errors import UserError
from harness.space import check_search_space

GOOD = {
    "lr": {"_type": "loguniform", "_value": [0.0001, 0.1]},
    "batch_size": {"_type": "choice", "_value": [16, 32]},
    "optimizer_args.momentum": {"_type": "uniform", "_value": [0, 0.9]},
    "optimizer": {
        "_type": "choice",
        "_value": [
            "AdamW",
            {"_name": "SGD", "momentum": {"_type": "uniform", "_value": [0.5, 0.9]},
             "lr": {"_type": "uniform", "_value": [0.01, 0.1]}},
        ],
    },
}  # fmt: skip


def test_a_good_search_space_passes():
    check_search_space(GOOD, "space.json")


@pytest.mark.parametrize(
    "key, spec, message",
    [
        ("learning_rate", GOOD["lr"], "unknown option 'learning_rate'; did you mean 'lr'"),
        ("lr", [0.1, 0.2], 'lr needs {"_type"'),
        ("lr", {"_type": "logunifrm", "_value": [1, 2]}, "did you mean 'loguniform'"),
        ("lr", {"_type": "uniform", "_value": [0.1]}, "takes 2 values"),
        ("lr", {"_type": "uniform", "_value": [0.2, 0.1]}, "put the lower first"),
        ("lr", {"_type": "loguniform", "_value": [0, 0.1]}, "must start above 0"),
        ("lr", {"_type": "uniform", "_value": ["a", "b"]}, "takes numbers"),
        ("lr", {"_type": "uniform", "_value": [-1, 0.1]}, "must be greater than 0"),
        ("batch_size", {"_type": "choice", "_value": [16, "many"]}, "takes a whole number"),
        ("batch_size", {"_type": "choice", "_value": []}, "one or more values"),
        ("epochs", {"_type": "choice", "_value": [0]}, "at least 1"),
        ("optimizer", {"_type": "choice", "_value": [{"_name": "SGD", "lr": {"_type": "uniform",
         "_value": [-2, -1]}}]}, "must be greater than 0"),
        ("lr.x", GOOD["lr"], "has no parts"),
    ],
)  # fmt: skip
def test_a_bad_search_space_is_named_by_file_and_key(key, spec, message):
    with pytest.raises(UserError) as caught:
        check_search_space({key: spec}, "space.json")
    assert str(caught.value).startswith("space.json: ") and message in str(caught.value)
