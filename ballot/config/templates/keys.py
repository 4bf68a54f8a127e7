"""Keys of other templates: what each of a file, or of a search space, becomes.

A search space names single keys: `optimizer;args;lr`, `TRAIN.LR`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ballot.config import schema
from ballot.config.templates import vocabulary
from ballot.config.templates.pipelines import pipeline
from ballot.config.templates.reading import Reading, settle
from ballot.errors import UserError, suggest
from ballot.values import Json, Values

MANY_ROWS = 10**12
MOST_GPUS = 64  # of one machine: a list of them is written out
STAGES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    "test": "test",
}

# Sections that are a component: a name, or {"type": name, "args": {...}}.
COMPONENTS = {
    **dict.fromkeys(("arch", "model", "model_type", "network", "net"), "model"),
    **dict.fromkeys(("backbone",), "backbone"),
    **dict.fromkeys(("head", "cls_head"), "head"),
    **dict.fromkeys(("optimizer", "optim", "optimizer_type"), "optimizer"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "scheduler_type"), "scheduler"),
    **dict.fromkeys(("loss", "loss_cls", "criterion", "loss_fn", "loss_type"), "criterion"),
    **dict.fromkeys(("dataset", "dataset_type", "dataset_name"), "dataset"),
    **dict.fromkeys(("data_loader", "datamodule"), "loader"),
}
# Fields that may stand inside a component; whatever else stands there is an argument of it.
INSIDE = {
    "model": {"image_size", "init_from"},
    "backbone": {"image_size", "init_from"},
    "head": set(),
    "optimizer": {"lr", "weight_decay"},
    "scheduler": {"warmup_epochs"},
    "criterion": set(),
}
# Arguments that upper-case YAML lets stand beside the component's name.
LOOSE = {
    **dict.fromkeys(("momentum", "nesterov", "betas", "amsgrad"), "optimizer"),
    **dict.fromkeys(("gamma", "step_size", "milestones", "t_max", "eta_min"), "scheduler"),
    **dict.fromkeys(("label_smoothing", "class_weight"), "criterion"),
    **dict.fromkeys(("dropout", *vocabulary.MODEL_ARGS), "model"),
}


def is_theirs(key: str) -> bool:
    """Tell whether a key is a path in a file of another template: `arch;args;dropout`."""
    parts = re.split("[;.]", key)
    if ";" in key or re.fullmatch(r"[A-Z][A-Z0-9_]+", parts[0]):
        return True
    if parts[0] in schema.FIELDS:
        return parts[1:2] == ["args"] or (len(parts) > 2 and parts[0] in schema.COMPONENTS)
    return len(parts) > 1 and parts[0] in {*COMPONENTS, "trainer", "params", "env"}


def in_our_words(key: str, value: Any, source: str) -> list[tuple[str, Any]]:
    """Return what one key of another template sets; one without a counterpart is a `UserError`."""
    parts = re.split("[;.]", key)
    node: Any = value
    for part in reversed(parts):
        node = {part: node}
    kind = "yaml" if parts[0].isupper() else "template"
    reading = Reading(source, kind, whole=False)
    walk(reading, node, (), None)
    settle(reading)
    pairs: list[tuple[str, Any]] = []
    for name, ours in reading.values.items():
        if name in schema.DICT_FIELDS and name.endswith("_args"):
            pairs += [(f"{name}.{argument}", part) for argument, part in ours.items()]
        else:
            pairs.append((name, ours))
    if not pairs:
        why = next((reason for reason in reading.lost.values() if reason), "see docs/moving.md")
        raise UserError(f"{source}: {key!r} has no counterpart ({why})")
    return pairs


def space_in_our_words(space: Mapping[str, Any], source: str) -> Json:
    """Rename the keys of a search space that are another template's, and the values of choices.

    What cannot be renamed stays as it is, to be refused where all keys are checked.
    """
    done: dict[str, Any] = {}
    for key, spec in space.items():
        try:
            renamed, ours = _renamed(key, spec, source)
        except (UserError, KeyError, TypeError):
            renamed, ours = key, spec
        if renamed in done:
            raise UserError(f"{source}: {key} and another key both set {renamed}; leave one out")
        done[renamed] = ours
    return done


def _renamed(key: str, spec: Any, source: str) -> tuple[str, Any]:
    if not is_theirs(key):
        return key, spec
    values = spec["_value"]
    if spec["_type"] != "choice":
        ((name, _),) = in_our_words(key, values[0], source)
        return name, spec
    pairs = [pair for value in values for pair in in_our_words(key, value, source)]
    names = {name for name, _ in pairs}
    if len(names) > 1 or len(pairs) != len(values):
        raise UserError(f"{source}: {key} sets several options: {', '.join(sorted(names))}")
    return pairs[0][0], {**spec, "_value": [value for _, value in pairs]}


def walk(reading: Reading, node: Values, path: tuple[str, ...], owner: str | None) -> None:
    """Read a section: each key as a component, by its rule, as a field, or as an argument."""
    for key, value in node.items():
        here, leaf = (*path, str(key)), str(key).lower()
        old, new = ".".join(here), vocabulary.FIELD_OF.get(leaf)
        if owner and leaf in ("type", "name", "_name") and isinstance(value, str):
            reading.hold(owner, old, value)
        elif owner and leaf == "args":
            if not isinstance(value or {}, Mapping):
                raise UserError(f"{reading.source}: {old} is {value!r}; arguments are an object")
            walk(reading, value or {}, here, owner)
        elif leaf in COMPONENTS and isinstance(value, Mapping):
            walk(reading, value, here, COMPONENTS[leaf])
        elif leaf in COMPONENTS and (isinstance(value, str) or value is None):
            if value:
                reading.hold(COMPONENTS[leaf], old, value)
        elif owner in INSIDE and (leaf not in RULES or owner == "scheduler"):
            if new in INSIDE[owner]:
                reading.put(new, value, old, value)
            else:
                reading.args.setdefault(owner, {})[leaf] = (old, value)
        elif leaf in RULES:
            RULES[leaf](reading, here, value)
        elif isinstance(value, Mapping):
            walk(reading, value, here, owner)
        else:
            leaf_alone(reading, here, value)


def leaf_alone(reading: Reading, path: tuple[str, ...], value: object) -> None:
    """Read a key that is neither a section nor inside of a component with arguments."""
    old, leaf = ".".join(path), path[-1].lower()
    new = vocabulary.FIELD_OF.get(leaf)
    if new == "data_dir" and leaf in ("root", "path") and not _of_data(path):
        new = None
    if new and stage_of(path) in ("val", "test"):
        reading.lose(old, vocabulary.TAKEN)
    elif leaf == "cache_dir":
        reading.put("data_dir", value, old, value)
        reading.values["download"] = True
        reading.told.append((f"{old} = {value!r}", "download = True"))
    elif leaf in LOOSE:
        reading.args.setdefault(LOOSE[leaf], {})[leaf] = (old, value)
    elif new in ("early_stop", "save_period", "log_every"):  # a count, or off
        count = value if isinstance(value, int) and value > 0 else 0
        reading.put(new, int(count), old, value)
    elif new == "val_ratio":
        _amount(reading, old, value)
    elif new and value in (None, ""):
        reading.same(old, value)
    elif new == "out_dir":
        reading.hold("out_dir", old, value)
    elif new:
        reading.put(new, value, old, value)
    elif leaf in vocabulary.WITHOUT:
        reading.lose(old, vocabulary.WITHOUT[leaf])
    else:
        near = suggest(leaf, [*vocabulary.FIELD_OF, *RULES, *COMPONENTS]).removeprefix("; ")
        reading.lose(old, near if near.startswith("did you mean") else "")


def _amount(reading: Reading, old: str, value: object) -> None:
    """What is held out: a share of the rows below 1, their number from 1 on."""
    number = float(value) if isinstance(value, (int, float)) and value is not True else 0.0
    if 0 < number < 1:
        reading.put("val_ratio", number, old, value)
    elif 1 <= number < MANY_ROWS and number.is_integer():
        reading.put("val_rows", int(number), old, value)
    else:
        reading.lose(old, "a share of the rows or their number; some are held out")


def _of_data(path: tuple[str, ...]) -> bool:
    return any(part.lower().startswith("data") for part in path[:-1])


def stage_of(path: tuple[str, ...]) -> str | None:
    """Name the stage of whose section `path` is a part."""
    return next((STAGES[part.lower()] for part in path[:-1] if part.lower() in STAGES), None)


def _metrics(reading: Reading, path: tuple[str, ...], value: object) -> None:
    old, stage = ".".join(path), stage_of(path)
    if not value:
        return reading.same(old, value)
    if isinstance(value, Mapping) and {str(key).lower() for key in value} <= set(STAGES):
        ours: object = {
            STAGES[str(key).lower()]: vocabulary.metrics(part) for key, part in value.items()
        }
    else:
        ours = vocabulary.metrics(value)
        if stage and reading.kind == "parts":
            others = reading.values.setdefault("metrics", {})
            if not isinstance(others, dict):
                raise UserError(
                    f"{reading.source}: {old} is of one stage, and "
                    f"{reading.said['metrics']} of all; leave one out"
                )
            others[stage] = ours
            reading.said.setdefault("metrics", old)
            return reading.told.append((f"{old} = {value!r}", f"metrics.{stage} = {ours!r}"))
    reading.put("metrics", tuple(ours) if isinstance(ours, list) else ours, old, value)


def _monitor(reading: Reading, path: tuple[str, ...], value: object) -> None:
    old = ".".join(path)
    if value in (None, "", "off"):
        return reading.lose(old, "one score is always watched: val_acc by default")
    reading.put("monitor", vocabulary.monitor(str(value)), old, value)


def _pipeline(reading: Reading, path: tuple[str, ...], value: object) -> None:
    old, where = ".".join(path), f"{reading.source}: {'.'.join(path)}"
    if not value:
        return reading.same(old, value)
    by_prefix = STAGES.get(path[-1].lower().partition("_")[0])
    if isinstance(value, Mapping) and {str(key).lower() for key in value} <= set(STAGES):
        for key, part in value.items():
            stage = STAGES[str(key).lower()]
            reading.hold(f"pipeline {stage}", f"{old}.{key}", pipeline(part, where))
    else:
        stage = by_prefix or stage_of(path) or "train"
        reading.hold(f"pipeline {stage}", old, pipeline(value, where))


def _processors(reading: Reading, path: tuple[str, ...], value: object) -> None:
    """How many GPUs, or which: `n_gpu`, `gpu`, `devices`, `accelerator`."""
    old, leaf = ".".join(path), path[-1].lower()
    named = leaf in ("gpu", "gpu_id", "device")
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    if value in (None, "", "auto") or (value == 1 and not named):
        reading.put("device", "auto", old, value)
    elif value in ("gpu", "cpu", "cuda", "mps"):
        reading.put("device", "cuda" if value == "gpu" else value, old, value)
    elif isinstance(value, int) and named:
        reading.put("device", f"cuda:{value}", old, value)
    elif value == 0:
        reading.put("device", "cpu", old, value)
    elif isinstance(value, list) and value:
        reading.put("device", ",".join(map(str, value)), old, value)
    elif isinstance(value, int) and 1 < value <= MOST_GPUS:
        reading.put("device", ",".join(map(str, range(value))), old, value)
    else:
        reading.put("device", str(value), old, value)


def _precision(reading: Reading, path: tuple[str, ...], value: object) -> None:
    plain = {"true": "auto", "false": "off"}.get(str(value).lower(), str(value).split("-")[0])
    ours = {"16": "fp16", "32": "off", "64": "off"}.get(plain, plain)
    reading.put("amp", ours, ".".join(path), value)


def _pretrained(reading: Reading, path: tuple[str, ...], value: object) -> None:
    if isinstance(value, str) and value not in ("", "auto", "yes", "no"):
        return reading.put("init_from", value, ".".join(path), value)
    ours = value if value in ("auto", "yes", "no") else "yes" if value else "no"
    reading.put("pretrained", ours, ".".join(path), value)


def _resume(reading: Reading, path: tuple[str, ...], value: object) -> None:
    if not value:
        return reading.same(".".join(path), value)
    reading.put("resume", value, ".".join(path), value)


def _start(reading: Reading, path: tuple[str, ...], value: object) -> None:
    if value:
        return reading.lose(".".join(path), vocabulary.WITHOUT["start_epoch"])
    reading.same(".".join(path), value, "a run begins at its first epoch, or where it was")


def _classes(reading: Reading, path: tuple[str, ...], value: object) -> None:
    old = ".".join(path)
    if isinstance(value, list) and value:
        reading.put("classes", tuple(map(str, value)), old, value)
    elif isinstance(value, int) and not isinstance(value, bool):
        reading.hold("classes", old, value)
    else:
        reading.lose(old, "a number of classes, or a list of their names")


def _channels(reading: Reading, path: tuple[str, ...], value: object) -> None:
    old = ".".join(path)
    if value == 3 or any("head" in part.lower() for part in path[:-1]):
        reading.same(old, value, vocabulary.CHANNELS)
    else:
        reading.lose(old, "images are shown in three channels, grey ones too")


def _processes(reading: Reading, path: tuple[str, ...], value: object) -> None:
    reading.hold(f"process {path[-1].lower()}", ".".join(path), value)


def _verbosity(reading: Reading, path: tuple[str, ...], value: object) -> None:
    """2 is a line every few steps, 1 a line an epoch, 0 warnings alone."""
    old = ".".join(path)
    if value == 2:
        reading.hold("verbosity", old, value)
    elif value == 1:
        reading.same(old, value, "a line an epoch")
    else:
        reading.lose(old, "--log_config chooses what is logged, and where")


def _shuffle(reading: Reading, path: tuple[str, ...], value: object) -> None:
    reading.hold("shuffle", ".".join(path), value)


def _dummy(reading: Reading, path: tuple[str, ...], value: object) -> None:
    if not value:
        return reading.same(".".join(path), value)
    reading.hold("dummy", ".".join(path), True)


def _name(reading: Reading, path: tuple[str, ...], value: object) -> None:
    reading.hold("name", ".".join(path), value)


def _tracker(reading: Reading, path: tuple[str, ...], value: object) -> None:
    """`logger: mlflow`, `use_wandb: true`, or a section `MLFLOW` with its address."""
    old, leaf = ".".join(path), path[-1].lower()
    named = [name for name in ("mlflow", "wandb") if name in leaf]
    wanted = [str(name).lower() for name in (value if isinstance(value, list) else [value])]
    if isinstance(value, Mapping):
        low = {str(key).lower(): part for key, part in value.items()}
        on = next((low[key] for key in ("enable", "enabled", "use") if key in low), True)
        for key, part in value.items():
            if str(key).lower() in ("experiment_name", "experiment", "project"):
                reading.put("experiment", part, f"{old}.{key}", part)
            elif str(key).lower() not in ("enable", "enabled", "use"):
                reading.lose(f"{old}.{key}", "a tracker's own words are in its environment")
    else:
        on = bool(value)
    chosen = (
        named if named and on else [w for w in wanted if w in ("mlflow", "wandb", "tensorboard")]
    )
    before = reading.values.pop("tracker", ())
    reading.put("tracker", tuple(dict.fromkeys((*before, *chosen))), old, value)


RULES: dict[str, Callable[[Reading, tuple[str, ...], object], None]] = {
    **dict.fromkeys(("metrics", "metric", "evaluation", "eval_metrics"), _metrics),
    "monitor": _monitor,
    **dict.fromkeys(
        (
            "transform_list",
            "transforms",
            "transform",
            "pipeline",
            "train_transforms",
            "val_transforms",
            "test_transforms",
            "train_transform",
            "val_transform",
            "train_pipeline",
            "val_pipeline",
            "test_pipeline",
            "train_transform_list",
            "val_transform_list",
            "test_transform_list",
        ),
        _pipeline,
    ),
    **dict.fromkeys(
        ("n_gpu", "gpus", "num_gpus", "devices", "gpu", "gpu_id", "device", "accelerator"),
        _processors,
    ),
    **dict.fromkeys(("precision", "amp", "fp16", "use_amp"), _precision),
    "pretrained": _pretrained,
    **dict.fromkeys(("resume", "resume_path"), _resume),
    "start_epoch": _start,
    **dict.fromkeys(("num_class", "num_classes", "n_classes", "classes"), _classes),
    **dict.fromkeys(
        ("in_channel", "in_channels", "in_chans", "input_dim", "input_channels"), _channels
    ),
    **dict.fromkeys(vocabulary.PROCESS, _processes),
    "ngpus_per_node": _processes,
    "verbosity": _verbosity,
    "shuffle": _shuffle,
    "dummy": _dummy,
    **dict.fromkeys(("name", "experiment_name", "exp_name", "run_name"), _name),
    **dict.fromkeys(
        ("logger", "loggers", "tracker", "mlflow", "wandb", "use_mlflow", "use_wandb"), _tracker
    ),
}
