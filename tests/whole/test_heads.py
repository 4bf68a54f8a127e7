"""Heads from the command line to the answer: train, resume, predict, vote, average and export."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from images_for_tests import table
from PIL import Image
from torch.nn import functional as F
from trained_for_tests import run

import ensemble
import predict
import train
from ballot.errors import UserError
from ballot.prediction.checkpoints import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"blue": (40, 60, 200), "green": (60, 170, 60), "red": (200, 50, 50)}
WORDS = ("--label_column", "colour", "light", "--image_size", 16, "--heads")


def signals(root):
    """Write noisy pictures of a colour and a brightness each, and the CSV that says so."""
    random, rows = np.random.default_rng(0), []
    for k in range(81):
        colour, light = list(COLOURS)[k % 3], ("dark", "dim", "high")[k // 3 % 3]
        tone = np.array(COLOURS[colour]) * {"dark": 0.3, "dim": 0.6, "high": 1.0}[light]
        pixels = np.clip(tone + random.normal(0, 20, (20, 20, 3)), 0, 255).astype(np.uint8)
        (root / "p").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / "p" / f"{k}.png")
        split = "test" if k >= 63 else "val" if k >= 36 else "train"
        rows.append({"path": f"p/{k}.png", "colour": colour, "light": light, "split": split})
    return table(root / "labels.csv", rows)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("heads")
    data = signals(folder / "data")
    short = ("--epochs", 6, "--lr", 0.01, "--batch_size", 12)
    run(folder, data, "product", *WORDS, "product", *short, "--ema", 0.5)
    run(folder, data, "joint", *WORDS, "joint", *short, "--tta", "hflip", "--freeze_norm")
    return folder


def part(table, row, value):
    """Sum a row's probabilities over the joint classes that have a value."""
    return sum(table.loc[row, c] for c in table.columns if value in str(c).split("_"))


@pytest.mark.parametrize("name", ["product", "joint"])
def test_scores_are_told_of_each_attribute_and_of_the_joint_class(trained, name):
    folder = trained / "outputs" / name
    result = json.loads((folder / "result.json").read_text())
    history = pd.read_csv(folder / "history.csv")
    best = history.iloc[result["best_epoch"] - 1]
    val = pd.read_csv(folder / "val.csv")
    assert result["classes"] == [f"{c}_{x}" for c in COLOURS for x in ("dark", "dim", "high")]
    if name == "product":  # without views what the best epoch answered is in val.csv
        for place, attribute in enumerate(("colour", "light")):
            values = sorted({label.split("_")[place] for label in val["label"]})
            found = [max(values, key=lambda v: part(val, row, v)) for row in val.index]
            wanted = [label.split("_")[place] for label in val["label"]]
            assert best[f"val_{attribute}_acc"] == pytest.approx(np.mean(np.equal(found, wanted)))
    for score in ("acc", "colour_acc", "light_acc"):
        assert result["scores"][f"val_{score}"] == pytest.approx(best[f"val_{score}"])
        assert 0 <= result["test"][score] <= 1
    assert result["scores"]["val_colour_acc"] > 0.6  # it has learnt something
    assert "train_colour_acc" not in history


@pytest.mark.parametrize("name", ["product", "joint"])
def test_predict_answers_as_the_run_did(trained, name, tmp_path):
    own = pd.read_csv(trained / "outputs" / f"{name}.csv").set_index("id")
    words = [trained / "outputs" / name, trained / "data" / "p", "--out", tmp_path / "new.csv"]
    assert predict.main([*map(str, words), "--device", "cpu"]) == 0
    new = pd.read_csv(tmp_path / "new.csv").set_index("id")
    new.index = [f"p/{str(name).rpartition('/')[2]}" for name in new.index]
    np.testing.assert_allclose(new.loc[own.index, own.columns], own, atol=1e-5)


def test_a_vote_and_its_networks_answer_alike(trained, tmp_path):
    files = [trained / "outputs" / f"{name}.csv" for name in ("product", "joint")]
    words = [*files, "--out_dir", tmp_path / "vote", "--select", "all"]
    assert ensemble.main([str(word) for word in words]) == 0
    vote = pd.read_csv(tmp_path / "vote" / "soft.csv").set_index("id")
    words = [tmp_path / "vote", trained / "data" / "p", "--out", tmp_path / "new.csv"]
    assert predict.main([*map(str, words), "--device", "cpu"]) == 0
    new = pd.read_csv(tmp_path / "new.csv").set_index("id")
    new.index = [f"p/{str(name).rpartition('/')[2]}" for name in new.index]
    np.testing.assert_allclose(new.loc[vote.index, vote.columns], vote, atol=1e-5)


