"""torchvision's data sets: from arrays they hold, image by image, or not there."""

import numpy as np
import pytest
import torch

from ballot.config.schema import Config
from ballot.errors import UserError
from dataset import DATASETS, load_data


def load(root, name, **options):
    return load_data(Config(data_dir=str(root), dataset=name, cache="off", **options))


def idx(path, array):
    """Write the format of MNIST and its like: a magic number, the sizes, the bytes."""
    sizes = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


@pytest.fixture
def fashion(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 40), ("t10k", 10)):
        idx(raw / f"{name}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), np.uint8))
        idx(raw / f"{name}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return tmp_path


def test_arrays_are_taken_as_they_are(fashion):
    data = load(fashion, "FashionMNIST", image_size=28, mean=(0.0,), std=(1.0,))
    assert len(data.folds[0].train) + len(data.folds[0].val) == 40 and len(data.test) == 10
    assert data.classes[1] == "Trouser"
    from torchvision.datasets import FashionMNIST

    reference = FashionMNIST(str(fashion), train=False)
    images = torch.cat([x.clone() for x, _ in data.test.batches(4)])
    assert torch.allclose(images[:, 0] * 255, reference.data.float(), atol=1e-3)
    assert data.test.labels.tolist() == reference.targets.tolist()


def test_a_set_without_arrays_is_asked_for_each_image():
    args = {"size": 24, "image_size": [3, 20, 20], "num_classes": 2}
    data = load_data(Config(dataset="FakeData", dataset_args=args, image_size=16, cache="off"))
    assert data.name == "FakeData" and len(data.classes) == 2 and data.test is None
    images, _ = next(data.folds[0].train.batches(4))
    assert images.shape == (4, 3, 16, 16)


def test_what_is_not_on_disk_is_not_fetched(tmp_path):
    with pytest.raises(UserError, match=r"CIFAR10: is not in .*--download fetches it"):
        load(tmp_path, "CIFAR10")
    assert list(tmp_path.iterdir()) == []


def test_names_and_arguments_are_checked(tmp_path):
    assert "CIFAR10" in DATASETS.names()
    with pytest.raises(UserError, match="did you mean 'FashionMNIST'"):
        load(tmp_path, "FashionMNSIT")
    with pytest.raises(UserError, match="FakeData takes no argument 'sizes'"):
        load(tmp_path, "FakeData", dataset_args={"sizes": 3})


def test_a_set_of_boxes_is_no_set_of_classes(tmp_path):
    with pytest.raises(UserError, match="VOCDetection: is not in"):
        load(tmp_path, "VOCDetection")
