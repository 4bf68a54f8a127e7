"""What is known before a search: the script's own options, and earlier runs."""

import json

import pytest

from ballot.tuning import warm_start
from ballot.tuning.space import parse, values_of

NESTED = {
    "optimizer": {
        "_type": "choice",
        "_value": [
            {
                "_name": "SGD",
                "lr": {"_type": "loguniform", "_value": [0.01, 1]},
                "momentum": {"_type": "uniform", "_value": [0.5, 0.95]},
            },
            {"_name": "AdamW"},
        ],
    }
}


@pytest.mark.parametrize(
    "spec, options, value",
    [
        (("lr", "loguniform", [0.0001, 0.1]), {"lr": 0.001}, 0.001),
        (("lr", "loguniform", [0.01, 0.1]), {"lr": 0.001}, 0.01),
        (("lr", "loguniform", [0.00001, 0.0002]), {"lr": 0.001}, 0.0002),
        (("batch_size", "choice", [16, 32, 100]), {"batch_size": 60}, 32),
        (("batch_size", "quniform", [16, 128, 16]), {"batch_size": 50}, 48),
        (("batch_size", "randint", [3, 9]), {"batch_size": 50}, 8),
        (("batch_size", "randint", [3, 9]), {"batch_size": 3}, 3),
        (("weight_decay", "normal", [0, 1]), {"weight_decay": 7.5}, 7.5),
        (("weight_decay", "lognormal", [0, 1]), {"weight_decay": 0.0}, None),
        (("weight_decay", "qlognormal", [0, 1, 0.5]), {"weight_decay": 0.0}, 0.0),
        (("criterion", "choice", ["focal", "bce"]), {"criterion": "bce"}, "bce"),
        (("criterion", "choice", ["focal", "bce"]), {"criterion": "f1"}, None),
        (("freeze", "choice", ["backbone", None]), {"freeze": None}, None),
        (("ema", "choice", [0.0, 0.99]), {"ema": 0.0}, 0.0),
        (("no_decay_norm", "choice", [True, False]), {"no_decay_norm": False}, False),
        (("criterion.gamma", "uniform", [0, 5]), {"criterion_args": {"gamma": 2.0}}, 2.0),
        (("criterion_args.gamma", "uniform", [0, 5]), {"criterion_args": {"gamma": 9}}, 5),
        (("criterion.gamma", "uniform", [0, 5]), {"criterion_args": {}}, None),
    ],
)
def test_an_option_is_moved_into_its_range(spec, options, value):
    key, kind, values = spec
    space = parse({key: {"_type": kind, "_value": values}})
    found = values_of(space, warm_start.config_point(space, options, clip=True))
    assert found == ({} if value is None and None not in values else {key: pytest.approx(value)})


def test_a_nested_choice_takes_the_components_own_options():
    space = parse(NESTED)
    config = {"optimizer": "SGD", "lr": 0.1, "optimizer_args": {"momentum": 0.99}}
    found = values_of(space, warm_start.config_point(space, config, clip=True))
    assert found["optimizer"] == {"_name": "SGD", "lr": pytest.approx(0.1), "momentum": 0.95}
    assert warm_start.config_point(space, config).keys() == {("optimizer",), ("optimizer", 0, "lr")}
    assert warm_start.config_point(space, {**config, "optimizer": "AdamW"}) == {("optimizer",): 1}
    assert warm_start.config_point(space, {**config, "optimizer": "Adam"}, clip=True) == {}


def write_run(folder, values, **result):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"values": values, "origin": {}}))
    (folder / "result.json").write_text(json.dumps(result))


def test_earlier_runs_that_lie_in_the_space_are_found(tmp_path):
    good = {"optimizer": "SGD", "lr": 0.1, "optimizer_args": {"momentum": 0.9}}
    runs = tmp_path / "outputs"
    write_run(runs / "done", good, status="done", score=0.9, mode="max")
    write_run(runs / "failed", {"optimizer": "AdamW"}, status="failed", score=None, mode="max")
    write_run(runs / "part", {**good, "lr": 0.2}, status="stopped", score=0.5, mode="max")
    write_run(runs / "outside", {**good, "lr": 7}, status="done", score=0.9, mode="max")
    write_run(runs / "lacks", {**good, "optimizer_args": {}}, status="done", score=1, mode="max")
    write_run(runs / "runs", good, status="running", score=0.9, mode="max")
    write_run(runs / "other_aim", good, status="done", score=0.2, mode="min")
    (runs / "damaged").mkdir()
    (runs / "damaged" / "result.json").write_text('{"status": "done", "score": 1}')
    space = parse(NESTED)
    found = [(state, score) for _, state, score in warm_start.earlier_runs([runs], space, "max")]
    assert found == [("done", 0.9), ("failed", None), ("stopped", 0.5)]
    ((point, *_),) = warm_start.earlier_runs([runs / "done"], space, "max")
    assert values_of(space, point)["optimizer"]["momentum"] == 0.9
    assert list(warm_start.earlier_runs([tmp_path / "none"], space, "max")) == []
