"""What other PyTorch templates call things, and what that is in the words of `Config`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

# Leaves of a configuration that mean one field, whatever section they stand in.
FIELDS = {
    "lr": "lr learning_rate base_lr init_lr",
    "weight_decay": "weight_decay wd",
    "epochs": "epochs num_epochs n_epochs max_epochs total_epochs max_epoch epoch",
    "batch_size": "batch_size bs train_batch_size batch",
    "workers": "workers num_workers n_workers worker",
    "seed": "seed random_seed manual_seed",
    "data_dir": "data_dir data_root data_path root root_dir dataroot path data_folder",
    "train_dir": "train_dir train_root train_path",
    "val_dir": "val_dir valid_dir validation_dir val_root val_path",
    "test_dir": "test_dir test_root test_path",
    "image_size": "image_size img_size input_size",
    "model_dir": "model_dir weight_dir weights_dir",
    "out_dir": "out_dir save_dir output_dir work_dir log_dir ckpt_dir checkpoint_dir",
    "val_ratio": "val_ratio validation_split val_split valid_ratio valid_split val_size "
    "validation_size",
    "folds": "folds num_folds n_folds k_fold kfold n_splits num_fold",
    "fold": "fold fold_id fold_idx fold_index",
    "early_stop": "early_stop early_stopping patience early_stop_patience early_stopping_patience",
    "save_period": "save_period save_freq save_every checkpoint_period",
    "log_every": "log_every train_freq print_freq log_every_n_steps log_interval log_step",
    "val_every": "val_every val_freq val_interval eval_freq check_val_every_n_epoch",
    "warmup_epochs": "warmup_epochs warmup_epoch",
    "clip_grad": "clip_grad gradient_clip_val grad_clip clip_grad_norm max_grad_norm",
    "tensorboard": "tensorboard tensorboardx use_tensorboard",
    "download": "download",
    "mean": "mean",
    "std": "std",
    "init_from": "init_from pretrained_path weights weight_load",
}
FIELD_OF = {word: field for field, words in FIELDS.items() for word in words.split()}

# No counterpart, and the reason that a reader is told.
PROCESSES = "torchrun says it: torchrun --standalone --nproc_per_node 2 train.py ..."
CHANNELS = "found from the images and the layers"
TAKEN = "of the training set alone; validation takes the same"
WITHOUT = {
    **dict.fromkeys(("gpu_ids", "strategy", "num_nodes"), PROCESSES),
    "pin_memory": "batches come from memory that is mapped",
    "drop_last": "the last batch is trained on",
    "training": "both sides are always loaded",
    "persistent_workers": "decoding needs no processes",
    "evaluate": "predict.py applies a run folder to images",
    "tracking_uri": "set MLFLOW_TRACKING_URI",
    "start_epoch": "a resumed run knows its epoch",
    "accumulate_grad_batches": "choose a larger batch_size; accum_steps takes it in parts",
    "mode": "monitor says it: 'min val_loss'",
}

# Of processes that a project starts by itself: the values that change nothing here, and why.
PROCESS: dict[str, tuple[tuple[Any, ...] | None, str]] = {
    "distributed": (None, ""),
    "multiprocessing_distributed": (None, ""),
    "world_size": ((1, -1, None), "processes of one machine; torchrun --nnodes joins several"),
    "rank": ((0, -1, None), "processes of one machine; torchrun --nnodes joins several"),
    "local_rank": ((0, -1, None), "processes of one machine; torchrun --nnodes joins several"),
    "dist_url": (None, "processes of one machine find each other at a free port"),
    **dict.fromkeys(
        ("dist_backend", "distributed_backend"),
        (("nccl", "gloo", "dp", "ddp", "", None), "nccl between GPUs, gloo between processes"),
    ),
}

MODELS = {
    "simplecnn": "simple_cnn",
    "lenet": "simple_cnn",
    "lenet5": "simple_cnn",
    "alexnet": "AlexNet",
    **{f"resnet{n}": f"resnet{n}" for n in (18, 34, 50, 101, 152)},
    **{f"efficientnetb{n}": f"Efficientnet_b{n}" for n in range(8)},
    **{f"vgg{n}": f"vgg{n}" for n in (11, 13, 16, 19)},
}
# Networks with published weights, which a project that names no weights does not start from.
PUBLISHED = {name for name in MODELS.values() if name not in ("simple_cnn", "AlexNet")}
HEADS = {
    "alexnet": "alexnet",
    **dict.fromkeys(("linear", "linearcls", "cls", "fc", "classifier"), "linear"),
    **dict.fromkeys(("mlp", "stackedlinearcls"), "mlp"),
    "cosine": "cosine",
}
MODEL_ARGS = {
    **dict.fromkeys(
        ("dropout_ratio", "dropout_rate", "drop_rate", "drop_prob", "dropout_p", "p_dropout"),
        "dropout",
    ),
    "lrn_param": "lrn",
    "in_size": "pool",
}
OPTIMIZERS = {
    name.lower(): name
    for name in (
        "SGD",
        "Adam",
        "AdamW",
        "RMSprop",
        "Adagrad",
        "Adadelta",
        "Adamax",
        "NAdam",
        "RAdam",
        "ASGD",
        "Rprop",
    )
}
CRITERIA = {
    **dict.fromkeys(
        (
            "crossentropyloss",
            "crossentropy",
            "ce",
            "celoss",
            "nllloss",
            "nll",
            "crossentropyloss2d",
        ),
        "cross_entropy",
    ),
    **dict.fromkeys(("focalloss", "focal"), "focal"),
    **dict.fromkeys(
        ("labelsmoothing", "labelsmoothingloss", "labelsmoothingcrossentropy"), "label_smoothing"
    ),
    **dict.fromkeys(("f1loss", "f1"), "f1"),
    **dict.fromkeys(("bceloss", "bcewithlogitsloss", "bce"), "bce"),
}
CRITERION_ARGS = {
    "weight": "class_weights",
    "class_weight": "class_weights",
    "eps": "smoothing",
    "classes": None,
    "num_classes": None,
    "num_class": None,
    "reduction": None,
    "loss_weight": None,
}
# Arguments of a loss that say what is done anyway, with the values that do.
USUAL: dict[str, tuple[Any, ...]] = {"loss_weight": (1, None), "reduction": ("mean", None)}
METRICS = {
    **dict.fromkeys(("accuracy", "acc", "top1", "top1_acc"), "acc"),
    **dict.fromkeys(("top_k_acc", "topk", "top3_acc"), "top3"),  # k is 3 where these come from
    "top5_acc": "top5",
    **dict.fromkeys(("f1", "f1_score", "macro_f1"), "f1_macro"),
    **dict.fromkeys(("precision", "precision_score"), "precision_macro"),
    **dict.fromkeys(("recall", "recall_score"), "recall_macro"),
    "roc_auc": "auc",
}
DATASETS = {
    **dict.fromkeys(("cifar10", "cifer10"), "CIFAR10"),
    "masksplitbyprofile": "MaskSplitByProfileDataset",
    "maskbase": "MaskBaseDataset",
    "cifar100": "CIFAR100",
    "mnist": "MNIST",
    "fashionmnist": "FashionMNIST",
    "svhn": "SVHN",
    "stl10": "STL10",
    "digits": "digits",
    **dict.fromkeys(("dummy", "fake", "fakedata", "random"), "dummy"),
    **dict.fromkeys(("", "image", "images", "imagefolder", "custom", "base", "folder"), "auto"),
    "csv": "csv",
}

# What a transform's bare value means: {"Resize": 256}.
FIRST_ARGUMENT = {
    "RandomRotation": "degrees",
    **dict.fromkeys(("RandomHorizontalFlip", "RandomVerticalFlip", "RandomGrayscale"), "p"),
}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}  # of `normalize` in small letters
CHANCE = ("Random", "ColorJitter", "AutoAugment", "TrivialAugment", "AugMix", "Gaussian")


def squeezed(name: str) -> str:
    """Return a name without its case and its joints, as people vary them."""
    return re.sub(r"[-_ ]", "", str(name)).lower()


def known(table: Mapping[str, str], name: str, *endings: str) -> str:
    """Return our name for `name`; one that is unknown stays, to be refused with the nearest."""
    plain = squeezed(name)
    for ending in ("", *endings):
        if ending in ("", plain[-len(ending) :]) and plain.removesuffix(ending) in table:
            return table[plain.removesuffix(ending)]
    return name


def is_near(plain: str) -> bool:
    """Tell whether a name is so near that of a data set that it is a mistake in writing it."""
    names = [name for name in DATASETS if name]
    return bool(difflib.get_close_matches(plain, names, n=1, cutoff=0.8))


def metrics(spec: object) -> object:
    """Rename the metrics of a list, of an object with arguments, or of these for each stage."""
    if isinstance(spec, str):
        return METRICS.get(spec, spec)
    if isinstance(spec, (list, tuple)):
        return [METRICS.get(n, n) if isinstance(n, str) else n for n in spec]
    return spec


def monitor(text: str) -> str:
    """Rename the metric that is monitored: `max val_accuracy` is `max val_acc`."""
    *mode, name = text.replace("/", "_").split() or [""]
    stage, _, metric = name.partition("_")
    return " ".join([*mode, f"{stage}_{METRICS.get(metric, metric)}" if metric else name])
