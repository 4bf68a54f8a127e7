"""Exported files: the same probabilities, and all that is needed to use them elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from trained_for_tests import coloured, run

import predict
from ballot.vote.options import VoteOptions
from ballot.vote.run import run_vote

CLASSES = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs of one image size, and one of another."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("export")
    data = coloured(folder / "data", {"train": 8, "val": 8, "test": 3})
    small = ("--epochs", 1, "--augmentation_args.crop", 32)
    one = run(folder, data, "one", *small, "--image_size", 16, "--channels_last")
    two = run(
        folder, data, "two", *small, "--image_size", 16, "--seed", 7, "--mean", 0.4, "--std", 0.3
    )
    large = run(folder, data, "large", *small, "--image_size", 20)
    return one, two, large, data


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def onnx_runner(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})[0]


def torch_runner(path):
    module = torch.export.load(path).module()
    return lambda images: module(images).detach().numpy()


FORMATS = [
    pytest.param("torch", "m.pt2", torch_runner, id="torch"),
    pytest.param("onnx", "m.onnx", onnx_runner, id="onnx"),
]


def as_the_sidecar_says(paths, facts) -> torch.Tensor:
    """Images [N, 3, S, S] for an exported file, made from its JSON with Pillow and PyTorch."""
    made = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        left, top = (round(max(n - facts["crop"], 0) / 2) for n in image.size)
        image = image.crop(
            (
                left,
                top,
                min(left + facts["crop"], image.width),
                min(top + facts["crop"], image.height),
            )
        )
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        size = (facts["image_size"],) * 2
        made.append(F.interpolate(pixels, size, mode="bilinear", antialias=True))
    return torch.cat(made) / 255


def answers(where, data) -> tuple[list[Path], np.ndarray]:
    paths = sorted((data / "test").rglob("*.png"))
    assert predict.main([str(where), str(data / "test"), "--out", "own.csv"]) == 0
    return paths, pd.read_csv("own.csv")[CLASSES].to_numpy()


@pytest.mark.parametrize("kind, name, load", FORMATS)
def test_a_file_gives_the_runs_probabilities_by_what_stands_beside_it(made, kind, name, load):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    one, _, _, data = made
    assert predict.main([str(one), str(data / "test"), "--export", kind, "--out", name]) == 0
    facts = json.loads(Path("m.json").read_text())
    assert facts["classes"] == CLASSES and facts["crop"] == 32 and facts["image_size"] == 16
    assert facts["checked"]["images"] == 9 and facts["checked"]["largest_difference"] < 1e-4
    assert len(facts["mean"]) == len(facts["std"]) == 3
    paths, own = answers(one, data)
    exported, images = load(name), as_the_sidecar_says(paths, facts)
    np.testing.assert_allclose(exported(images), own, atol=1e-4)
    np.testing.assert_allclose(exported(images[:1]), own[:1], atol=1e-4)
    assert sorted(p.name for p in Path().iterdir()) == sorted(["m.json", name, "own.csv"])


@pytest.mark.parametrize(
    "options", [{"weights": [2, 1]}, {"method": "geometric", "calibrate": True}]
)
def test_a_vote_of_networks_that_see_alike_is_one_file(made, options):
    one, two, _, data = made
    run_vote([one.with_suffix(".csv"), two.with_suffix(".csv")], VoteOptions(**options))
    assert predict.main(["ensemble", "--export", "torch", "--out", "m.pt2"]) == 0
    facts = json.loads(Path("m.json").read_text())
    assert facts["models"] == ["simple_cnn"] * 2 and facts["mean"][1] == [0.4] * 3
    paths, own = answers("ensemble", data)
    found = torch_runner("m.pt2")(as_the_sidecar_says(paths, facts))
    np.testing.assert_allclose(found, own, atol=1e-4)


@pytest.mark.parametrize(
    "names, options, message",
    [
        (("one", "large"), {}, "(16 pixels of the centre 32 and 20 pixels of the centre 32)"),
        (("one", "two"), {"method": "rank"}, "a vote that is counted by rank cannot be one file"),
        (("one", "two"), {"stack": "logistic"}, "a vote that is stacked cannot be one file"),
    ],
)
def test_a_vote_that_cannot_be_one_file_says_why(made, capsys, names, options, message):
    files = [made[0].with_name(f"{name}.csv") for name in names]
    run_vote(files, VoteOptions(**options))
    assert predict.main(["ensemble", "--export", "torch", "--out", "m.pt2"]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1
    assert sorted(p.name for p in Path().iterdir()) == ["ensemble"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--export", "onxx", "--out", "m.onnx"], "unknown 'onxx'; did you mean 'onnx'?"),
        (["--export", "torch"], "a file that ends in .pt2"),
        (["--export", "torch", "--out", "m.pt"], "a file that ends in .pt2"),
        (["--export", "torch", "--out", "m.pt2", "--tta", "hflip"], "--tta: does not go with"),
        (["--export", "torch", "--out", "m.pt2", "--top", "2"], "--top: does not go with"),
    ],
)
def test_bad_wishes_are_one_line(made, capsys, words, message):
    assert predict.main([str(made[0]), *words]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1


def test_a_missing_package_is_one_line(made, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    assert predict.main([str(made[0]), "--export", "onnx", "--out", "m.onnx"]) == 2
    assert "needs onnxruntime; pip install -r requirements-extra.txt" in capsys.readouterr().err


def test_a_pipeline_that_no_file_holds_is_refused(made, tmp_path, capsys):
    config = tmp_path / "c.json"
    config.write_text(
        json.dumps(
            {
                "pipeline": {
                    "val": {"Resize": {"size": [16, 16]}, "Grayscale": {"num_output_channels": 3}}
                }
            }
        )
    )
    grey = run(tmp_path, made[3], "grey", "--epochs", 1, "--image_size", 16, "--config", config)
    assert predict.main([str(grey), "--export", "torch", "--out", "m.pt2"]) == 2
    assert "the run's pipeline does more to test images" in capsys.readouterr().err
