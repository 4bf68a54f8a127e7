"""What other PyTorch templates call things, and what that is in the words of `Config`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ballot.errors import UserError
from ballot.values import Json, Values

# Leaves of a configuration that mean one field, whatever section they stand in.
FIELDS = {
    "lr": "lr learning_rate base_lr init_lr",
    "weight_decay": "weight_decay wd",
    "epochs": "epochs num_epochs n_epochs max_epochs total_epochs max_epoch epoch",
    "batch_size": "batch_size bs train_batch_size batch",
    "workers": "workers num_workers n_workers worker",
    "seed": "seed random_seed manual_seed",
    "data_dir": "data_dir data_root data_path root root_dir dataroot path data_folder",
    "image_size": "image_size img_size input_size",
    "out_dir": "out_dir save_dir output_dir work_dir log_dir ckpt_dir checkpoint_dir",
    "val_ratio": "val_ratio validation_split val_split valid_ratio valid_split val_size",
    "folds": "folds num_folds n_folds k_fold kfold n_splits num_fold",
    "fold": "fold fold_id fold_idx fold_index",
    "early_stop": "early_stop early_stopping patience early_stop_patience early_stopping_patience",
    "save_period": "save_period save_freq save_every checkpoint_period",
    "log_every": "log_every train_freq print_freq log_every_n_steps log_interval log_step",
    "warmup_epochs": "warmup_epochs warmup_epoch",
    "clip_grad": "clip_grad gradient_clip_val grad_clip clip_grad_norm max_grad_norm",
    "tensorboard": "tensorboard tensorboardx use_tensorboard",
    "download": "download",
    "mean": "mean",
    "std": "std",
    "init_from": "init_from pretrained_path weights",
}
FIELD_OF = {word: field for field, words in FIELDS.items() for word in words.split()}

# No counterpart, and the reason that a reader is told.
PROCESSES = "torchrun says it: torchrun --standalone --nproc_per_node 2 train.py ..."
TAKEN = "of the training set alone; validation takes the same"
WITHOUT = {
    **dict.fromkeys(
        (
            "world_size",
            "rank",
            "dist_url",
            "dist_backend",
            "distributed",
            "gpu_ids",
            "multiprocessing_distributed",
            "local_rank",
            "strategy",
            "num_nodes",
        ),
        PROCESSES,
    ),
    "verbosity": "--log_config chooses what is logged, and where",
    "val_freq": "validation follows every epoch, in one go",
    "check_val_every_n_epoch": "validation follows every epoch",
    "in_channel": "found from the images and the layers",
    "in_channels": "found from the images and the layers",
    "shuffle": "training rows always are, others never",
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

MODELS = {
    "simplecnn": "simple_cnn",
    "lenet": "simple_cnn",
    "lenet5": "simple_cnn",
    "alexnet": "AlexNet",
    **{f"resnet{n}": f"resnet{n}" for n in (18, 34, 50, 101, 152)},
    **{f"efficientnetb{n}": f"Efficientnet_b{n}" for n in range(8)},
    **{f"vgg{n}": f"vgg{n}" for n in (11, 13, 16, 19)},
}
HEADS = {
    "alexnet": "alexnet",
    **dict.fromkeys(("linear", "linearcls", "cls", "fc", "classifier"), "linear"),
    **dict.fromkeys(("mlp", "stackedlinearcls"), "mlp"),
    "cosine": "cosine",
}
MODEL_ARGS = dict.fromkeys(
    ("dropout_ratio", "dropout_rate", "drop_rate", "drop_prob", "dropout_p", "p_dropout"), "dropout"
)
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
    "cifar10": "CIFAR10",
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


def _taken(args: Json, *keys: str) -> Json:
    """Take keys out of arguments, as far as they are there."""
    return {key: args.pop(key) for key in keys if key in args}


def schedule(name: str, args: Json, epochs: object, lr: Any) -> tuple[str, Json, dict[str, str]]:
    """Turn a schedule of `torch.optim.lr_scheduler` into ours; return what is left of its args too.

    Defaults that differ from PyTorch's are written out.
    """
    plain, args = squeezed(name).removesuffix("lr"), dict(args)
    lost: dict[str, str] = {}
    ours: Json

    def factor(key: str) -> dict[str, float]:
        """A lowest rate as a share of the highest."""
        floor = args.pop(key, 0) or 0
        if floor and not lr:
            lost[key] = "min_factor is its share of lr, which stands elsewhere"
        return {"min_factor": floor / lr} if floor and lr else {}

    if plain in ("step", "multistep"):
        ours = _taken(args, "step_size", "milestones", "gamma")
        name = "multistep" if "milestones" in ours else plain
    elif plain == "exponential":
        name, ours = "step", {"step_size": 1, "gamma": args.pop("gamma", 0.1)}
    elif plain in ("cosineannealing", "cosine"):
        if args.pop("t_max", None) not in (None, epochs):
            lost["T_max"] = "the cosine ends with the epochs"
        name, ours = "cosine", factor("eta_min")
    elif plain in ("reduceonplateau", "reducelronplateau", "plateau"):
        taken = _taken(args, "factor", "threshold", "cooldown")
        ours = {"patience": args.pop("patience", 10), **taken, **factor("min_lr")}
        name = "plateau"
    elif plain in ("onecycle", "constant", "none"):
        name = {"none": "constant"}.get(plain, plain)
        ours = _taken(args, "pct_start", "div_factor", "final_div_factor")
    else:
        return name, args, {}  # one of our own, or unknown: checked where all names are
    for key in args:
        lost[key] = WITHOUT.get(key, f"{name} takes no such argument")
    return name, ours, lost


def pipeline(spec: Any, where: str) -> Json:
    """Turn transforms, as a list or an object, into `{name: arguments}` in order."""
    if isinstance(spec, Mapping):
        steps: Sequence[Any] = [{name: args} for name, args in spec.items()]
    elif isinstance(spec, (list, tuple)):
        steps = spec
    else:
        raise UserError(f"{where}: is {spec!r}; transforms are a list or an object")
    done: Json = {}
    for step in steps:
        name, args = _step(step, where)
        if name in done:
            raise UserError(f"{where}: {name} stands there twice; a pipeline names each once")
        done[name] = args
    return done


def sized(steps: Values, where: str, size: object) -> Json:
    """Give transforms of the size of the images, and without arguments, that size."""
    done = dict(steps)
    for name in ("Resize", "CenterCrop", "RandomCrop", "RandomResizedCrop"):
        if name in done and done[name] is None:
            if size is None:
                raise UserError(f"{where}: {name} needs a size")
            done[name] = {"size": [size, size] if name == "Resize" else size}
    return done


def without_chance(steps: Values) -> Json:
    """Return what validation sees of a pipeline for training: its sizes, nothing that draws."""
    done: Json = {}
    for name, args in steps.items():
        if name in ("RandomCrop", "RandomResizedCrop"):
            size = args["size"]
            done["Resize"] = {"size": [size, size] if isinstance(size, int) else size}
        elif not name.startswith(CHANCE):
            done[name] = args
    return done


def _step(step: object, where: str) -> tuple[str, Json | None]:
    if isinstance(step, str):
        return step, None
    if (
        isinstance(step, Mapping)
        and len(step) == 1
        and not {"type", "name"} & set(map(str.lower, step))
    ):
        ((name, args),) = step.items()
        if args is None or isinstance(args, Mapping):
            return name, _lowered(args)
        return name, {FIRST_ARGUMENT.get(name, "size"): args}
    if isinstance(step, Mapping):
        rest = _lowered(step) or {}
        for word in ("type", "name"):
            if isinstance(rest.get(word), str):
                name = rest.pop(word)
                return name, {**(_lowered(rest.pop("args", None)) or {}), **rest} or None
    raise UserError(f'{where}: {step!r} has no name; as in {{"type": "Resize", "size": 64}}')


def _lowered(args: Values | None) -> Json | None:
    return {str(key).lower(): value for key, value in args.items()} if args else None


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
