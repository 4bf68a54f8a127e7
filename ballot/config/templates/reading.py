"""What is read of a project of another template, and what can be said when all has been read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ballot.config.templates import vocabulary
from ballot.errors import UserError
from ballot.values import Json, Values

# What our own defaults would add, and no project of a template has.
IMPLIED = {"recipe": "none"}
ENDINGS = ("dataloader", "datamodule", "dataset", "loader")

# The lowest rate in PyTorch's schedules, which here is a share of the highest: `min_factor`.
LOWEST = ("eta_min", "min_lr")


@dataclass
class Reading:
    """One project as it is read: values in our words, and in which of three lists each key is."""

    source: str
    kind: str
    whole: bool = True  # a project, and not a single key of one: what it leaves out says something
    over_a_run: bool = False  # laid over a resumed run: what it leaves out stays as it was there
    values: Json = field(default_factory=dict)
    told: list[tuple[str, str]] = field(default_factory=list)  # old key and value, new words
    alike: list[tuple[str, str]] = field(default_factory=list)  # old key and value, why
    lost: dict[str, str] = field(default_factory=dict)  # old key -> why
    said: dict[str, str] = field(default_factory=dict)  # new key -> the old one that said it
    # What is settled when all has been read: what -> old key, value.
    held: dict[str, tuple[str, Any]] = field(default_factory=dict)
    args: dict[str, dict[str, tuple[str, Any]]] = field(default_factory=dict)  # of each component

    def put(self, new: str, ours: object, old: str, value: object) -> None:
        """Set `new` as `old` says; two that disagree are a `UserError`."""
        if new in self.values and self.values[new] != ours:
            raise UserError(
                f"{self.source}: {self.said[new]} and {old} disagree about {new} "
                f"({self.values[new]!r}, {ours!r}); leave one out"
            )
        self.values[new], self.said[new] = ours, old
        self.told.append((f"{old} = {value!r}", f"{new} = {ours!r}"))

    def hold(self, what: str, old: str, value: object) -> None:
        """Keep what is settled later."""
        if what in self.held and self.held[what][1] != value:
            raise UserError(
                f"{self.source}: {self.held[what][0]} and {old} disagree; leave one out"
            )
        self.held[what] = (old, value)

    def lose(self, old: str, why: str = "") -> None:
        """Name a key that has no counterpart."""
        self.lost[old] = why

    def same(self, old: str, value: Any, why: str = "") -> None:
        """Tell of a key that asks for what is done anyway."""
        self.alike.append((f"{old} = {value!r}", why))

    def name(self, what: str) -> object:
        """Return what is held, or None."""
        return self.held.get(what, ("", None))[1]


def settle(reading: Reading) -> None:
    """Turn what was held into values: components with their arguments, folders, pipelines."""
    _settle_data(reading)
    _settle_model(reading)
    _settle_training(reading)
    _settle_processes(reading)
    _settle_pipelines(reading)
    if "name" in reading.held or "out_dir" in reading.held:
        parts = [reading.held[what] for what in ("out_dir", "name") if what in reading.held]
        folder = "/".join(str(value).rstrip("/") for _, value in parts)
        if "out_dir" not in reading.held:
            folder = f"outputs/{folder}"
        reading.put("out_dir", folder, " and ".join(old for old, _ in parts), folder)
    for key, value in IMPLIED.items() if reading.whole else ():
        reading.values[key] = value
        reading.told.append(("what is left out", f"{key} = {value!r}"))


TEMPLATES = {
    "parts": "a project of three parts (model, data, environment)",
    "template": "a project of the config.json template",
    "yaml": "a project of upper-case YAML",
}


def _take(
    reading: Reading, what: str, table: Mapping[str, str | None]
) -> dict[str, tuple[str, Any]]:
    """Return a component's arguments by our names, each with its old name.

    What `table` has no word for is lost.
    """
    done = {}
    for key, (old, value) in reading.args.get(what, {}).items():
        ours = table.get(key, key)
        if ours is None:
            reading.lose(old)
        else:
            done[ours] = (old, value)
    return done


def _put_args(
    reading: Reading, what: str, args: Mapping[str, tuple[str, Any]], part: str = ""
) -> None:
    """Set the arguments of a component, or of a part of it, and tell each."""
    if not args:
        return
    given = {key: value for key, (_, value) in args.items()}
    whole = reading.values.setdefault(f"{what}_args", {})
    whole.update({part: given} if part else given)
    prefix = f"{what}_args.{part}." if part else f"{what}_args."
    for key, (old, value) in args.items():
        reading.told.append((f"{old} = {value!r}", f"{prefix}{key} = {value!r}"))


def _settle_data(reading: Reading) -> None:
    if "dummy" in reading.held:
        _settle_dummy(reading)
    else:
        _settle_dataset(reading)
    if "classes" in reading.held:
        old, count = reading.held["classes"]
        if reading.values.get("dataset") == "dummy":
            reading.values["dataset_args"] = {"num_classes": count}
            reading.told.append((f"{old} = {count!r}", f"dataset_args.num_classes = {count!r}"))
        else:
            reading.same(old, count, "the data say how many classes there are")
    if "shuffle" in reading.held:
        old, value = reading.held["shuffle"]
        if value or {"val_ratio", "val_rows"} & set(reading.values):
            why = "" if value else "; with a validation split that template does so too"
            reading.same(old, value, f"training rows are shuffled, others never{why}")
        else:
            reading.lose(old, "training rows are shuffled, others never")


def _settle_dummy(reading: Reading) -> None:
    for what in ("dataset", "loader"):
        if what in reading.held:
            reading.same(*reading.held[what], "dummy takes its place")
    old, value = reading.held["dummy"]
    reading.put("dataset", "dummy", old, value)
    for folder in ("data_dir", "train_dir", "val_dir", "test_dir"):
        if folder in reading.values:
            told = reading.said[folder]
            reading.same(told, reading.values.pop(folder), "dummy needs no folder")
            reading.told = [pair for pair in reading.told if not pair[0].startswith(f"{told} = ")]


def _settle_dataset(reading: Reading) -> None:
    """One data set by its own name and its loader's; a class of that project is `auto`."""
    given = [reading.held[what] for what in ("dataset", "loader") if what in reading.held]
    if not given:
        return
    if "train_dir" in reading.values:
        for old, name in given:
            reading.put("dataset", "class_folders", old, name)
        return
    ours = [_dataset_of(name) for _, name in given]
    special = list(dict.fromkeys(name for name in ours if name != "auto"))
    if len(special) > 1:
        raise UserError(
            f"{reading.source}: {given[0][0]} and {given[1][0]} disagree about dataset "
            f"({special[0]!r}, {special[1]!r}); leave one out"
        )
    for old, name in given:
        reading.put("dataset", special[0] if special else "auto", old, name)
    if not special and "data_dir" not in reading.values and reading.whole:
        # That project's code knows its folder; without one, `auto` would be the digits.
        old, name = given[0]
        reading.put("data_dir", "data", f"{old} without data_dir", name)


