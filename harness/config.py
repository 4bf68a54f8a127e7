"""Every hyperparameter, declared once, and the layers that it can come from.

    defaults < run to resume < config file < command line < tuner   ->   Config + origin {key: layer}

A field of `Config` is a flag, a key of a config file, a key of a search space and a column of the
results, all spelt alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import operator
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from harness import legacy
from harness.errors import UserError, suggest

# A component is chosen by name and made with `<component>_args`.
COMPONENTS = ("dataset", "augmentation", "model", "criterion", "optimizer", "scheduler")

# Arguments that a nested form puts inside a component, although they are fields of their own.
OWN_FIELDS = {
    "optimizer": ("lr", "weight_decay"),
    "scheduler": ("warmup_epochs",),
    "model": ("pretrained",),
    "augmentation": ("image_size", "mean", "std"),
}

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
    "name": "run_name",
    "fp16": "amp",
    "valid_ratio": "val_ratio",
}


# Flags that people have in their fingers.
SHORT = {"resume": ("-r",), "device": ("-d",), "batch_size": ("--bs",)}

# What the machines of image competitions say by their environment (Amazon SageMaker's names);
# SM_CHANNEL_TRAIN and SM_CHANNEL_EVAL are read by the data set that has two folders.
ENVIRONMENT = {"SM_OUTPUT_DATA_DIR": "out_dir", "SM_MODEL_DIR": "model_dir"}

MANY = 100_000  # values in a YAML file

LIMITS = {
    "low": ("at least", operator.ge),
    "above": ("greater than", operator.gt),
    "high": ("at most", operator.le),
    "below": ("less than", operator.lt),
}


def option(default: Any, text: str, group: str, **limits: Any) -> Any:
    """Declare a field of `Config`: its default, its help and its limits.

    Limits are `choices`, `low` (>=), `above` (>), `high` (<=) and `below` (<).
    """
    metadata = {"help": text, "group": group, **limits}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """One trial's settings; immutable, and complete in the run folder's `config.json`."""

    # fmt: off
    # What is learnt
    data_dir: str | None = option(None, "folder of labelled images; none stands for scikit-learn's digits", "data")
    dataset: str = option("auto", "layout of the data; auto recognises it from the folder", "data")
    dataset_args: dict = option({}, "arguments of the data set", "data")
    classification: str = option("multi", "mask competition: the joint label or one attribute of it", "data", choices=("multi", "mask", "gender", "age"))
    path_column: str | None = option(None, "CSV layout: column of the image paths", "data")
    label_column: str | None = option(None, "CSV layout: column of the labels", "data")
    group_column: str | None = option(None, "CSV layout: column of the groups that must not be torn apart", "data")
    split_column: str | None = option(None, "CSV layout: column that says train, val or test", "data")
    download: bool = option(False, "let torchvision download a data set that is not on disk", "data")
    val_ratio: float = option(0.2, "share of the training rows (or groups) held out for validation", "data", above=0, below=1)
    folds: int = option(1, "number of cross-validation folds; 1 is a single split", "data", low=1)
    fold: int | None = option(None, "the one fold to train, counted from 0; none trains all of them", "data", low=0)
    strict: bool = option(False, "make an error of every warning about the data", "data")
    # How it is shown
    image_size: int | None = option(None, "side of the square images in pixels; none takes the data's or the model's", "images", low=4, high=4096)
    augmentation: str = option("BaseAugmentation", "what is done to training images", "images")
    augmentation_args: dict = option({}, "arguments of the augmentation", "images")
    pipeline: dict = option({}, "transforms by their torchvision.transforms.v2 names, for each stage", "images")
    mean: tuple[float, ...] | None = option(None, "mean of each channel for the normalisation, in 0..1", "images")
    std: tuple[float, ...] | None = option(None, "standard deviation of each channel, in 0..1", "images", above=0)
    sampler: str = option("shuffle", "order of the training rows; weighted draws rare classes more often", "images", choices=("shuffle", "weighted"))
    cache: str = option("auto", "decoded images: auto, off, or the folder to keep them in", "images")
    cache_limit: float = option(16.0, "largest decoded data set that is kept, in GiB", "images", low=0)
    workers: int = option(2, "threads that decode images where there is no cache", "images", low=0, high=256)
    # What learns
    model: str = option("simple_cnn", "architecture; python model.py lists them", "model")
    model_args: dict = option({}, "arguments of the architecture", "model")
    pretrained: str = option("auto", "ImageNet weights: yes demands them, auto takes them where they can be had", "model", choices=("auto", "yes", "no"))
    init_from: str | None = option(None, "run folder or state dict to start from", "model")
    freeze: str | None = option(None, "layers that are not trained: backbone, or the first N blocks", "model")
    unfreeze_epoch: int | None = option(None, "epoch from which frozen layers are trained too, counted from 0", "model", low=0)
    ema: float = option(0.0, "decay of the averaged weights that are scored and kept; 0 is off", "model", low=0, below=1)
    channels_last: bool | None = option(None, "keep image tensors in channels-last order; unless said, where it has been measured to be faster", "model")
    compile: bool = option(False, "compile the model (torch.compile)", "model")
    # What it minimises
    criterion: str = option("cross_entropy", "loss function", "loss")
    criterion_args: dict = option({}, "arguments of the loss function", "loss")
    class_weights: str = option("none", "weight of each class in the loss; balanced is inverse to its count", "loss", choices=("none", "balanced"))
    # How it gets there
    epochs: int = option(30, "passes over the training rows", "training", low=1)
    batch_size: int = option(64, "images a step", "training", low=1)
    lr: float = option(1e-3, "learning rate", "training", above=0)
    weight_decay: float = option(1e-2, "weight decay", "training", low=0)
    optimizer: str = option("AdamW", "optimiser", "training")
    optimizer_args: dict = option({}, "arguments of the optimiser", "training")
    no_decay_norm: bool = option(False, "no weight decay on norms and biases", "training")
    layer_decay: float = option(1.0, "factor of the learning rate from each layer to the one before it", "training", above=0, high=1)
    clip_grad: float = option(0.0, "largest norm of the gradient; 0 is off", "training", low=0)
    accum_steps: int = option(1, "parts that a batch is taken in, for less memory", "training", low=1)
    scheduler: str = option("multistep", "schedule of the learning rate", "training")
    scheduler_args: dict = option({}, "arguments of the schedule", "training")
    warmup_epochs: float = option(0.0, "epochs in which the learning rate rises from zero", "training", low=0)
    time_limit: float = option(0.0, "seconds after which training ends with the best so far, earlier parts of the run included; 0 is none", "training", low=0)
    early_stop: int = option(0, "epochs without a better monitored score after which training ends; 0 is never", "training", low=0)
    monitor: str = option("val_acc", "score that is reported, kept and searched for; 'min val_loss' to minimise one", "training")
    metrics: Any = option(("acc",), "scores of an epoch, by name", "training")
    seed: int = option(42, "seed of the split, the weights and the order", "training", low=0, high=2**32 - 1)
    split_seed: int | None = option(None, "seed of the split alone; none takes seed", "training", low=0, high=2**32 - 1)
    # On what
    device: str = option("auto", "cpu, cuda, cuda:N or N, mps, or auto for the best there is; 0,1 trains on two GPUs", "machine")
    trials_per_gpu: int = option(1, "trials of a search that share a GPU, where NNI does not assign them", "machine", low=1)
    deterministic: bool = option(False, "take only algorithms that give the same bits each time; slower on GPUs", "machine")
    amp: str = option("auto", "mixed precision; auto uses it where the device is faster with it", "machine", choices=("auto", "off", "bf16", "fp16"))
    profile: bool = option(False, "say where the second epoch went, and write a trace of the first one's steps", "machine")
    # What stays
    out_dir: str = option("outputs", "folder of the runs", "output")
    model_dir: str | None = option(None, "folder that the best weights are copied to as well, as <run>.pt", "output")
    run_name: str | None = option(None, "name of the run; none makes one", "output")
    resume: str | None = option(None, "run folder to continue, or auto for this trial's own if it is there", "output")
    save_period: int = option(0, "keep the weights of every N-th epoch as epoch<N>.pt; 0 keeps the best and the last alone", "output", low=0)
    log_every: int = option(0, "steps between two lines of the log within an epoch; 0 is a line an epoch", "output", low=0)
    log_config: str | None = option(None, "JSON file for logging.config.dictConfig; relative file names lie in the run folder", "output")
    tensorboard: bool = option(True, "write TensorBoard files", "output")
    tracker: tuple[str, ...] = option((), "where scores and files are sent to as well: mlflow, wandb", "output", choices=("tensorboard", "mlflow", "wandb"))
    plugins: tuple[str, ...] = option((), "Python files that register models, losses or augmentations of your own", "output")
    # fmt: on


TYPES = typing.get_type_hints(Config)
FIELDS = {f.name: f for f in fields(Config)}
DICT_FIELDS = tuple(name for name, kind in TYPES.items() if kind is dict)


@dataclass(frozen=True)
class Layer:
    """Values from one source, not yet checked; keys may be nested, dotted or in kebab-case."""

    name: str
    values: Mapping[str, Any]
    notes: tuple[str, ...] = ()  # what became of another template's words, for people


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """Return the defaults that a competition's machine sets in its environment."""
    values = {key: environ[name] for name, key in ENVIRONMENT.items() if environ.get(name)}
    return Layer("environment", values)


