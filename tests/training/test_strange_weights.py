"""Files of weights from anywhere: weights, or one line that names the file."""

import json

import pytest
import torch
from torch import nn

from ballot.data.prepare import make_recipes
from ballot.errors import UserError
from ballot.prediction import checkpoints
from ballot.training import weights
from ballot.training.tensor_files import save_tensors

ABOUT = {
    "config": {"model": "simple_cnn"},
    "classes": ["a", "b"],
    "image_size": 8,
    "mean": [0, 0, 0],
    "std": [1, 1, 1],
}
STRANGE = [
    ({1: torch.ones(2)}, "has weights called 1"),
    ({"w": torch.eye(2).to_sparse()}, "'w' is sparse"),
    ({"w": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)}, "'w' is sparse"),
    ({"w": torch.ones(2, dtype=torch.complex64)}, "'w' is sparse"),
    ({"w": torch.ones(2, device="meta")}, "'w' is sparse|is no file of weights"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model, message", STRANGE)
def test_weights_that_no_network_takes_are_refused(tmp_path, model, message):
    path = tmp_path / "best.pt"
    torch.save({"model": model, "about": json.dumps(ABOUT)}, path)
    for read in (weights.read_weights, checkpoints.read_checkpoint):
        with pytest.raises(UserError, match=rf"best\.pt: .*({message})"):
            read(path)


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04"])
def test_what_is_no_checkpoint_is_named(tmp_path, data):
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.pt: is no file of weights"):
        weights.read_weights(tmp_path / "x.pt")


def test_what_is_no_tensor_among_weights_is_passed_over():
    net = nn.Linear(2, 2)
    state = {**net.state_dict(), "epoch": 3, "bias": 5}
    assert weights.load_weights(net, state, "x.pt", head=["bias"]) == ["bias"]


def test_a_checkpoint_with_a_crop_below_zero_is_refused(tmp_path):
    from dataset import AUGMENTATIONS

    config = {"model": "simple_cnn", "augmentation_args": {"crop": -1}}
    about = json.dumps({**ABOUT, "config": config})
    save_tensors(tmp_path / "best.pt", {"model": {"w": torch.ones(2)}, "about": about})
    saved = checkpoints.read_checkpoint(tmp_path / "best.pt")
    with pytest.raises(UserError, match="augmentation_args: crop is -1"):
        make_recipes(saved.config, 8, AUGMENTATIONS)


def test_a_checkpoint_whose_classes_no_table_can_name_is_refused(tmp_path):
    about = json.dumps({**ABOUT, "classes": ["a", "\ud800"]})
    save_tensors(tmp_path / "best.pt", {"model": {"w": torch.ones(2)}, "about": about})
    with pytest.raises(UserError, match=r"best\.pt: 1 name is not UTF-8"):
        checkpoints.read_checkpoint(tmp_path / "best.pt")
