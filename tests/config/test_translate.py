"""Other templates' configurations: what each key becomes, and that nothing is dropped silently."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
from pathlib import Path

import pytest

from assembly import configure
from ballot.config.files import read_config_file, read_config_files, recognise, translate
from ballot.config.layers import merge
from ballot.config.schema import Config
from ballot.config.templates import vocabulary
from ballot.config.templates.keys import COMPONENTS, RULES
from ballot.errors import UserError
from ballot.values import Layer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

PARTS = {
    "recipe": "none",
    "dataset": "dummy",
    "dataset_args": {"num_classes": 10},
    "workers": 2,
    "pipeline": {
        "train": {
            "Resize": {"size": [64, 64]},
            "RandomHorizontalFlip": {"p": 0.5},
            "ToTensor": None,
            "Normalize": IMAGENET,
        },
        "val": {"Resize": {"size": [64, 64]}, "ToTensor": None, "Normalize": IMAGENET},
    },
    "model": "AlexNet",
    "model_args": {"dropout": 0.4},
    "criterion": "cross_entropy",
    "criterion_args": {
        "label_smoothing": 0.1,
        "class_weights": [1, 1, 2, 1, 1, 0.5, 1, 1, 1, 1],
    },
    "epochs": 1,
    "batch_size": 64,
    "lr": 0.01,
    "weight_decay": 0.0005,
    "optimizer": "SGD",
    "optimizer_args": {"momentum": 0.9},
    "scheduler": "step",
    "scheduler_args": {"step_size": 30, "gamma": 0.1},
    "metrics": {
        "train": {"accuracy_score": None},
        "val": {"accuracy_score": None, "top_k_accuracy_score": {"k": 5}},
    },
    "seed": 7,
    "log_every": 5,
}
TEMPLATE = {
    "recipe": "none",
    "dataset": "digits",
    "val_ratio": 0.25,
    "workers": 1,
    "device": "auto",
    "model": "simple_cnn",
    "model_args": {"dropout": 0.1},
    "criterion": "cross_entropy",
    "epochs": 2,
    "batch_size": 32,
    "lr": 0.002,
    "weight_decay": 0.0,
    "optimizer": "Adam",
    "optimizer_args": {"amsgrad": True},
    "scheduler": "step",
    "scheduler_args": {"step_size": 50, "gamma": 0.5},
    "early_stop": 10,
    "monitor": "min val_loss",
    "metrics": ("acc", "top3"),
    "out_dir": "saved/Digits_LeNet",
    "save_period": 1,
    "tensorboard": False,
    "log_every": 5,
}
UPPER_CASE = {
    "recipe": "none",
    "dataset": "CIFAR10",
    "data_dir": "data/cifar10",
    "image_size": 32,
    "pipeline": {
        "train": {
            "Resize": {"size": [32, 32]},
            "RandomHorizontalFlip": None,
            "ToTensor": None,
            "Normalize": None,
        },
        "val": {"Resize": {"size": [32, 32]}, "ToTensor": None, "Normalize": None},
    },
    "workers": 2,
    "model": "simple_cnn",
    "epochs": 1,
    "batch_size": 64,
    "lr": 0.001,
    "weight_decay": 0.0001,
    "optimizer": "SGD",
    "optimizer_args": {"momentum": 0.9},
    "scheduler": "cosine",
    "clip_grad": 1.0,
    "early_stop": 3,
    "seed": 3,
    "device": "cpu",
    "amp": "off",
    "out_dir": "outputs",
    "tracker": ("mlflow",),
}
WHOLE = [
    (["template_json/model.json", "template_json/data.json", "template_json/env.json"], PARTS),
    (["template_config/config.json"], TEMPLATE),
    (["template_yacs/cifar10.yaml"], UPPER_CASE),
]


@pytest.mark.parametrize("files, wanted", WHOLE, ids=["parts", "template", "upper case"])
def test_the_effective_configuration_of_each_example_is_this_one(files, wanted):
    config, _ = configure(read_config_files([EXAMPLES / name for name in files]))
    assert dataclasses.asdict(config) == dataclasses.asdict(Config(**wanted))


def test_one_file_of_three_parts_and_three_files_are_one_configuration(tmp_path):
    whole = {}
    for name in ("model", "data", "env"):
        whole |= json.loads((EXAMPLES / "template_json" / f"{name}.json").read_text())
    (tmp_path / "all.json").write_text(json.dumps(whole))
    config, _ = merge([read_config_file(tmp_path / "all.json")])
    assert dataclasses.asdict(config) == dataclasses.asdict(Config(**PARTS))


def test_parts_without_a_frame_are_recognised_too(tmp_path):
    paths = []
    for name in ("model", "data", "env"):
        part = json.loads((EXAMPLES / "template_json" / f"{name}.json").read_text())[name]
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(part))
    config, _ = merge(read_config_files(paths))
    assert dataclasses.asdict(config) == dataclasses.asdict(Config(**PARTS))


@pytest.mark.parametrize("files, wanted", WHOLE, ids=["parts", "template", "upper case"])
def test_a_line_is_told_of_every_key(files, wanted):
    (layer,) = read_config_files([EXAMPLES / name for name in files])
    told = "\n".join(layer.notes)
    for key in wanted:
        assert f"{key} = " in told or f"{key}." in told, key
    assert not [line for line in layer.notes if line.startswith("warning:")]


def test_what_has_no_counterpart_is_named_with_its_file_in_one_line(tmp_path):
    env = {"world_size": 2, "dist_backend": "mpi", "rank": 1, "train_frq": 5, "dist_url": "env://"}
    (tmp_path / "env.json").write_text(json.dumps({"env": env}))
    (layer,) = read_config_files([EXAMPLES / "template_json/model.json", tmp_path / "env.json"])
    (line,) = [line for line in layer.notes if line.startswith("warning:")]
    assert "env.json: without a counterpart: " in line
    for key in ("env.world_size", "env.dist_backend", "env.rank", "env.train_frq (did you mean"):
        assert key in line
    assert "dist_url" not in line


def old(values: dict) -> tuple[dict, str]:
    """Translate one file, and return what is told as one text."""
    ours, notes = translate([("old", values)], recognise(values))
    return ours, "\n".join(notes)


TRAINER = {"trainer": {"epochs": 10}}
BACKBONE = {"backbone": "resnet18"}


@pytest.mark.parametrize(
    "values, wanted",
    [
        ({**TRAINER, "loss": "cross_entropy"}, {"criterion": "cross_entropy"}),
        (
            {**TRAINER, "loss": {"type": "FocalLoss", "args": {"gamma": 1}}},
            {"criterion": "focal", "criterion_args": {"gamma": 1}},
        ),
        ({**TRAINER, "n_gpu": 0}, {"device": "cpu"}),
        ({**TRAINER, "n_gpu": 2}, {"device": "0,1"}),
        (
            {**TRAINER, "arch": {"type": "ResNet18", "args": {"pretrained": True}}},
            {"model": "resnet18", "pretrained": "yes"},
        ),
        ({"trainer": {"monitor": "max val_accuracy"}}, {"monitor": "max val_acc"}),
        ({"trainer": {"early_stop": None}}, {"early_stop": 0}),
        (
            {**TRAINER, "data_loader": {"type": "MnistDataLoader", "args": {"data_dir": "x"}}},
            {"dataset": "MNIST", "data_dir": "x"},
        ),
        (
            {**TRAINER, "data_loader": {"type": "FlowerDataLoaderV2", "args": {"data_dir": "x"}}},
            {"dataset": "auto", "data_dir": "x"},
        ),
        (
            {**TRAINER, "data_loader": {"args": {"num_folds": 5, "fold_id": 1}}},
            {"folds": 5, "fold": 1},
        ),
        (
            {**TRAINER, "lr_scheduler": {"type": "ExponentialLR", "args": {"gamma": 0.9}}},
            {"scheduler": "step", "scheduler_args": {"step_size": 1, "gamma": 0.9}},
        ),
        (
            {**TRAINER, "lr_scheduler": {"type": "ReduceLROnPlateau"}},
            {"scheduler": "plateau", "scheduler_args": {"patience": 10}},
        ),
        (
            {
                "trainer": {"epochs": 9},
                "optimizer": {"type": "AdamW", "args": {"lr": 0.1}},
                "lr_scheduler": {
                    "type": "CosineAnnealingLR",
                    "args": {"T_max": 9, "eta_min": 0.001},
                },
            },
            {"weight_decay": 0.01, "scheduler": "cosine", "scheduler_args": {"min_factor": 0.01}},
        ),
        (
            {**TRAINER, "optimizer": {"type": "SGD", "args": {"lr": 0.1}}},
            {"optimizer": "SGD", "weight_decay": 0.0, "scheduler": "constant"},
        ),
        (
            {**BACKBONE, "head": {"type": "LinearClsHead", "dropout_ratio": 0.2}},
            {
                "model": "backbone_head",
                "model_args": {
                    "backbone": "resnet18",
                    "head": "linear",
                    "head_args": {"dropout": 0.2},
                },
            },
        ),
        (
            {**BACKBONE, "resume": "outputs/a", "gpu": 1},
            {"resume": "outputs/a", "device": "cuda:1"},
        ),
        (
            {"TRAIN": {"MAX_EPOCHS": 3, "OPTIMIZER": {"NAME": "adam", "LR": 0.1}}},
            {"epochs": 3, "optimizer": "Adam", "lr": 0.1},
        ),
        (
            {"TRAINER": {"PRECISION": "16-mixed", "DEVICES": [0, 1]}},
            {"amp": "fp16", "device": "0,1"},
        ),
        (
            {"TRAIN_TRANSFORM_LIST": ["RandomResizedCrop", "ToTensor"], "IMG_SIZE": 48},
            {
                "pipeline": {
                    "train": {"RandomResizedCrop": {"size": 48}, "ToTensor": None},
                    "val": {"Resize": {"size": [48, 48]}, "ToTensor": None},
                }
            },
        ),
        ({"LOGGER": ["tensorboard", "wandb"]}, {"tracker": ("tensorboard", "wandb")}),
        (
            {"MODEL": {"TYPE": "simple_cnn", "DROPOUT": 0.3}},
            {"model": "simple_cnn", "model_args": {"dropout": 0.3}},
        ),
    ],
)
def test_an_old_word_has_this_meaning(values, wanted):
    ours, _ = old(values)
    assert {key: ours[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    "values, message",
    [
        ({"trainer": {"verbosity": 0}}, "trainer.verbosity (--log_config"),
        ({"trainer": {"epoch_count": 2}}, "trainer.epoch_count"),
        ({"trainer": {"early_stp": 2}}, "trainer.early_stp (did you mean 'early_stop'?)"),
        ({**TRAINER, "arch": {"type": "x", "args": {"in_channels": 1}}}, "in three channels"),
        ({**BACKBONE, "start_epoch": 3}, "start_epoch (a resumed run knows its epoch)"),
        ({**TRAINER, "data_loader": {"args": {"validation_split": 0}}}, "a share of the rows"),
        ({"VAL": {"BATCH_SIZE": 8}}, "VAL.BATCH_SIZE (of the training set alone"),
        ({"MLFLOW": {"TRACKING_URI": "http://x"}}, "MLFLOW.TRACKING_URI (a tracker"),
        ({**TRAINER, "lr_scheduler": {"type": "StepLR", "args": {"last_epoch": 3}}}, "last_epoch"),
    ],
)
def test_a_key_without_a_counterpart_is_in_the_warning(values, message):
    (line,) = [line for line in old(values)[1].splitlines() if line.startswith("warning:")]
    assert message in line


def test_two_old_keys_that_disagree_are_an_error():
    with pytest.raises(UserError, match=r"TRAIN.BATCH_SIZE and DATA.BATCH_SIZE disagree"):
        old({"TRAIN": {"BATCH_SIZE": 8}, "DATA": {"BATCH_SIZE": 16}})


@pytest.mark.parametrize(
    "values, message",
    [
        ({**TRAINER, "arch": {"type": "simple_cn"}}, "'simple_cn'; did you mean 'simple_cnn'"),
        ({**TRAINER, "loss": "focall"}, "unknown criterion 'focall'; did you mean 'focal'"),
        ({**TRAINER, "optimizer": {"type": "SGDD"}}, "optimizer 'SGDD'; did you mean 'SGD'"),
        ({**TRAINER, "lr_scheduler": {"type": "Stepp"}}, "unknown scheduler 'Stepp'"),
        ({"DATASET_TYPE": "cifar11"}, "unknown dataset 'cifar11'; did you mean 'CIFAR10'"),
        (
            {**TRAINER, "data_loader": {"type": "Bouquet"}},
            "unknown dataset 'Bouquet'; --dataset auto reads the images in data_dir",
        ),
        ({**TRAINER, "arch": {"type": "LeNet", "args": {"wdth": 3}}}, "takes no argument 'wdth'"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest(tmp_path, values, message):
    (tmp_path / "old.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as caught:
        configure([read_config_file(tmp_path / "old.json")])
    assert message in str(caught.value) and "old.json" in str(caught.value)


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "TRAIN: {LR: 1e-3, WEIGHT_DECAY: 5E-4}\nMEAN: (0.5, 0.5, 0.5)\n"
    )
    config, _ = merge([read_config_file(tmp_path / "a.yaml")])
    assert (config.lr, config.weight_decay, config.mean) == (0.001, 0.0005, (0.5, 0.5, 0.5))
    (tmp_path / "b.yml").write_text("lr: 2e-3\nrun_name: 1e\n")
    config, _ = merge([read_config_file(tmp_path / "b.yml")])
    assert (config.lr, config.run_name) == (0.002, "1e")


JUNK = (
    None,
    0,
    -1,
    2.5,
    True,
    "",
    "x",
    "SGD",
    [],
    ["Resize"],
    [None],
    [[1]],
    {},
    {"type": 5},
    {"Resize": 3},
    {"val": 3},
    10**400,
    float("inf"),
)


@pytest.mark.parametrize("seed", range(100))
def test_whatever_stands_in_a_file_is_read_or_refused_in_one_line(seed):
    rng = random.Random(seed)
    known = [*vocabulary.FIELD_OF, *RULES, *COMPONENTS, "type", "args", "train", "val", "trainer"]

    def junk(depth=0):
        if depth < 3 and rng.random() < 0.5:
            return {rng.choice(known): junk(depth + 1) for _ in range(4)}
        return rng.choice(JUNK)

    values = {rng.choice(known): junk() for _ in range(6)}
    with contextlib.suppress(UserError):
        merge([Layer("f", translate([("f", values)], recognise(values) or "parts")[0])])


OURS = [
    *EXAMPLES.glob("mask/train.json"),
    *EXAMPLES.glob("trashnet/train.json"),
    *(EXAMPLES.parent / "configs").glob("*.json"),
]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_our_own_files_are_taken_for_nothing_else(path):
    assert recognise(json.loads(path.read_text())) is None


@pytest.mark.parametrize(
    "values",
    [
        dataclasses.asdict(Config()),
        {"optimizer": {"type": "Adam", "args": {"lr": 0.5}}, "lr": 1},
        {"model": {"type": "backbone_head", "backbone": "resnet18", "head": "mlp"}},
        {"batchsize": 3},
        {"arch": "resnet18"},
    ],
)
def test_our_own_words_are_taken_for_nothing_else(values):
    assert recognise(values) is None