def check_key(key: str, source: str) -> str:
    """Return the field that `key` names; an unknown one is a `UserError` with the nearest."""
    name = key.replace("-", "_")
    if name in FIELDS:
        return name
    if name in SYNONYMS:
        raise UserError(f"{source}: unknown option {key!r}; did you mean {SYNONYMS[name]!r}?")
    raise UserError(f"{source}: unknown option {key!r}{suggest(name, FIELDS)}")


def flatten(layer: Layer) -> list[tuple[str, Any]]:
    """Turn nested components into `(key, value)` pairs; dotted keys go to a component's arguments."""
    pairs: list[tuple[str, Any]] = []
    for key, value in layer.values.items():
        head, _, rest = str(key).replace("-", "_").partition(".")
        if rest:
            pairs.append((_dotted(head, rest, layer.name), value))
        elif head in COMPONENTS and isinstance(value, Mapping):
            pairs += _component(head, value, layer.name)
        else:
            pairs.append((check_key(key, layer.name), value))
    return pairs


def _dotted(head: str, rest: str, source: str) -> str:
    if head in COMPONENTS:
        head = f"{head}_args"
    if check_key(head, source) not in DICT_FIELDS:
        raise UserError(f"{source}: {head!r} has no parts, so {head}.{rest} cannot be set")
    return f"{head}.{rest}"