def _dataset_of(name: Any) -> str:
    """Return our name of a data set or its loader; a class of a project's own is `auto`."""
    ours = vocabulary.known(vocabulary.DATASETS, name, *ENDINGS)
    plain = vocabulary.squeezed(name)
    ending = next((end for end in ENDINGS if end in plain), None)
    if ours == name and ending and not vocabulary.is_near(plain.replace(ending, "")):
        return "auto"
    return ours


def _settle_model(reading: Reading) -> None:
    """One network by name, or a backbone with a head: AlexNet's are one network here."""
    old, name = reading.held.get("backbone", reading.held.get("model", ("", None)))
    if "backbone" in reading.held and "model" in reading.held:
        reading.same(*reading.held["model"], "what backbone and head make")
    head_old, head = reading.held.get("head", ("", None))
    if name is None:
        parts = [_take(reading, p, vocabulary.MODEL_ARGS) for p in ("model", "backbone", "head")]
        return _put_args(reading, "model", {**parts[0], **parts[1], **parts[2]})
    model = vocabulary.known(vocabulary.MODELS, name, "backbone", "model")
    _settle_parts_of_networks(reading, model)
    args = _take(reading, "model", vocabulary.MODEL_ARGS)
    head_args = _take(reading, "head", vocabulary.MODEL_ARGS)
    own = _take(reading, "backbone", vocabulary.MODEL_ARGS)
    kind = (
        vocabulary.known(vocabulary.HEADS, head, "head", "clshead", "classifier") if head else None
    )
    if kind is None or squeezed_pair(kind, model):
        reading.put("model", model, old, name)
        if head:
            reading.same(head_old, head, f"the classifier of {model}")
        _put_args(reading, "model", {**args, **own, **head_args})
    else:
        reading.put("model", "backbone_head", old, name)
        composed = {"backbone": (old, model), "head": (head_old, kind)}
        _put_args(reading, "model", {**composed, **args})
        _put_args(reading, "model", own, "backbone_args")
        _put_args(reading, "model", head_args, "head_args")
    started = {"pretrained", "init_from"} & set(reading.values)
    if model in vocabulary.PUBLISHED and reading.whole and not started:
        reading.put("pretrained", "no", f"{old} without pretrained", name)


