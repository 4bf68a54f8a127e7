"""Every hyperparameter, declared once: a field of `Config` is a flag, a key of a config file, a key of a search space and a column of the results, all spelt alike."""

from __future__ import annotations

import math
import operator
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from ballot.errors import UserError, suggest
from ballot.quantities import latency_of, number_of
from ballot.utf8 import not_utf8

# A component is chosen by name and made with `<component>_args`.
COMPONENTS = ("dataset", "augmentation", "model", "criterion", "optimizer", "scheduler")

# Arguments that a nested form puts inside a component, although they are fields of their own.
OWN_FIELDS = {
    "optimizer": ("lr", "weight_decay"),
    "scheduler": ("warmup_epochs",),
    "model": ("pretrained",),
    "augmentation": ("image_size", "mean", "std"),
}

# Further flags of an option, that people have in their fingers.
SHORT = {"resume": ("-r",), "device": ("-d",), "batch_size": ("--bs",)}

# What people type first when they come from elsewhere: only ever used to suggest the right name.
SYNONYMS = {
    "learning_rate": "lr",
    "bs": "batch_size",
    "wd": "weight_decay",
    "resize": "image_size",
    "img_size": "image_size",
    "num_epochs": "epochs",
    "loss": "criterion",
    "arch": "model",
    "lr_scheduler": "scheduler",
    "num_workers": "workers",
    "output_dir": "out_dir",
    "data": "data_dir",
    "name": "run_name",
    "fp16": "amp",
    "valid_ratio": "val_ratio",
}

LIMITS = {
    "low": ("at least", operator.ge),
    "above": ("greater than", operator.gt),
    "high": ("at most", operator.le),
    "below": ("less than", operator.lt),
}


