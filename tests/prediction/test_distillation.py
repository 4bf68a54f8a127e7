"""One network in the place of a vote: how it is trained, and the whole of it as typed."""

import json

import pytest
from trained_for_tests import coloured, run

from ballot.prediction import distillation
from ballot.prediction.distillation import DistilRequest, Line, table, training_words, with_schedule
from ballot.runs.files import read_json
from ballot.runs.folder import read_config, read_result


def test_it_has_the_data_and_the_split_of_the_members(tmp_path):
    values = {"data_dir": "photos", "val_ratio": 0.3, "seed": 5, "split_seed": None, "folds": 3}
    values |= {"classes": ["b", "a"], "recipe": "probe", "lr": 1, "strict": True}
    request = DistilRequest("timm:resnet18", options=["--lr", "0.1"])
    words = training_words(values, request, tmp_path / "net")
    assert words == [
        *("--model", "timm:resnet18", "--data_dir", "photos", "--classes", "b", "a"),
        *("--val_ratio", "0.3", "--folds", "3", "--fold", "0", "--split_seed", "5"),
        *("--out_dir", str(tmp_path), "--run_name", "net", "--lr", "0.1"),
    ]


def test_it_is_trained_for_longer_than_its_recipe_says_unless_it_is_told_how_long():
    recipe = {"epochs": "recipe", "criterion_args.label_smoothing": "recipe"}
    long = with_schedule([], {"values": {"epochs": 8}, "origin": recipe})
    assert long == ["--epochs", "32", "--criterion_args.label_smoothing", "0"]
    told = {"values": {"epochs": 8}, "origin": {"epochs": "command line"}}
    assert with_schedule(["x"], told) == ["x"]


def test_another_run_has_a_name_of_its_own(tmp_path):
    first = distillation.new_run(tmp_path, "timm:a/b")
    first.mkdir()
    assert [first.name, distillation.new_run(tmp_path, "timm:a/b").name] == [
        "timm-a-b",
        "timm-a-b-2",
    ]


def test_the_comparison_is_a_line_each():
    vote = Line("vote", 3, 1_200_000, 310.4, {"val_acc": 0.9, "test_acc": 0.8})
    lines = table([vote, Line("distilled net", 1, 400_000, 900.0, {"val_acc": 0.875})])
    assert [line.split() for line in lines] == [
        ["networks", "parameters", "images/s", "val_acc", "test_acc"],
        ["vote", "3", "1,200,000", "310", "0.9000", "0.8000"],
        ["distilled", "net", "1", "400,000", "900", "0.8750"],
    ]


@pytest.mark.slow  # five processes that load torch
def test_a_vote_becomes_one_network(tmp_path, script):
    data = coloured(tmp_path / "data", {"train": 12, "test": 8}, size=16)
    more = coloured(tmp_path, {"more": 10}, size=16, seed=7) / "more"
    words = ("--image_size", 16, "--epochs", 3, "--lr", 0.01, "--split_seed", 3)
    for seed in (1, 2):
        run(tmp_path, data, f"m{seed}", *words, "--seed", seed)
    csvs = sorted((tmp_path / "outputs").glob("*.csv"))
    own = ("--epochs", 4, "--image_size", 16, "--lr", 0.01, "--recipe", "none", "--device", "cpu")
    done = script("ensemble.py", *csvs, "--distill", "simple_cnn", "--unlabelled", more, *own)
    assert done.returncode == 0, done.stderr
    net = tmp_path / "ensemble" / "distilled" / "simple_cnn"
    result = read_result(net)
    assert result["status"] == "done"
    soft = read_json(net.with_name("simple_cnn-soft.json"))
    assert soft == {"asked": 3 * (12 + 8 + 10), "kept": 3 * (12 + 8 + 10)}
    log = (net / "run.log").read_text()
    assert "54 images added to the training rows, 29 training rows have soft targets" in log
    member = tmp_path / "outputs" / "m1"
    assert (net / "split.csv").read_text() == (member / "split.csv").read_text()
    lines = json.loads((net / "distilled.json").read_text())["lines"]
    one = read_result(member)["parameters"]
    assert [line["parameters"] for line in lines] == [2 * one, one]
    assert lines[1]["scores"] == {
        "val_acc": result["scores"]["val_acc"],
        "test_acc": result["test"]["acc"],
    }
    assert "distilled simple_cnn" in done.stdout
    assert (net / "model.onnx").is_file() or "no ONNX file: " in done.stdout
    assert read_config(net)["split_seed"] == 3


@pytest.mark.parametrize(
    "words, message",
    [
        (["--unlabelled", "."], "--unlabelled: goes with --distill or --pseudo_label"),
        (["--distill", "x", "--unlabelled", "nowhere"], "--unlabelled: nowhere is not there"),
        (["--epochs", "3"], "unknown flag '--epochs'"),
        (["--pseudo_label", "2"], "--pseudo_label: 2; a probability from 0 to 1"),
        (["--pseudo_label", "--group_folds"], "--pseudo_label: does not go with --group_folds"),
    ],
)
def test_requests_that_do_not_go_together_are_refused(words, message, capsys):
    import ensemble

    assert ensemble.main(["a.csv", *words]) == 2
    assert message in capsys.readouterr().err