def squeezed_pair(head: str, model: str) -> bool:
    """Tell whether a head is the network's own: AlexNet with AlexNet_Head."""
    return vocabulary.squeezed(head) == vocabulary.squeezed(model)


def _settle_parts_of_networks(reading: Reading, model: str) -> None:
    """Read what a backbone and a head say of AlexNet's layers; of others it is found."""
    pooled = reading.args.get("head", {}).pop("avg_pooling", None)
    starts = {}
    for part in ("model", "backbone", "head"):
        args = reading.args.get(part, {})
        if "multi_label" in args:
            old, value = args.pop("multi_label")
            if value:
                reading.lose(old, "an image has one class")
            else:
                reading.same(old, value, "an image has one class")
        if "init_weight" in args:
            starts[part] = args.pop("init_weight")
        if "in_size" in args and not (model == "AlexNet" and pooled and pooled[1]):
            reading.same(*args.pop("in_size"), "found from the images and the layers")
    if pooled:
        why = "in_size says to what" if pooled[1] else ""
        if model == "AlexNet":
            reading.same(*pooled, why)
        else:
            reading.lose(pooled[0], f"{model} pools as its authors have it")
    _settle_start(reading, model, starts)


def _settle_start(reading: Reading, model: str, starts: Mapping[str, tuple[str, Any]]) -> None:
    """Choose from which distribution a network starts."""
    wanted = {bool(value) for _, value in starts.values()}
    for old, value in starts.values():
        if model != "AlexNet":
            reading.same(old, value, f"{model} starts as its authors have it")
        elif len(wanted) > 1:
            reading.lose(old, "backbone and head start alike")
        elif not value:
            reading.same(old, value, "PyTorch's own start")
        else:
            reading.values.setdefault("model_args", {})["init"] = "paper"
            reading.told.append((f"{old} = {value!r}", "model_args.init = 'paper'"))


def _settle_training(reading: Reading) -> None:
    old, name = reading.held.get("optimizer", ("", None))
    if name is not None:
        optimizer = vocabulary.known(vocabulary.OPTIMIZERS, name)
        reading.put("optimizer", optimizer, old, name)
        if "weight_decay" not in reading.values and (reading.whole or reading.over_a_run):
            decay = 0.01 if optimizer == "AdamW" else 0.0
            reading.put("weight_decay", decay, f"{old} without weight_decay", name)
        if "scheduler" not in reading.held and reading.whole:
            reading.put("scheduler", "constant", f"{old} without a scheduler", name)
    _put_args(reading, "optimizer", _take(reading, "optimizer", {}))
    _settle_schedule(reading)
    _settle_criterion(reading)
    if "verbosity" in reading.held:
        old, value = reading.held["verbosity"]
        steps = math.isqrt(int(reading.values.get("batch_size") or 64))
        if "log_every" in reading.values:
            reading.same(old, value, f"{reading.said['log_every']} says how often")
        else:  # that template's log_step
            reading.put("log_every", max(1, steps), old, value)