def test_a_run_goes_on_where_it_was_stopped_and_starts_another(trained, tmp_path, capsys):
    words = (*WORDS, "product", "--head_weights", "uncertainty", "--ordinal", "light")
    data = trained / "data" / "labels.csv"
    whole = run(tmp_path, data, "whole", *words, "--epochs", 2)
    half = run(tmp_path, data, "half", *words, "--epochs", 1)
    run(tmp_path, None, "half", "--resume", half, "--epochs", 2)
    first, second = (torch.load(path / "last.pt", weights_only=True) for path in (whole, half))
    assert first["criterion"]["log_variances"].abs().min() > 0
    assert torch.equal(first["criterion"]["log_variances"], second["criterion"]["log_variances"])
    assert all(torch.equal(first["model"][k], second["model"][k]) for k in first["model"])
    assert train.main(["--resume", str(half), "--heads", "joint"]) == 2
    assert "heads was 'product' in that run and is 'joint' now" in capsys.readouterr().err
    run(tmp_path, data, "next", *words, "--epochs", 1, "--init_from", whole, "--lr", 1e-9)
    kept, given = (read_checkpoint(tmp_path / "outputs" / n / "best.pt") for n in ("next", "whole"))
    assert [a.name for a in kept.attributes] == ["colour", "light"]
    for name, values in kept.weights.items():  # its classifier is taken over too
        torch.testing.assert_close(values, given.weights[name], atol=1e-6, rtol=0)


def test_networks_of_the_same_heads_alone_are_averaged(trained, tmp_path, capsys):
    data, runs = trained / "data" / "labels.csv", []
    for name, words in {"a": ("product",), "b": ("product", "--lr", 0.02), "c": ("joint",)}.items():
        runs.append(run(tmp_path, data, name, *WORDS, *words, "--epochs", 2))
    assert predict.main(["--soup", *map(str, runs), "--out", str(tmp_path / "soup")]) == 0
    assert "of 2 runs of one start averaged" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["product", "joint"])
def test_a_network_of_heads_is_one_file_for_other_programs(trained, tmp_path, name):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    file, pictures = tmp_path / "heads.onnx", trained / "data" / "p"
    words = [trained / "outputs" / name, pictures, "--export", "onnx", "--out", file]
    assert predict.main([str(word) for word in words]) == 0
    facts = json.loads((tmp_path / "heads.json").read_text())
    own = pd.read_csv(trained / "outputs" / f"{name}.csv").set_index("id")
    images = []
    for path in own.index:
        pixels = torch.from_numpy(np.array(Image.open(trained / "data" / path)))
        pixels = pixels.permute(2, 0, 1)[None]
        images.append(F.interpolate(pixels, (16, 16), mode="bilinear", antialias=True))
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (probs,) = session.run(None, {"images": (torch.cat(images) / 255).numpy()})
    np.testing.assert_allclose(probs, own[facts["classes"]], atol=1e-5)


@pytest.mark.parametrize(
    "words, error",
    [
        (("colour", "--heads", "product"), "heads: product needs a label of several attributes"),
        (("colour", "light", "--heads", "joint", "--ordinal", "ligth"), "no attribute 'ligth'"),
    ],
)
def test_what_the_data_cannot_do_is_one_line(trained, tmp_path, capsys, words, error):
    data = ["--data_dir", str(trained / "data" / "labels.csv"), "--out_dir", str(tmp_path)]
    assert train.main([*data, "--recipe", "none", "--label_column", *words]) == 2
    assert error in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_whose_attributes_do_not_fit_is_damaged(trained, tmp_path):
    shutil.copytree(trained / "outputs" / "product", tmp_path / "odd")
    saved = torch.load(tmp_path / "odd" / "best.pt", weights_only=True)
    about = json.loads(saved["about"])
    about["attributes"][0]["of_class"] = [0, 0, 0]
    torch.save({**saved, "about": json.dumps(about)}, tmp_path / "odd" / "best.pt")
    with pytest.raises(UserError, match="the description of its model is damaged"):
        read_checkpoint(tmp_path / "odd" / "best.pt")


@pytest.mark.slow
def test_several_processes_learn_heads_and_their_weights_as_one_does(trained, tmp_path):
    words = ["--data_dir", trained / "data" / "labels.csv", *WORDS, "product", "--epochs", 2]
    words += ["--head_weights", "uncertainty", "--recipe", "none", "--model", "simple_cnn"]
    words += ["--no_tensorboard", "--batch_size", 12, "--run_name"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    for name, launcher in (("one", []), ("two", torchrun)):
        command = [sys.executable, *launcher, ROOT / "train.py", *words, name]
        subprocess.run(list(map(str, command)), cwd=tmp_path, check=True)
    one, two = (
        torch.load(tmp_path / f"outputs/{n}/last.pt", weights_only=True) for n in ("one", "two")
    )
    assert one["criterion"]["log_variances"].abs().min() > 0
    torch.testing.assert_close(two["criterion"], one["criterion"], atol=1e-6, rtol=0)
    one, two = (pd.read_csv(tmp_path / f"outputs/{n}/history.csv") for n in ("one", "two"))
    scores = [name for name in one if name.startswith(("train_", "val_"))]
    np.testing.assert_allclose(one[scores], two[scores], atol=1e-5)