def option(default: object, text: str, group: str, **limits: object) -> Any:
    """Declare a field of `Config`: its default, its help and its limits.

    Limits are `choices`, `low` (>=), `above` (>), `high` (<=) and `below` (<); `read` refuses texts
    that are no number with a unit.
    """
    metadata = {"help": text, "group": group, **limits}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """One trial's settings; immutable, and complete in the run folder's `config.json`."""

    # fmt: off
    # Data
    data_dir: str | None = option(None, "folder of labelled images; default: scikit-learn's digits", "data")
    train_dir: str | None = option(None, "folder of class folders for training, if the three folders are separate", "data")
    val_dir: str | None = option(None, "folder of class folders for validation; requires train_dir", "data")
    test_dir: str | None = option(None, "folder of test images, with or without class folders; requires train_dir", "data")
    dataset: str = option("auto", "layout of the data; auto detects it from the folder", "data")
    dataset_args: dict = option({}, "arguments of the data set", "data")
    classes: tuple[str, ...] = option((), "class names in the order of their numbers; default: from the data", "data")
    classification: str = option("multi", "mask competition: joint label, or one attribute", "data", choices=("multi", "mask", "gender", "age"))
    path_column: str | None = option(None, "CSV layout: column with the image paths", "data")
    label_column: tuple[str, ...] | None = option(None, "CSV layout: column with the labels, or several: a class is then a combination of their values", "data")
    group_column: str | None = option(None, "CSV layout: column with the groups; all rows of a group stay on the same side of the split", "data")
    split_column: str | None = option(None, "CSV layout: column with train, val or test", "data")
    download: bool = option(False, "let torchvision download a data set that is not on disk", "data")
    exclude: str | None = option(None, "CSV with a column id, or text with one id per line: rows to leave out of training and validation", "data")
    val_ratio: float = option(0.2, "share of the training rows (or groups) held out for validation", "data", above=0, below=1)
    val_rows: int | None = option(None, "number of training rows held out for validation; default: by val_ratio", "data", low=1)
    folds: int = option(1, "number of cross-validation folds; 1 is a single split", "data", low=1)
    fold: int | None = option(None, "single fold to train, counted from 0; default: all folds", "data", low=0)
    all_rows: bool = option(False, "train on the validation rows too and keep the last epoch; there is no score then", "data")
    soft_labels: str | None = option(None, "CSV with an id or path and one probability per class: soft targets of training rows, and further training images", "data")
    near_duplicates: str = option("together", "images that are nearly the same stay on the same side of the split; ignore does not look for them", "data", choices=("together", "ignore"))
    strict: bool = option(False, "treat warnings about the data as errors", "data")
    recipe: str = option("auto", "auto chooses unset options from the data and the machine; probe fits a classifier to the frozen network, none uses the plain defaults", "data", choices=("auto", "none", "probe"))
    # Images
    image_size: int | None = option(None, "side of the square images in pixels; default: from the data or the model", "images", low=4, high=4096)
    augmentation: str = option("BaseAugmentation", "augmentation of training images", "images")
    augmentation_args: dict = option({}, "arguments of the augmentation", "images")
    pipeline: dict = option({}, "transforms for each stage, by their torchvision.transforms.v2 names", "images")
    mean: tuple[float, ...] | None = option(None, "mean of each channel for normalisation, in 0..1", "images")
    std: tuple[float, ...] | None = option(None, "standard deviation of each channel for normalisation, in 0..1", "images", above=0)
    sampler: str = option("shuffle", "order of the training rows; weighted draws all classes equally often", "images", choices=("shuffle", "weighted"))
    cache: str = option("auto", "cache of decoded images: auto, off, or a folder", "images")
    cache_limit: float = option(16.0, "largest data set to cache, in GiB", "images", low=0)
    workers: int = option(2, "threads that decode images without a cache", "images", low=0, high=256)
    tta: str = option("auto", "test-time augmentation, used if it lowers the validation log loss: auto (hflip), names such as hflip,crops, or off", "images")
    # Model
    model: str = option("simple_cnn", "architecture; python model.py lists them", "model")
    model_args: dict = option({}, "arguments of the architecture", "model")
    pretrained: str = option("auto", "ImageNet weights: auto uses them if available, yes requires them", "model", choices=("auto", "yes", "no"))
    init_from: str | None = option(None, "run folder or state dict to start from", "model")
    freeze: str | None = option(None, "layers to freeze: backbone, or the first N blocks; 0: none", "model")
    unfreeze_epoch: int | None = option(None, "epoch from which frozen layers are trained, counted from 0", "model", low=0)
    freeze_norm: bool = option(False, "freeze the batch norm statistics of a pretrained network", "model")
    classifier_start: str = option("fresh", "initial classifier of a pretrained network: fresh (zeros), or fitted to the frozen features by logistic regression", "model", choices=("fresh", "fitted"))
    heads: str = option("none", "where the label is made of attributes: none learns the joint classes alone, product a head for each attribute, joint those and a head of the joint classes", "model", choices=("none", "product", "joint"))
    ema: float = option(0.0, "decay of the exponential moving average of the weights, which is validated and saved; smaller in the first steps; 0: off", "model", low=0, below=1)
    channels_last: bool | None = option(None, "use the channels-last memory format; default: on where benchmarks showed a speed-up", "model")
    max_params: str | None = option(None, "most parameters of a network, as in 10M; a larger one is not trained", "model", read=number_of)
    max_latency: str | None = option(None, "longest time of one image, as in 20ms, measured before training; a slower network is not trained", "model", read=latency_of)
    compile: bool = option(False, "compile the model (torch.compile)", "model")
    # Loss
    criterion: str = option("cross_entropy", "loss function", "loss")
    criterion_args: dict = option({}, "arguments of the loss function", "loss")
    class_weights: str = option("none", "class weights of the loss; balanced: inversely proportional to the class counts", "loss", choices=("none", "balanced"))
    head_weights: str = option("equal", "weights of the losses of --heads; uncertainty: learnt, by the noise of each (Kendall et al., 2018)", "loss", choices=("equal", "uncertainty"))
    ordinal: tuple[str, ...] = option((), "attributes of --heads whose classes have an order, learnt by thresholds: NAME, or NAME=FIRST,SECOND,... for another order than that of the data", "loss")
    # Training
    epochs: int = option(30, "number of epochs", "training", low=1)
    batch_size: int = option(64, "images per step", "training", low=1)
    lr: float = option(1e-3, "learning rate", "training", above=0)
    weight_decay: float = option(1e-2, "weight decay", "training", low=0)
    optimizer: str = option("AdamW", "optimiser", "training")
    optimizer_args: dict = option({}, "arguments of the optimiser", "training")
    no_decay_norm: bool = option(False, "apply no weight decay to norms and biases", "training")
    layer_decay: float = option(1.0, "factor of the learning rate from each layer to the previous one", "training", above=0, high=1)
    clip_grad: float = option(0.0, "maximum gradient norm; 0: off", "training", low=0)
    accum_steps: int = option(1, "split each batch into this many parts, to use less memory", "training", low=1)
    scheduler: str = option("multistep", "learning rate schedule", "training")
    scheduler_args: dict = option({}, "arguments of the schedule", "training")
    warmup_epochs: float = option(0.0, "epochs of linear warm-up from zero", "training", low=0)
    time_limit: float = option(0.0, "seconds after which training stops and keeps the best epoch, including earlier parts of the run; 0: no limit", "training", low=0)
    early_stop: int = option(0, "stop after this many epochs without improvement of the monitored score; 0: never", "training", low=0)
    monitor: str = option("val_acc", "score to optimise: it selects the best epoch and is reported to the tuner; 'min val_loss' minimises", "training")
    val_every: int = option(1, "epochs from one validation to the next; the last epoch is always validated", "training", low=1)
    metrics: Any = option(("acc",), "metrics computed each epoch, by name", "training")
    seed: int = option(42, "seed of the split, the weights and the order of rows", "training", low=0, high=2**32 - 1)
    split_seed: int | None = option(None, "seed of the split only; default: seed", "training", low=0, high=2**32 - 1)
    # Machine
    device: str = option("auto", "cpu, cuda, cuda:N or N, mps, or auto for the best available; 0,1 trains on two GPUs", "machine")
    processes: int = option(1, "processes that train one model together, each on its own GPU, or all on the CPU", "machine", low=1, high=64)
    trials_per_gpu: int = option(1, "trials of a search per GPU, if NNI does not assign the GPUs", "machine", low=1)
    deterministic: bool = option(False, "use deterministic algorithms only; slower on GPUs", "machine")
    amp: str = option("auto", "mixed precision; auto uses it on devices that are faster with it", "machine", choices=("auto", "off", "bf16", "fp16"))
    profile: bool = option(False, "print where the time of the second epoch was spent, and write a trace of the first epoch's steps", "machine")
    # Output
    out_dir: str = option("outputs", "folder for the runs", "output")
    model_dir: str | None = option(None, "folder to copy the best weights to, as <run>.pt", "output")
    run_name: str | None = option(None, "name of the run; default: generated", "output")
    resume: str | None = option(None, "run folder to continue, or auto for this trial's own if it exists", "output")
    save_period: int = option(0, "save the weights of every N-th epoch as epoch<N>.pt; 0: only the best and the last", "output", low=0)
    log_every: int = option(0, "steps between log lines within an epoch; 0: one line per epoch", "output", low=0)
    log_config: str | None = option(None, "JSON file for logging.config.dictConfig; relative file names are in the run folder", "output")
    tensorboard: bool = option(True, "write TensorBoard files", "output")
    tracker: tuple[str, ...] = option((), "further experiment trackers: mlflow, wandb", "output", choices=("tensorboard", "mlflow", "wandb"))
    experiment: str | None = option(None, "MLflow experiment, or project of Weights & Biases; default: from the environment", "output")
    plugins: tuple[str, ...] = option((), "Python files that register your own models, losses or augmentations", "output")


