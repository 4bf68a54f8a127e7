"""What a vote tells another network: its answers as soft labels, and what it costs."""

import json

import numpy as np
import pandas as pd
import pytest
from trained_for_tests import COLOURS, coloured, run

import predict
from ballot.prediction.teaching import HARD_SHARE
from ballot.runs.folder import read_result

CLASSES = sorted(COLOURS)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    data = coloured(folder / "data", {"train": 12, "val": 8, "test": 4}, size=16)
    coloured(folder, {"more": 3}, size=16, seed=7)
    return run(folder, data, "one", "--epochs", 3, "--image_size", 16, "--lr", 0.01)


def ask(*words):
    assert predict.main([*map(str, words), "--device", "cpu"]) == 0


def read(path):
    return pd.read_csv(path, dtype={"id": str}).set_index("id")[CLASSES]


def test_answers_are_soft_labels_and_labels_are_mixed_into_them(teacher, tmp_path):
    more = teacher.parents[1] / "more"
    ask(teacher, more, "--soft_labels", "all", "--out", tmp_path / "soft.csv")
    soft = read(tmp_path / "soft.csv")
    assert len(soft) == 3 * (12 + 8 + 4 + 3) and (tmp_path / "soft.json").is_file()
    tested = read(teacher.with_name("one.csv"))
    np.testing.assert_allclose(soft.loc[tested.index], tested, atol=1e-5)
    val = pd.read_csv(teacher / "val.csv", dtype={"id": str}).set_index("id")
    hard = np.eye(3)[[CLASSES.index(name) for name in val["label"]]]
    expected = HARD_SHARE * hard + (1 - HARD_SHARE) * val[CLASSES]
    np.testing.assert_allclose(soft.loc[val.index], expected, atol=1e-5)
    assert str((more / "red" / "red-0.png").absolute()) in soft.index


def test_images_that_it_is_not_sure_of_are_left_out(teacher, tmp_path):
    tested = read(teacher.with_name("one.csv"))
    least = float(tested.max(axis=1).median())
    words = ("--soft_labels", "unlabelled", "--min_probability", least)
    ask(teacher, *words, "--out", tmp_path / "soft.csv")
    sure = tested[tested.max(axis=1) >= least - 1e-5]
    assert 0 < len(sure) < len(tested)
    assert set(read(tmp_path / "soft.csv").index) == set(sure.index)
    assert json.loads((tmp_path / "soft.json").read_text()) == {"asked": 12, "kept": len(sure)}


def test_the_cost_is_of_all_networks(teacher, tmp_path, capsys):
    ask(teacher, teacher / "best.pt", "--measure", "--out", tmp_path / "cost.json")
    costs = json.loads((tmp_path / "cost.json").read_text())
    parameters = read_result(teacher)["parameters"]
    assert [c["parameters"] for c in costs.values()] == [parameters] * 2
    assert all(c["networks"] == 1 and c["images_per_second"] > 0 for c in costs.values())
    assert f"{teacher}: 1 network, {parameters:,} parameters" in capsys.readouterr().out
