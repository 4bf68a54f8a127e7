"""The example of a reader's own components does what it says."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ballot.errors import UserError
from ballot.registry import load_plugins
from dataset import AUGMENTATIONS
from loss import CRITERIA, create_criterion
from model import MODELS, adopt_classes, create_model, model_spec

ROOT = Path(__file__).resolve().parents[1]

EXAMPLE = ROOT / "examples" / "plugins" / "my_components.py"
ADDED = {"my_net": MODELS, "my_loss": CRITERIA, "my_colours": AUGMENTATIONS}


@pytest.fixture
def example():
    load_plugins([str(EXAMPLE)])
    yield
    for name, registry in ADDED.items():
        del registry._entries[name]
    del sys.modules["plugin_my_components"]


@pytest.mark.usefixtures("example")
def test_the_examples_model_is_built_by_name_with_its_arguments():
    model, pretrained = create_model("my_net", 5, args={"width": 4}, image_size=32)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5) and not pretrained
    assert model_spec("my_net").input_size == 64
    with pytest.raises(UserError, match="did you mean 'width'"):
        create_model("my_net", 5, args={"widht": 4})


@pytest.mark.usefixtures("example")
def test_the_examples_loss_nears_cross_entropy_and_equals_absolute_error():
    logits, targets = torch.randn(8, 4), torch.arange(8) % 4
    near = create_criterion("my_loss", 4, q=1e-4)(logits, targets)
    torch.testing.assert_close(near, F.cross_entropy(logits, targets), rtol=1e-3, atol=0)
    error = 1 - logits.softmax(dim=1)[torch.arange(8), targets]
    torch.testing.assert_close(create_criterion("my_loss", 4, q=1)(logits, targets), error.mean())
    soft = F.one_hot(targets, 4).float()
    torch.testing.assert_close(create_criterion("my_loss", 4, q=1)(logits, soft), error.mean())


@pytest.mark.usefixtures("example")
def test_the_examples_augmentation_draws_for_every_image_from_the_generator():
    recipe = AUGMENTATIONS.create("my_colours", 8, args={"strength": 0.3})
    tint = recipe.steps[-1]
    images = torch.full((4, 3, 8, 8), 100.0)
    once, again = (tint(images, np.random.default_rng(7)) for _ in range(2))
    assert torch.equal(once, again) and len(once.unique()) == 12
    assert once.min() >= 70 and once.max() <= 130


@pytest.mark.slow
def test_the_example_is_trained_as_typed(script):
    done = script(
        "train.py",
        "--plugins",
        EXAMPLE,
        "--model",
        "my_net",
        "--model_args",
        '{"width": 8}',
        "--criterion",
        "my_loss",
        "--augmentation",
        "my_colours",
        "--epochs",
        1,
    )
    assert done.returncode == 0, done.stderr
    done = script("train.py", "--plugins", EXAMPLE, "--model", "my_nett")
    assert done.returncode == 2 and "did you mean 'my_net'" in done.stderr


OWN_MODEL = """\
import torch.nn.functional as F
from base import BaseModel
from torch import nn


class Half(BaseModel):
    pass


class MnistModel(BaseModel):
    def __init__(self, num_classes=10, width=4):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 5, stride=4)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return F.log_softmax(self.fc(F.relu(self.conv(x)).mean((2, 3))), dim=1)
"""


@pytest.fixture
def project(tmp_path):
    """A project whose network stands in model/model.py and its base class in a package beside."""
    files = {
        "model/model.py": OWN_MODEL,
        "base/__init__.py": "from .base_model import *",
        "base/base_model.py": "from torch import nn\n\n\nclass BaseModel(nn.Module):\n    pass\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    paths = sys.path[:]
    yield tmp_path
    sys.path[:] = paths
    MODELS._offered.clear()
    for name in [name for name in sys.modules if name.startswith(("plugin_model", "base"))]:
        del sys.modules[name]


def test_a_class_of_a_project_is_a_model_by_its_constructors_arguments(project):
    load_plugins([str(project / "model" / "model.py")], adopt_classes)
    model, _ = create_model("MnistModel", 5, args={"width": 7}, image_size=28)
    images = torch.rand(2, 3, 28, 28)
    assert model.conv.weight.shape == (7, 1, 5, 5) and model(images).shape == (2, 5)
    grey = images.mean(1, keepdim=True).expand_as(images)
    torch.testing.assert_close(model(images), model(grey))
    with pytest.raises(UserError, match="takes no argument 'widht'; did you mean 'width'"):
        create_model("MnistModel", 5, args={"widht": 7})
    assert "MnistModel" not in MODELS.names(families=False)


def test_two_plugins_of_one_file_name_are_both_run(project):
    (project / "other").mkdir()
    (project / "other" / "model.py").write_text("from torch import nn\nclass Two(nn.Module): ...\n")
    files = [str(project / name / "model.py") for name in ("model", "other")]
    load_plugins(files, adopt_classes)
    assert "MnistModel" in MODELS and "Two" in MODELS


def test_an_unknown_model_says_what_makes_it_known(project, script):
    (project / "config.json").write_text('{"arch": {"type": "MnistModel", "args": {}}}')
    done = script("train.py", "-c", "config.json", cwd=project)
    assert done.returncode == 2
    error, *lines = done.stderr[done.stderr.index("error: ") :].splitlines()
    assert "config.json: unknown model 'MnistModel'" in error and "--plugins FILE" in error
    assert lines[:2] == ["    from model import MODELS", '    @MODELS.register("MnistModel")']
    assert lines[2].endswith("return MnistModel(num_classes=num_classes, **args)")
