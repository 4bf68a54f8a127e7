"""The example of a reader's own components does what it says."""

import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch.nn import functional as F

from ballot.errors import UserError
from ballot.registry import load_plugins
from dataset import AUGMENTATIONS
from loss import CRITERIA, create_criterion
from model import MODELS, create_model, model_spec

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