def _settle_schedule(reading: Reading) -> None:
    old, name = reading.held.get("scheduler", ("", None))
    olds = reading.args.get("scheduler", {})
    if name is None:
        if not reading.whole:
            return _put_args(reading, "scheduler", olds)
        for where, _ in olds.values():
            reading.lose(where, "no scheduler is named")
        return None
    given = {key: value for key, (_, value) in olds.items()}
    epochs, lr = (reading.values.get(key) for key in ("epochs", "lr"))
    ours, args, lost = schedule(name, given, epochs, lr)
    reading.put("scheduler", ours, old, name)
    if args:
        reading.values["scheduler_args"] = dict(args)
    left = dict(args)
    for key, (where, value) in olds.items():
        new = "min_factor" if key in LOWEST else key
        if new in left:
            told = f"scheduler_args.{new} = {left.pop(new)!r}"
            reading.told.append((f"{where} = {value!r}", told))
        elif key not in {k.lower() for k in lost}:
            reading.same(where, value)
    for key, value in left.items():
        reading.told.append((f"{old} = {name!r}", f"scheduler_args.{key} = {value!r}"))
    reading.lost |= {
        f"{old.rpartition('.')[0]}.{key}".lstrip("."): why for key, why in lost.items()
    }


def _settle_criterion(reading: Reading) -> None:
    old, name = reading.held.get("criterion", ("", None))
    given = reading.args.get("criterion", {})
    for key, usual in vocabulary.USUAL.items():
        if key in given and given[key][1] in usual:
            reading.same(*given.pop(key))
    args = _take(reading, "criterion", vocabulary.CRITERION_ARGS)
    if name is not None:
        ours = vocabulary.known(vocabulary.CRITERIA, name)
        reading.put("criterion", ours, old, name)
    if "class_weights" in args and args["class_weights"][1] in (None, "balanced"):
        old, balanced = args.pop("class_weights")
        reading.put("class_weights", balanced or "none", old, balanced)
    _put_args(reading, "criterion", args)


def _settle_processes(reading: Reading) -> None:
    """How many processes train together, as launchers of a project's own have it."""
    held = {
        what.partition(" ")[2]: pair
        for what, pair in reading.held.items()
        if what.startswith("process ")
    }
    if not held:
        return
    flags = [held[key] for key in ("distributed", "multiprocessing_distributed") if key in held]
    together = any(value for _, value in flags)
    count = held.pop("ngpus_per_node", None)
    if together and count:
        reading.put("processes", int(count[1]), *count)
    elif count:
        reading.same(*count, "one process trains")
    for key, (old, value) in held.items():
        usual, why = vocabulary.PROCESS[key]
        if key in ("distributed", "multiprocessing_distributed"):
            if value and not count:
                reading.lose(old, vocabulary.PROCESSES)
            else:
                reading.same(old, value, "processes says it")
        elif usual is None or value in usual:
            reading.same(old, value, why)
        else:
            reading.lose(old, why)


def _settle_pipelines(reading: Reading) -> None:
    stages = {
        s: reading.held[f"pipeline {s}"]
        for s in ("train", "val", "test")
        if f"pipeline {s}" in reading.held
    }
    if not stages:
        return
    size = reading.values.get("image_size")
    made = {s: sized(steps, f"{reading.source}: {old}", size) for s, (old, steps) in stages.items()}
    if "mean" in reading.values or "std" in reading.values:
        for steps in made.values():
            if steps.get("Normalize") == vocabulary.HALF:
                steps["Normalize"] = None  # by the file's own mean and standard deviation
    for s, (old, _) in stages.items():
        reading.told.append((old, f"pipeline.{s} = {made[s]!r}"))
    if "val" not in made and "train" in made:
        made["val"] = without_chance(made["train"])
        reading.told.append((f"{stages['train'][0]}, less chance", f"pipeline.val = {made['val']}"))
    reading.values["pipeline"] = made


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
        elif not name.startswith(vocabulary.CHANCE):
            done[name] = args
    return done


def schedule(name: str, args: Json, epochs: Any, lr: Any) -> tuple[str, Json, dict[str, str]]:
    """Turn a schedule of `torch.optim.lr_scheduler` into ours; return what is left of its args too.

    Defaults that differ from PyTorch's are written out.
    """
    plain, args = vocabulary.squeezed(name).removesuffix("lr"), dict(args)
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
        lost[key] = vocabulary.WITHOUT.get(key, f"{name} takes no such argument")
    return name, ours, lost


def _taken(args: Json, *keys: str) -> Json:
    """Take keys out of arguments, as far as they are there."""
    return {key: args.pop(key) for key in keys if key in args}
