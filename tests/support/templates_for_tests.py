"""Configurations of the shape that projects of three templates bring along, and their images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from images_for_tests import class_folders

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SHOWN = {
    "Resize": {"size": 80},
    "CenterCrop": {"size": 67},
    "ToTensor": None,
    "Normalize": IMAGENET,
}
SCORES = {
    "accuracy_score": None,
    "top_k_accuracy_score": {"k": 2},
    "precision_score": None,
    "recall_score": None,
}


def three_parts(root: Path, **changed: Any) -> list[Path]:
    """Write a project of three parts: a network with a backbone and a head, three folders apart."""
    head = {
        "type": "AlexNet_Head",
        "in_size": 6,
        "in_channel": 256,
        "num_class": 3,
        "dropout_ratio": 0.4,
        "loss_cls": {"type": "CrossEntropyLoss", "loss_weight": 1.0},
        "avg_pooling": True,
        "multi_label": False,
        "init_weight": True,
    }
    backbone = {
        "type": "AlexNet_Backbone",
        "in_channel": 3,
        "lrn_param": [3, 0.0002, 0.5, 1.5],
        "pretrained": None,
        "init_weight": True,
    }
    tested = {key: SCORES[key] for key in list(SCORES)[1:]}
    model = {
        "model": {"type": "AlexNet", "backbone": backbone, "cls_head": head},
        "params": {
            "evaluation": {"train": SCORES, "validation": SCORES, "test": tested},
            "loss": {"loss_cls": {"label_smoothing": 0.0, "weight": None}},
        },
        "optimizer": {"type": "SGD", "lr": 0.02, "momentum": 0.8, "weight_decay": 0.0003},
        "pipeline": {
            "train": {
                "RandomResizedCrop": {"size": 67},
                "RandomHorizontalFlip": None,
                "ToTensor": None,
                "Normalize": IMAGENET,
            },
            "validation": SHOWN,
            "test": SHOWN,
        },
    }
    data = {
        "train_dir": str(root / "photos_train" / "all"),
        "val_dir": str(root / "photos_val"),
        "test_dir": str(root / "photos_test" / "all"),
        "weight_dir": str(root / "weights"),
        "weight_load": str(root / "load.pth"),
        "log_dir": str(root / "log"),
        "dummy": False,
        "batch_size": 8,
        "epochs": 2,
        "train_freq": 2,
        "val_freq": 2,
        "start_epoch": 0,
        "resume": None,
        "dataset": "ImageNet",
    }
    env = {
        "seed": None,
        "workers": 2,
        "multiprocessing_distributed": True,
        "distributed": True,
        "ngpus_per_node": 2,
        "world_size": 1,
        "rank": 0,
        "dist_url": "tcp://127.0.0.1:12345",
        "dist_backend": "gloo",
    }
    parts = {"model": model, "data": data, "env": env}
    for part in parts.values():
        part.update({key: value for key, value in changed.items() if key in part})
    return [write(root / f"{name}.json", part) for name, part in parts.items()]


def three_folders(root: Path) -> None:
    """Make the folders that `three_parts` names."""
    for seed, (folder, count) in enumerate(
        {"photos_train/all": 8, "photos_val": 3, "photos_test/all": 2}.items()
    ):
        counts = dict.fromkeys(("cat", "dog", "emu"), count)
        class_folders(root / folder, counts, start=1000 * seed)


def config_json(root: Path, **trainer: Any) -> Path:
    """Write a config.json with a loader and a data set of its project's own."""
    values = {
        "name": "Mask_ResNet",
        "n_gpu": 1,
        "arch": {"type": "ResNet", "args": {"num_blocks": [1, 1, 1, 1]}},
        "data_loader": {
            "type": "FlowerDataLoader",
            "args": {"batch_size": 3, "shuffle": False, "validation_split": 5, "num_workers": 2},
        },
        "dataset": {"type": "ImageDataset", "args": {"data_dir": str(root / "photos")}},
        "optimizer": {
            "type": "Adam",
            "args": {"lr": 0.002, "weight_decay": 0, "amsgrad": True},
        },
        "loss": "nll_loss",
        "metrics": ["accuracy", "top_k_acc"],
        "lr_scheduler": {"type": "StepLR", "args": {"step_size": 1, "gamma": 0.3}},
        "trainer": {
            "epochs": 2,
            "save_dir": str(root / "saved"),
            "save_period": 1,
            "verbosity": 2,
            "monitor": "min val_loss",
            "early_stop": 10,
            "tensorboard": True,
            **trainer,
        },
    }
    return write(root / "config.json", values)


DEFAULTS = """\
SEED: 7
TRAIN:
  BATCH_SIZE: 16
  DISTRIBUTED_BACKEND: 'dp'
  GPUS: 0
  LR: 0.05
  MAX_EPOCHS: 3
  MODEL_TYPE: 'simple_cnn'
  MOMENTUM: 0.9
  OPTIMIZER_TYPE: 'sgd'
  SCHEDULER_TYPE: 'step_lr'
  STEP_SIZE: 2
MLFLOW:
  EXPERIMENT_NAME: 'Default'
DATA:
  CACHE_DIR: '{root}/data'
  CLASSES: ['plane', 'car', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
  DATASET_TYPE: 'cifer10'
  INPUT_DIM: 3
  NUM_WORKERS: 32
  TRANSFORM_LIST: ['to_tensor', 'normalize']
  VALIDATION_SIZE: 0.25
"""


def upper_case(root: Path) -> list[Path]:
    """Write the defaults of a project of upper-case YAML, and an experiment over them."""
    files = [root / "defaults.yaml", root / "experiment.yaml"]
    files[0].write_text(DEFAULTS.format(root=root))
    files[1].write_text("MLFLOW:\n  EXPERIMENT_NAME: 'small_net'\nTRAIN: {MAX_EPOCHS: 1}\n")
    return files


def cifar10(root: Path, rows: int = 40) -> None:
    """Write random images in the layout that torchvision reads CIFAR-10 from."""
    import pickle

    import numpy as np

    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        pixels = rng.integers(0, 256, (rows, 3072), dtype=np.uint8)
        labels = [k % 10 for k in range(rows)]
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    titles = [f"class {k}" for k in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": titles}))


def write(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values))
    return path