def _component(key: str, value: Mapping[str, Any], source: str) -> list[tuple[str, Any]]:
    """`{"type": "Adam", "args": {"lr": 0.1}}`, and NNI's `{"_name": "Adam", "lr": 0.1}`."""
    rest = dict(value)
    names = [rest.pop(word) for word in ("_name", "type", "name") if word in rest]
    if len(names) != 1 or not isinstance(names[0], str):
        raise UserError(f'{source}: {key} needs one name, as in {{"type": "...", "args": {{...}}}}')
    inner = rest.pop("args", None) or {}
    if not isinstance(inner, Mapping):
        raise UserError(f"{source}: the args of {key} are {inner!r}; they must be named values")
    args = {**inner, **rest}
    own = OWN_FIELDS.get(key, ())
    pairs = [(key, names[0])]
    return pairs + [(k if k in own else f"{key}_args.{k}", v) for k, v in args.items()]


def merge(layers: Iterable[Layer]) -> tuple[Config, dict[str, str]]:
    """Lay `layers` over the defaults, the later over the earlier.

    Returns the `Config` and the origin of every value by key; a dotted key adds to the arguments
    of the layer below, and naming another component forgets the old one's arguments.
    """
    values = dataclasses.asdict(Config())
    origin = dict.fromkeys(values, "default")
    for layer in layers:
        # Names go first: in any order, {"optimizer": "SGD", "optimizer.momentum": 0.9} is the same.
        for key, value in sorted(flatten(layer), key=lambda pair: pair[0] not in COMPONENTS):
            head, _, rest = key.partition(".")
            if rest:
                values[head] = {**values[head], rest: value}
                origin[key] = layer.name
                continue
            value = convert(head, value, layer.name)
            if head in COMPONENTS and value != values[head]:
                _forget(f"{head}_args", values, origin)
            if head in DICT_FIELDS:
                _forget(head, values, origin)
            values[head] = value
            origin[head] = layer.name
    return Config(**values), origin


def _forget(key: str, values: dict[str, Any], origin: dict[str, str]) -> None:
    values[key] = {}
    for old in [k for k in origin if k.startswith(f"{key}.")]:
        del origin[old]


