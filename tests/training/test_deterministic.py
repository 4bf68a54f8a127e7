"""--deterministic: the same bits each time, or a trial that says why it cannot be so."""

import json

import pytest
import torch

import train

PLUGIN = '''
import torch
from torch import nn
from model import MODELS

class Scattered(nn.Module):
    """Writes with `put_`, which has no deterministic form on any device."""

    def __init__(self, num_classes):
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, num_classes)

    def forward(self, x):
        logits = self.layer(x.flatten(1))
        return logits.clone().put_(torch.tensor([0]), logits.flatten()[:1].detach())

@MODELS.register("scattered")
def scattered(num_classes, pretrained):
    return Scattered(num_classes)
'''


@pytest.fixture(autouse=True)
def as_before():
    yield
    torch.use_deterministic_algorithms(False)


def run(tmp_path, name, *more):
    words = [
        "--epochs",
        "1",
        "--dataset",
        "dummy",
        "--dataset_args.rows",
        "64",
        "--image_size",
        "32",
        "--no_tensorboard",
        "--out_dir",
        str(tmp_path),
        "--run_name",
        name,
    ]
    return train.main([*words, "--deterministic", *more])


def test_two_runs_of_a_seed_answer_alike_to_the_bit(tmp_path):
    for name in ("one", "two"):
        assert run(tmp_path, name) == 0
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    one, two = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two"))
    assert one["scores"] == two["scores"]


def test_an_operation_without_a_deterministic_form_fails_the_trial_and_is_named(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    assert run(tmp_path, "run", "--plugins", str(tmp_path / "mine.py"), "--model", "scattered") == 1
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["reason"].startswith("deterministic: put_")
