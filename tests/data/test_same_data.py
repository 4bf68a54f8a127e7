"""A run goes on with the data that it was begun with, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process_engine import InProcessEngine
from PIL import Image
from trained_for_tests import coloured, run

import ensemble
import train
from ballot.engines.choose import AnyEngine
from ballot.engines.interface import Launch, Plan
from ballot.errors import UserError
from ballot.preflight import tryout
from ballot.runs.files import read_rows
from ballot.vote.options import VoteOptions

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One epoch on images without a validation side, so that the split is made."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    data = coloured(folder, {"data": 10}, size=16) / "data"
    run(folder, data, "one", "--epochs", 1, "--image_size", 16)
    return folder


def repaint(data: Path) -> None:
    """Change one pixel, and neither the file's name nor its format."""
    file = data / "red" / "red-3.png"
    pixels = np.array(Image.open(file))
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(file)


def swap(data: Path) -> None:
    (data / "red").rename(data / "other")
    (data / "blue").rename(data / "red")
    (data / "other").rename(data / "blue")


def swap_two_files(data: Path) -> None:
    """Swap images of one class: names, classes and sides stay as they are."""
    one, two = data / "red" / "red-0.png", data / "red" / "red-1.png"
    held = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(held)


CHANGES = {
    "a pixel": (repaint, "the images"),
    "two files": (swap_two_files, "the images"),
    "two classes": (swap, "the rows"),
    "the name of a class": (lambda data: (data / "red").rename(data / "rot"), "'red'"),
    "fewer images": (lambda data: (data / "red" / "red-3.png").unlink(), "red/red-3.png"),
    "more images": (
        lambda data: shutil.copy(data / "red" / "red-3.png", data / "red" / "new.png"),
        "red/new.png",
    ),
}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("auto", [False, True], ids=["by folder", "auto"])
@pytest.mark.parametrize("change, named", CHANGES.values(), ids=CHANGES)
def test_changed_data_are_refused_before_anything_is_written(
    trained, tmp_path, capsys, change, named, auto
):
    data, outputs = tmp_path / "data", tmp_path / "outputs"
    shutil.copytree(trained / "data", data)
    shutil.copytree(trained / "outputs", outputs)
    change(data)
    before = contents(outputs)
    words = [
        "--epochs",
        2,
        "--data_dir",
        data,
        "--cache",
        tmp_path / "cache",
        "--device",
        "cpu",
        "--resume",
        "auto" if auto else outputs / "one",
    ]
    if auto:
        words += ["--out_dir", outputs, "--run_name", "one", "--image_size", 16, "--no_tensorboard"]
    assert train.main([str(word) for word in words]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: resume: ") and named in said and "\n" not in said
    assert contents(outputs) == before


def test_a_run_remembers_the_rows_that_were_excluded(trained, tmp_path, capsys):
    listed = tmp_path / "list.csv"
    listed.write_text("label,id\nred,red/red-3.png\n")
    words = ("--epochs", 1, "--image_size", 16, "--exclude", listed)
    folder = run(tmp_path, trained / "data", "less", *words)
    assert (folder / "excluded.csv").read_text() == "id\nred/red-3.png\n"
    config = json.loads((folder / "config.json").read_text())
    assert config["values"]["exclude"] == str(listed)
    kept, all_rows = read_rows(folder / "split.csv"), read_rows(trained / "outputs/one/split.csv")
    assert kept == [row for row in all_rows if row["id"] != "red/red-3.png"]
    resume = ["--resume", str(folder), "--epochs", "2", "--device", "cpu"]
    listed.write_text("id\nred/red-3.png\nred/red-4.png\n")
    assert train.main(resume) == 2
    said = capsys.readouterr().err
    assert "the rows differ (red/red-4.png missing)" in said
    moved = tmp_path / "moved.txt"
    moved.write_text("red/red-3.png\n")
    assert train.main([*resume, "--exclude", str(moved)]) == 0


def test_the_same_data_elsewhere_and_saved_anew_go_on(trained, tmp_path):
    data, outputs = tmp_path / "moved", tmp_path / "outputs"
    shutil.copytree(trained / "data", data)
    shutil.copytree(trained / "outputs", outputs)
    for file in data.rglob("*.png"):
        Image.open(file).save(file, compress_level=1)  # other bytes, the same pixels
    words = [
        "--epochs",
        2,
        "--data_dir",
        data,
        "--cache",
        tmp_path / "cache",
        "--device",
        "cpu",
        "--resume",
        outputs / "one",
    ]
    assert train.main([str(word) for word in words]) == 0
    assert json.loads((outputs / "one" / "result.json").read_text())["epochs"] == 2


@pytest.mark.slow
def test_a_search_on_changed_data_is_refused_before_it_is_resumed(trained, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(trained / "data", data)
    command = f"python3 train.py --resume auto --epochs 3 --image_size 16 --data_dir {data}"
    one = trained / "outputs" / "one"
    tryout.check_data(command, ROOT, one, {"lr": 0.02})  # the same data: nothing is wrong
    repaint(data)
    with pytest.raises(UserError, match=f"^resume: .* {one} was begun with: the images"):
        tryout.check_data(command, ROOT, one, {"lr": 0.02})


@pytest.mark.slow
def test_changed_data_are_refused_before_more_is_trained_for_a_search(trained, tmp_path):
    data, outputs = tmp_path / "data", tmp_path / "outputs"
    shutil.copytree(trained / "data", data)
    outputs.mkdir()
    engine = InProcessEngine(one_epoch, [{"lr": 0.02}])
    command = f"python3 train.py --resume auto --image_size 16 --data_dir {data}"
    plan = Plan(None, command, ROOT, outputs, 1, None, 1, True)
    search = engine.start(plan, Launch(), {})
    while search.status().state != "done":
        pass
    search.stop()
    shutil.copytree(trained / "outputs" / "one", outputs / "s0-000-t0")
    repaint(data)
    asked = {"finalize": 1, "folds": 2, "csv": [], "search": "s0", "soup": False, "port": 0}
    with pytest.raises(UserError, match=r"^resume: .* was begun with: the images have other"):
        ensemble.vote_of_finalists(
            AnyEngine([engine]), asked, VoteOptions(out_dir=str(tmp_path / "vote"))
        )
    assert len(search.trials()) == 1


def one_epoch(_record, _search):
    yield 0.5
    return 0.5