def convert(key: str, value: Any, source: str) -> Any:
    """Give `value` the type of the field `key`, within its limits, or say what is wrong with it."""
    kind, optional = _kind(TYPES[key])
    if value is None and optional:
        return None
    try:
        value = _coerce(kind, value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{source}: {key} is {value!r}; it takes {_describe(kind)}") from None
    _check_limits(key, value, source)
    if key == "device" and value.isdigit():  # as CUDA_VISIBLE_DEVICES and many scripts have it
        return f"cuda:{value}"
    return value


def _kind(annotation: Any) -> tuple[Any, bool]:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        kinds = [a for a in typing.get_args(annotation) if a is not type(None)]
        return kinds[0], True
    return annotation, False


def _coerce(kind: Any, value: Any) -> Any:
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


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `UserError`s and which takes `--batch-size` as `--batch_size`."""

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"command line: {message}; {self.prog} --help lists what there is")

    def parse_args(self, argv=None, namespace=None):
        """Parse `argv`; an unknown flag is a `UserError` with the nearest valid one."""
        known, unknown = self.parse_known_args(argv, namespace)
        if unknown:
            self.refuse(unknown[0])
        return known

    def refuse(self, word: str) -> typing.NoReturn:
        """Raise the `UserError` for a word that no flag takes."""
        if not word.startswith("-"):
            raise UserError(f"command line: {word!r} belongs to no flag; {self.prog} --help")
        flags = [f for action in self._actions for f in action.option_strings]
        name = word.split("=")[0].lstrip("-").replace("-", "_")
        if name in SYNONYMS and f"--{SYNONYMS[name]}" in flags:
            hint = f"; did you mean '--{SYNONYMS[name]}'?"
        else:
            hint = suggest(f"--{name}", flags)
        raise UserError(f"command line: unknown flag {word!r}{hint}")

    def parse_known_args(self, args=None, namespace=None):
        """Spell flags with underscores before argparse sees them; values stay as they are."""
        words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args([_snake(word) for word in words], namespace)


def _snake(word: str) -> str:
    if not word.startswith("--") or word == "--":
        return word
    flag, equals, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def build_parser(prog: str, description: str) -> Parser:
    """Derive the command line from `Config`: a flag a field, in the groups of the fields."""
    parser = Parser(
        prog=prog, usage=f"{prog} [options]", description=description, allow_abbrev=False
    )
    parser.add_argument("--config", "-c", action="append", default=[], metavar="FILE",
                        help="JSON or YAML file with any of the options below; may be repeated")  # fmt: skip
    parser.add_argument("--print_config", action="store_true",
                        help="print every value and where it comes from, and stop")  # fmt: skip
    parser.add_argument("--probe", metavar="FILE", help=argparse.SUPPRESS)  # for harness.preflight
    groups: dict[str, Any] = {}
    for name, f in FIELDS.items():
        group = groups.setdefault(f.metadata["group"], None)
        if group is None:
            group = groups[f.metadata["group"]] = parser.add_argument_group(f.metadata["group"])
        _add_flag(group, name, f)
    return parser


def _add_flag(group: Any, name: str, f: dataclasses.Field) -> None:
    kind, _ = _kind(TYPES[name])
    shown = getattr(Config(), name)
    if isinstance(shown, tuple):
        shown = " ".join(map(str, shown)) or "none"
    text = f.metadata["help"]
    if kind is not bool:
        text += f" (default: {'none' if shown in (None, {}) else shown})"
    text = text.replace("%", "%%")
    quiet = {"default": argparse.SUPPRESS, "help": text, "dest": name}
    if kind is bool:
        yes, no = dict(quiet), {**quiet, "help": f"do not {text}"}
        (yes if getattr(Config(), name) else no)["help"] = argparse.SUPPRESS
        group.add_argument(f"--{name}", action="store_true", **yes)
        group.add_argument(f"--no_{name}", action="store_false", **no)
        return
    many = kind is Any or typing.get_origin(kind) is tuple
    item = typing.get_args(kind)[0] if typing.get_args(kind) else kind
    metavar = {int: "N", float: "X", dict: "JSON"}.get(item, "TEXT")
    if "choices" in f.metadata and not many:
        metavar = "|".join(f.metadata["choices"])
    flags = (f"--{name}", *SHORT.get(name, ()))
    group.add_argument(*flags, metavar=metavar, **quiet, **({"nargs": "+"} if many else {}))


def parse_command_line(parser: Parser, argv: list[str] | None) -> tuple[Layer, argparse.Namespace]:
    """Return the layer of the command line and what else it says (`config`, `print_config`, `probe`).

    `--optimizer_args.momentum 0.9` and `--optimizer.momentum 0.9` set one argument.
    """
    known, rest = parser.parse_known_args(argv)
    values = {k: _parse(k, v) for k, v in vars(known).items() if k in FIELDS}
    words = iter(rest)
    for word in words:
        flag, equals, value = word.partition("=")
        head = flag[2:].partition(".")[0]
        if not flag.startswith("--") or not ({head, f"{head}_args"} & set(DICT_FIELDS)):
            parser.refuse(word)
        if "." not in flag:
            parser.refuse(word)
        if not equals:
            value = next(words, None)
            if value is None:
                raise UserError(f"command line: {flag} needs a value")
        values[flag[2:]] = _literal(value)
    return Layer("command line", values), known


def _parse(key: str, text: Any) -> Any:
    """Read the words of a flag as its field's type; what cannot be read is left to `convert`."""
    kind, optional = _kind(TYPES[key])
    if isinstance(text, str) and optional and text.lower() in ("none", "null"):
        return None
    if kind is dict:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(
                f"command line: --{key} is no JSON ({error}); as in --{key} '{{\"name\": 0.2}}'"
            ) from None
    if kind in (int, float):
        return _number(text)
    if typing.get_origin(kind) is tuple and typing.get_args(kind)[0] is float:
        return [_number(word) for word in text]
    return text


def _number(text: str) -> Any:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def read_config_file(path: str | Path) -> Layer:
    """Read a JSON or YAML file of options; anything else is a `UserError` that names it."""
    return read_config_files([path])[0]


def read_config_files(paths: Iterable[str | Path]) -> list[Layer]:
    """Read files of options, ours or another template's; the parts of one project are one layer."""
    layers: list[Layer] = []
    parts: list[tuple[str, dict[str, Any]]] = []
    place = 0
    for path in paths:
        values = _read_values(Path(path))
        kind = legacy.recognise(values)
        if kind == "parts":
            parts, place = [*parts, (str(path), values)], len(layers)
        elif kind:
            layers.append(Layer(str(path), *legacy.translate([(str(path), values)], kind)))
        else:
            layers.append(Layer(str(path), values))
    if parts:
        name = " + ".join(name for name, _ in parts)
        layers.insert(place, Layer(name, *legacy.translate(parts, "parts")))
    return layers


def _read_values(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"{path}: cannot be read ({reason})") from None
    yaml = path.suffix in (".yml", ".yaml")
    values = _decoded(parse_yaml(text, path)) if yaml else parse_json(text, path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}; options stand in an object")
    if set(values) == {"values", "origin"}:  # a run's config.json
        values = values["values"]
    return values


def _decoded(node: Any) -> Any:
    """Read what YAML leaves as text and people mean as numbers: 1e-3, and (32, 32)."""
    if isinstance(node, dict):
        return {key: _decoded(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_decoded(value) for value in node]
    if isinstance(node, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", node):
        return float(node)
    if isinstance(node, str) and re.fullmatch(r"\([-+.,\deE\s]+\)", node):
        return [_literal(word.strip()) for word in node[1:-1].split(",") if word.strip()]
    return node


def parse_json(text: str, path: str | Path) -> Any:
    """Parse JSON; a mistake is a `UserError` with the line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: is no JSON; {error.msg} at {where}") from None
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        raise UserError(f"{path}: is no JSON that can be read; {error}") from None


def parse_yaml(text: str, path: str | Path) -> Any:
    """Parse YAML (plain data only); a mistake is a `UserError` with the line."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}: is no YAML; {reason}{where}") from None
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        raise UserError(f"{path}: is no YAML that can be read; {error}") from None
    # An alias costs nothing to read, but whoever walks through may never come to an end.
    waiting, seen = [value], 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if seen > MANY:
            raise UserError(f"{path}: holds itself, or more than {MANY:,} values")
        if isinstance(node, (dict, list)):
            waiting += node.values() if isinstance(node, dict) else node
    return value


def parse_monitor(monitor: str, lower_is_better: bool) -> tuple[str, str]:
    """Split `"min val_loss"` into `("val_loss", "min")`; without a word the metric decides."""
    words = monitor.split()
    if len(words) == 2 and words[0] in ("min", "max"):
        return words[1], words[0]
    if len(words) == 1:
        return words[0], "min" if lower_is_better else "max"
    raise UserError(f"monitor: {monitor!r} is not understood; as in 'val_acc' or 'min val_loss'")