TYPES = typing.get_type_hints(Config)
FIELDS = {f.name: f for f in fields(Config)}
DICT_FIELDS = tuple(name for name, kind in TYPES.items() if kind is dict)


def check_key(key: str, source: str) -> str:
    """Return the field that `key` names; an unknown one is a `UserError` with the nearest."""
    name = key.replace("-", "_")
    if name in FIELDS:
        return name
    if name in SYNONYMS:
        raise UserError(f"{source}: unknown option {key!r}; did you mean {SYNONYMS[name]!r}?")
    raise UserError(f"{source}: unknown option {key!r}{suggest(name, FIELDS)}")


def convert(key: str, value: Any, source: str) -> Any:
    """Give `value` the type of the field `key`, within its limits, or say what is wrong with it."""
    kind, optional = _kind(TYPES[key])
    if value is None and optional:
        return None
    try:
        value = _coerce(kind, value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{source}: {key} is {value!r}; it takes {_describe(kind)}") from None
    words = value if isinstance(value, tuple) else (value,)
    if any(isinstance(word, str) and "\0" in word for word in words):
        raise UserError(f"{source}: {key} is {value!r}; file names cannot contain NUL")
    if wrong := not_utf8(word for word in words if isinstance(word, str)):
        raise UserError(f"{source}: {key}: {wrong}")
    _check_limits(key, value, source)
    if "read" in FIELDS[key].metadata:
        try:
            FIELDS[key].metadata["read"](value)
        except ValueError as error:
            raise UserError(f"{source}: {key} is {value!r}; it {error}") from None
    if key == "device" and value.isdigit():  # as CUDA_VISIBLE_DEVICES and many scripts have it
        return f"cuda:{value}"
    return value


def _kind(annotation: Any) -> tuple[Any, bool]:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        kinds = [a for a in typing.get_args(annotation) if a is not type(None)]
        return kinds[0], True
    return annotation, False


def _coerce(kind: Any, value: Any) -> object:
    if kind is Any:
        return tuple(value) if isinstance(value, list) else value
    if typing.get_origin(kind) is tuple:
        if isinstance(value, str) or not isinstance(value, Iterable):
            value = [value]
        return tuple(_coerce(typing.get_args(kind)[0], item) for item in value)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # a tuner's quniform gives 32.0
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return dict(value) if kind is dict else value
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise TypeError


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return "a list: each " + _describe(typing.get_args(kind)[0])
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(kind, "an object, as in {'name': value}")


def _check_limits(key: str, value: Any, source: str) -> None:
    limits = FIELDS[key].metadata
    for word in value if isinstance(value, tuple) else (value,):
        if "choices" in limits and word not in limits["choices"]:
            raise UserError(f"{source}: {key} is {word!r}{suggest(word, limits['choices'])}")
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            continue
        for name, (words, holds) in LIMITS.items():
            finite = isinstance(number, int) or math.isfinite(number)
            if name in limits and not (finite and holds(number, limits[name])):
                raise UserError(f"{source}: {key} is {value!r}; it must be {words} {limits[name]}")


def parse_monitor(monitor: str, lower_is_better: bool) -> tuple[str, str]:
    """Split `"min val_loss"` into `("val_loss", "min")`; without a word the metric decides."""
    words = monitor.split()
    if len(words) == 2 and words[0] in ("min", "max"):
        return words[1], words[0]
    if len(words) == 1:
        return words[0], "min" if lower_is_better else "max"
    raise UserError(f"monitor: {monitor!r} is invalid; use for example 'val_acc' or 'min val_loss'")
